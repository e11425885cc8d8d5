"""`dinowds.data` without the trainer, as the README shows it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinowds.data import Dataset, Loader, Order, World
from dinowds.data.decode import decode_image
from dinowds.data.store.store import open_store
from dinowds.errors import ConfigError
from dinowds.shard.build import ShardOptions, build_dataset
from tests.support import jpeg_patch

README = Path(__file__).parents[2] / "README.md"
ORDER = Order(batch_size=12, seed=3, chunk_size=4, window_chunks=3, partitions=4)


def test_readme__its_lines_run(dataset_path: Path, tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "dinowds.data" in block]
    assert blocks
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patches").symlink_to(dataset_path)
    for block in blocks:
        script = block.replace("batch_size=256", "batch_size=12").replace("s3://lab/patches", "data/patches")
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_loader__gives_images_keys_and_labels(dataset: Dataset) -> None:
    loader = Loader(dataset, ORDER, epochs=1)
    batches = list(loader)
    assert [batch.step for batch in batches] == list(range(loader.steps_per_epoch))
    for batch in batches:
        assert isinstance(batch.images, torch.Tensor)
        assert batch.images.shape == (12, 32, 32, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.keys == [dataset[int(sample)].key for sample in batch.ids]
        assert batch.labels.tolist() == [-1] * 12
        assert not batch.payloads


def test_loader__gives_bytes(dataset: Dataset) -> None:
    batch = next(iter(Loader(dataset, ORDER, decode=False)))
    assert [payload[:2] for payload in batch.payloads] == [b"\xff\xd8"] * 12
    assert not len(batch.images)


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    """40 patches of 8 sizes."""
    with tarfile.open(tmp_path / "mixed.tar", "w") as tar:
        for i in range(40):
            payload = jpeg_patch(i, 32 + 8 * (i % 8))
            member = tarfile.TarInfo(f"slide{i // 10}/{i}_0.jpg")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    build_dataset([tmp_path / "mixed.tar"], tmp_path / "shards", ShardOptions(max_count=20))
    return Dataset.open(tmp_path / "shards")


@pytest.mark.parametrize("workers", [0, 2])
def test_loader__batches_are_their_users_for_ever(mixed: Dataset, workers: int) -> None:
    """All are kept, more than there are places, of all sizes, and compared when the loader is gone."""
    order = Order(batch_size=4, seed=1, chunk_size=2, window_chunks=2, partitions=4)
    images = list(Loader(mixed, order, epochs=2, num_workers=workers))
    payloads = list(Loader(mixed, order, epochs=2, num_workers=workers, decode=False))
    store = open_store(mixed)
    for one, other in zip(images, payloads, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert isinstance(one.images, list)
        for sample, image, payload in zip(one.ids.tolist(), one.images, other.payloads, strict=True):
            assert payload == store.read(mixed[sample])
            assert np.array_equal(image.numpy(), decode_image(payload))


def test_loader__memory_is_used_again(dataset: Dataset) -> None:
    addresses = []
    for batch in Loader(dataset, ORDER, epochs=2):
        assert isinstance(batch.images, torch.Tensor)
        addresses.append(batch.images.data_ptr())
    assert len(set(addresses)) <= 2 < len(addresses)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_loader__goes_on_from_its_state(dataset: Dataset, ranks: int, workers: int) -> None:
    expected = [batch.keys for batch in Loader(dataset, ORDER, epochs=2)]
    first = Loader(dataset, ORDER, epochs=2)
    for batch in first:
        if batch.step == 8:
            break
    state = first.state_dict()
    assert (state["epoch"], state["step"]) == (1, 2)
    loaders = [Loader(dataset, ORDER, world=World(r, ranks), epochs=2, num_workers=workers) for r in range(ranks)]
    for loader in loaders:
        loader.load_state_dict(state)
    found = [[key for part in parts for key in part.keys] for parts in zip(*loaders, strict=True)]
    assert found == expected[9:]


def test_loader__iterating_again_goes_on(dataset: Dataset) -> None:
    loader = Loader(dataset, ORDER)
    first = [batch.step for batch, _ in zip(loader, range(3), strict=False)]
    assert [*first, next(iter(loader)).step] == [0, 1, 2, 4]  # zip took one more batch than it gave


def test_loader__state_of_another_order_is_refused(dataset: Dataset) -> None:
    state = Loader(dataset, ORDER).state_dict()
    with pytest.raises(ConfigError, match="seed 3, this loader 4"):
        Loader(dataset, Order(12, 4, 4, 3, 4)).load_state_dict(state)
    with pytest.raises(ConfigError, match="another dataset"):
        Loader(dataset, ORDER).load_state_dict({**state, "dataset": "0"})
    loader = Loader(Dataset("https://me:secret@lab.org/d?key=secret", dataset.manifest), ORDER)
    with pytest.raises(ConfigError, match=r"^https://lab\.org/d: the loader's state is of another"):
        loader.load_state_dict({**state, "dataset": "0"})


@pytest.mark.parametrize(
    "change", [{"dataset": None}, {"order": None}, {"order": 3}, {"order": "seed"}, {"epoch": None}, {"step": "1"}]
)
def test_loader__state_of_something_else_is_refused_in_one_line(dataset: Dataset, change: dict[str, object]) -> None:
    loader = Loader(dataset, ORDER)
    state = {**loader.state_dict(), **change}
    some_of_it = {name: value for name, value in state.items() if value is not None}
    foreigners: list[Any] = [some_of_it, {}, []]
    for foreign in foreigners:
        with pytest.raises(ConfigError, match=r"^this is no loader's state; expected what Loader\.state_dict\(\) gave"):
            loader.load_state_dict(foreign)
    assert loader.step == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": World(0, 5)}, r"train\.batch_size is 12, expected a multiple of the 5 processes"),
        ({"epochs": -1}, "epochs is -1, expected at least 0"),
        ({"num_workers": -1}, "num_workers is -1, expected at least 0"),
        ({"read_ahead": -2}, "read_ahead is -2, expected at least 0"),
        ({"prefetch_factor": 0}, "prefetch_factor is 0, expected at least 1"),
    ],
)
def test_loader__what_cannot_work_is_refused_at_once(dataset: Dataset, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Loader(dataset, ORDER, **change)
