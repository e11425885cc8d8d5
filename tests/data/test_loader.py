"""The stream: exactly the plan's samples, whoever reads them, and a substitute for what cannot be read."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops.batches import Batch, Crop
from dinowds.crops.device import DeviceRenderer
from dinowds.crops.recipe import patch_recipe
from dinowds.data.blocks import Blocks
from dinowds.data.dataset import Dataset
from dinowds.data.loader import Loader, StartMethod, load
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.source import Decode, PlanSource, stream
from dinowds.errors import ConfigError, DatasetError
from dinowds.world import World

ORDER = Order(batch_size=12, seed=3, chunk_size=4, window_chunks=3, partitions=4)
CAPPED = dataclasses.replace(ORDER, max_per_slide=2)
WEIGHTED = dataclasses.replace(ORDER, weights={"alpha": 1.0, "beta": 3.0})
STEPS = 7  # of an epoch of 90 samples
RECIPE = patch_recipe(CropsConfig(global_=GlobalCropsConfig(size=24), local=LocalCropsConfig(size=16, count=2)))


def batches(
    dataset: Dataset,
    world: World | None = None,
    start: int = 0,
    end: int = 2 * STEPS,
    workers: int = 0,
    order: Order = ORDER,
    start_method: StartMethod = "forkserver",
    renderer: str = "cpu",
) -> Iterator[Batch]:
    source = PlanSource(dataset, make_plan(dataset, order), world or World(), start, end)
    pipeline = stream(source, Crop(source, RECIPE, renderer, order.seed, Blocks(workers)))
    return load(pipeline, workers, start_method=start_method)


def joined(parts: list[Batch]) -> dict[str, Any]:
    return {
        "step": parts[0].step,
        "keys": [key for part in parts for key in part.keys],
        "samples": torch.cat([part.samples for part in parts]).tolist(),
        **{name: torch.cat([part.views[name] for part in parts], dim=1) for name in parts[0].views},
    }


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


@pytest.fixture(scope="module")
def reference(dataset_path: Path) -> list[dict[str, Any]]:
    return [joined([batch]) for batch in batches(Dataset.open(dataset_path))]


def test_stream__follows_the_plan(dataset: Dataset, reference: list[dict[str, Any]]) -> None:
    assert [batch["step"] for batch in reference] == list(range(2 * STEPS))
    plan = make_plan(dataset, ORDER)
    for batch in reference:
        assert batch["samples"] == plan.ids(batch["step"]).tolist()
        assert batch["keys"] == [dataset[sample].key for sample in batch["samples"]]
        assert batch["global"].shape == (2, 12, 3, 24, 24)
        assert batch["local"].shape == (2, 12, 3, 16, 16)


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_stream__any_world_size_gives_the_same_batches(
    dataset: Dataset, reference: list[dict[str, Any]], ranks: int
) -> None:
    streams = [batches(dataset, World(rank, ranks)) for rank in range(ranks)]
    for expected, parts in zip(reference, zip(*streams, strict=True), strict=True):
        assert_equal(joined(list(parts)), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores, on purpose
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "start", "start_method"), [(1, 0, "forkserver"), (2, 0, "spawn"), (2, 1, "fork"), (4, 5, "forkserver")]
)
def test_stream__any_number_of_workers_gives_the_same_batches(
    dataset: Dataset, reference: list[dict[str, Any]], workers: int, start: int, start_method: StartMethod
) -> None:
    found = [joined([b]) for b in batches(dataset, start=start, workers=workers, start_method=start_method)]
    for expected, batch in zip(reference[start:], found, strict=True):
        assert_equal(batch, expected)


@pytest.mark.parametrize("order", [ORDER, CAPPED, WEIGHTED], ids=["plain", "capped", "weighted"])
def test_stream__resumes_twice_in_a_row_on_other_worlds(dataset: Dataset, order: Order) -> None:
    """Any two places to stop: 3 ranks, then 4, then 1, as one process that is never stopped."""
    expected = [joined([batch]) for batch in batches(dataset, order=order)]
    for first, second in itertools.combinations(range(0, 2 * STEPS + 1, 3), 2):
        found: list[dict[str, Any]] = []
        for ranks, start, end in ((3, 0, first), (4, first, second), (1, second, 2 * STEPS)):
            streams = [batches(dataset, World(rank, ranks), start, end, order=order) for rank in range(ranks)]
            found += [joined(list(parts)) for parts in zip(*streams, strict=True)]
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)


def crops_of_each(parts: Iterable[Batch], steps: int = STEPS) -> dict[tuple[int, int], bytes]:
    """(epoch, sample) → all its views; an epoch has `steps` batches."""
    found = {}
    for batch in parts:
        render = DeviceRenderer(RECIPE, torch.device("cpu"))
        views = render(*batch.images) if batch.images else batch.views
        for place, sample in enumerate(batch.samples.tolist()):
            content = b"".join(group[:, place].contiguous().numpy().tobytes() for group in views.values())
            found[batch.step // steps, sample] = content
    return found


@pytest.mark.parametrize("renderer", ["cpu", "device", "pil"])
def test_stream__crops_depend_on_seed_epoch_and_sample_alone(dataset: Dataset, renderer: str) -> None:
    expected = crops_of_each(batches(dataset, renderer=renderer))
    assert len(set(expected.values())) == len(expected) == 2 * 84
    resumed = crops_of_each(batches(dataset, start=9, workers=2, renderer=renderer))
    assert len(resumed) == 5 * 12
    assert resumed.items() <= expected.items()
    order = dataclasses.replace(ORDER, batch_size=28, chunk_size=9, partitions=1)  # other batches in another order
    others = crops_of_each(batches(dataset, World(1, 2), end=6, order=order, renderer=renderer), steps=3)
    same = others.keys() & expected.keys()
    assert len(same) > 60
    assert all(others[key] == expected[key] for key in same)
    other_seed = crops_of_each(batches(dataset, order=dataclasses.replace(ORDER, seed=4), renderer=renderer))
    assert all(other_seed[key] != expected[key] for key in other_seed.keys() & expected.keys())


def test_stream__capped_and_weighted(dataset: Dataset) -> None:
    table = dataset.columns(["slide", "cohort"])
    slides, cohorts = (np.array(table[name].to_pylist()) for name in ("slide", "cohort"))
    names = np.char.add(cohorts, slides)
    assert max(np.unique(names[b.samples], return_counts=True)[1].max() for b in batches(dataset)) > 2
    assert max(np.unique(names[b.samples], return_counts=True)[1].max() for b in batches(dataset, order=CAPPED)) == 2
    drawn = np.concatenate([cohorts[batch.samples] for batch in batches(dataset, order=WEIGHTED)])
    assert (drawn == "beta").mean() == 0.75


def test_stream__a_sample_drawn_twice_an_epoch_is_cropped_anew(dataset: Dataset) -> None:
    order = dataclasses.replace(ORDER, weights={"alpha": 1.0, "beta": 9.0})
    seen: dict[int, torch.Tensor] = {}
    again = 0
    for batch in batches(dataset, end=STEPS, order=order):
        for place, sample in enumerate(batch.samples.tolist()):
            view = batch.views["global"][:, place]
            again += sample in seen
            assert not torch.equal(seen.get(sample, -view), view)
            seen[sample] = view
    assert again > 10


@pytest.mark.parametrize("start", [1, STEPS - 1, STEPS, STEPS + 3])
def test_stream__resuming_reads_and_looks_up_nothing_of_other_steps(
    dataset: Dataset, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    look_up = Dataset.samples
    monkeypatch.setattr(Dataset, "samples", lambda self, ids: asked.extend(ids.tolist()) or look_up(self, ids))  # type: ignore[func-returns-value]
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), start, None)
    raws = iter(source)
    samples = [next(raws)["__sample__"] for _ in range(ORDER.batch_size)]
    assert asked == samples
    assert source.store.bytes_read == sum(dataset[sample].size for sample in samples)


def test_stream__crops_differ_between_epochs_and_samples(reference: list[dict[str, Any]]) -> None:
    places = {(b["step"] // STEPS, s): (b, i) for b in reference for i, s in enumerate(b["samples"])}
    sample = next(s for (epoch, s) in places if epoch == 0 and (1, s) in places)
    (first, i), (second, j) = places[0, sample], places[1, sample]
    assert not torch.equal(first["global"][:, i], second["global"][:, j])
    assert not torch.equal(first["global"][0, i], first["global"][1, i])


def test_source__composes_with_webdataset_stages(dataset: Dataset) -> None:
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), 0, 1)
    pipeline = wds.DataPipeline(source, wds.decode("pil"), wds.to_tuple("__key__", "jpg"))
    keys, images = zip(*pipeline, strict=True)
    assert list(keys) == [dataset[int(raw["__sample__"])].key for raw in source]
    assert {image.size for image in images} == {(32, 32)}


def test_source__can_be_pickled(dataset: Dataset) -> None:
    source = PlanSource(dataset, make_plan(dataset, CAPPED), World(), 0, 2)
    expected = [raw["__key__"] for raw in source]
    assert [raw["__key__"] for raw in pickle.loads(pickle.dumps(source))] == expected  # noqa: S301


@pytest.fixture
def damaged(dataset_path: Path, tmp_path: Path) -> tuple[Dataset, int]:
    """A copy of the dataset in which one payload is overwritten, and that sample's id."""
    shutil.copytree(dataset_path, tmp_path / "damaged")
    dataset = Dataset.open(tmp_path / "damaged")
    victim = dataset[42]
    with open(dataset.shard_url(victim.shard), "r+b") as shard:
        shard.seek(victim.offset + victim.size // 2)
        shard.write(bytes(32))
    return dataset, 42


def test_damaged_sample__is_replaced_without_shifting_the_order(
    damaged: tuple[Dataset, int], reference: list[dict[str, Any]]
) -> None:
    dataset, victim = damaged
    found = list(batches(dataset))
    again = list(batches(dataset, start=0, workers=2))
    bad = [report for batch in found for report in batch.bad]
    assert {report.key for report in bad} == {dataset[victim].key}
    assert all("digest" in report.reason and report.url for report in bad)
    for expected, batch, other in zip(reference, found, again, strict=True):
        assert batch.samples.tolist() == expected["samples"]
        assert batch.keys == other.keys
        assert batch.bad == other.bad
        for i, sample in enumerate(expected["samples"]):
            intact = torch.equal(batch.views["global"][:, i], expected["global"][:, i])
            assert intact == (sample != victim)
            assert batch.keys[i] == (expected["keys"][i] if sample != victim else batch.bad[0].replaced_by)


def test_damaged_sample__batches_of_the_library_name_what_is_in_its_place(damaged: tuple[Dataset, int]) -> None:
    dataset, victim = damaged
    batch = next(batch for batch in Loader(dataset, ORDER, epochs=2) if batch.bad)
    assert batch.keys == [dataset[sample].key for sample in batch.ids.tolist()]
    assert batch.bad[0].key == dataset[victim].key
    assert batch.bad[0].replaced_by in batch.keys


def test_damaged_substitute__is_replaced_by_another(damaged: tuple[Dataset, int]) -> None:
    dataset, victim = damaged
    plan = make_plan(dataset, ORDER)
    first, second = (plan.substitute(victim, 0, 0, attempt) for attempt in range(2))
    assert len({victim, first, second}) == 3
    row = dataset[first]
    with open(dataset.shard_url(row.shard), "r+b") as shard:
        shard.seek(row.offset)
        shard.write(bytes(row.size))
    (raw,) = [raw for raw in PlanSource(dataset, plan, World(), 0, STEPS) if raw["__sample__"] == victim]
    assert [report.key for report in raw["__bad__"]] == [dataset[victim].key, row.key]
    assert raw["__key__"] == dataset[second].key


def test_undecodable_sample__is_replaced_where_digests_are_off(damaged: tuple[Dataset, int]) -> None:
    dataset, victim = damaged
    row = dataset[victim]
    with open(dataset.shard_url(row.shard), "r+b") as shard:
        shard.seek(row.offset)
        shard.write(bytes(row.size))
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), 0, STEPS, verify_digests=False)
    bad = [report for raw in stream(source, Decode(source)) for report in raw["__bad__"]]
    assert [report.key for report in bad] == [row.key]


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_shard__is_an_error_that_names_it(damaged: tuple[Dataset, int], workers: int) -> None:
    dataset, _ = damaged
    path = Path(dataset.shard_url(1))
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=rf"^\S+{path.name}: shard has \d+ bytes, the manifest says \d+") as caught:
        list(batches(dataset, workers=workers))
    assert "\n" not in str(caught.value)


class Die:
    """Stage: the loader process is killed at its first sample."""

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        for _ in samples:
            os.kill(os.getpid(), signal.SIGKILL)
            yield None


def test_loader_process__killed_is_an_error_in_one_line(dataset: Dataset) -> None:
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), 0, 2)
    with pytest.raises(DatasetError, match=r"a loader process died .*speed\.num_workers") as caught:
        list(load(stream(source, Die()), num_workers=1))
    assert "\n" not in str(caught.value)


class Stumble:
    """Stage: a bug."""

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        yield from (self._fail(sample) for sample in samples)

    def _fail(self, sample: dict[str, Any]) -> Any:
        raise RuntimeError(f"a real bug with {sample['__key__']}")


def test_loader_process__a_bug_is_not_hidden(dataset: Dataset) -> None:
    with pytest.raises(RuntimeError, match="a real bug"):
        list(load(stream(PlanSource(dataset, make_plan(dataset, ORDER), World(), 0, 2), Stumble()), num_workers=1))


def test_hopeless_dataset__ends_with_an_error(damaged: tuple[Dataset, int]) -> None:
    dataset, _ = damaged
    for shard in range(len(dataset.shard_counts)):
        path = Path(dataset.shard_url(shard))
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DatasetError, match="substitutes were bad too"):
        next(batches(dataset))


def test_source__world_that_does_not_divide_the_batch(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size is 12, expected a multiple of the 5 processes"):
        PlanSource(dataset, make_plan(dataset, ORDER), World(0, 5), 0, 1)


def test_epoch__covers_the_dataset(dataset: Dataset) -> None:
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), 0, STEPS)
    counts = np.bincount([raw["__sample__"] for raw in source], minlength=len(dataset))
    assert set(counts) <= {0, 1}
    assert counts.sum() == STEPS * ORDER.batch_size
    assert len(list(itertools.islice(source, 3))) == 3
