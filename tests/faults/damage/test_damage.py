"""Damage at random places of a dataset and of features: found by verification, and never read as something else.

What is told of damage that is chosen: tests/data/test_verify.py, tests/data/store/test_store.py.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import SAMPLES_SCHEMA, Manifest, read_manifest, write_manifest
from dinowds.data.store.store import LocalStore
from dinowds.data.subsets.selection import pack_mask
from dinowds.data.subsets.subset import Subset, mask_file, read_subset, write_subset
from dinowds.data.verify import verify_dataset
from dinowds.embed.patches.reader import read_features
from dinowds.errors import CheckpointError, DatasetError
from dinowds.files import sha256_of
from dinowds.remote.files import RemoteFiles
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.checkpoint import FORMAT_VERSION, load_checkpoint
from tests.faults.form import amount, tally

SEED = 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 labelled images in 3 shards, and a subset."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "source").mkdir()
    for index in range(24):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8 + index % 5, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        (folder / "source" / f"{index}.png").write_bytes(content.getvalue())
        (folder / "source" / f"{index}.cls").write_text(str(index % 3))
    build_dataset([folder / "source"], folder / "out", ShardOptions(max_count=8))
    mask = pack_mask(np.arange(24) < 7)
    of, of_mask = read_manifest(folder / "out").samples_sha256, hashlib.sha256(mask_file(mask)).hexdigest()
    write_subset(str(folder / "out"), Subset("few", {}, 7, 0, {"source": 7}, of, of_mask), mask, RemoteFiles())
    assert verify_dataset(folder / "out") == []
    return folder / "out"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(8 * len(content))
    return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def cut_at_a_block(content: bytes, draw: random.Random) -> bytes:
    """Where members begin and end."""
    return content[: 512 * draw.randrange(max(1, len(content) // 512))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(0, len(content), 4096)
    size = len(content[start : start + 4096])
    return content[:start] + bytes(size) + content[start + size :]


def doubled(content: bytes, draw: random.Random) -> bytes:
    start = 512 * draw.randrange(max(1, len(content) // 512))
    return content[:start] + content[start : start + 512] + content[start:]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, flipped, cut, cut_at_a_block, zeroed, doubled)


def payloads(folder: Path) -> dict[str, bytes]:
    """Key → bytes, of a dataset that is whole."""
    dataset = Dataset.open(folder)
    store = LocalStore(dataset)
    return {sample.key: bytes(store.read(sample)) for sample in dataset}


def check_reading(folder: Path, true: dict[str, bytes]) -> None:
    """Each sample that can be read is the one of its key."""
    try:
        dataset = Dataset.open(folder)
        samples = list(dataset)
    except DatasetError as error:
        is_one_line(error)
        return
    store = LocalStore(dataset)
    for sample in samples:
        try:
            found = bytes(store.read(sample))
        except DatasetError as error:
            is_one_line(error)
            continue
        assert found == true[sample.key], sample


def is_told(folder: Path) -> bool:
    try:
        return bool(verify_dataset(folder))
    except DatasetError as error:
        return is_one_line(error)


def is_one_line(error: DatasetError) -> bool:
    if len(lines := str(error).splitlines()) > 1:
        raise AssertionError(lines)
    return True


def is_harmless(folder: Path, path: Path, before: Manifest, subset: Subset) -> bool:
    """Whether a manifest or the description of a subset says the same as before, such as after a change of a space."""
    if path.name == "manifest.json":
        return read_manifest(folder) == before
    return path.name == "few.json" and read_subset(str(folder), "few", before, RemoteFiles()) == subset


def test_any_file__damage_is_told_and_never_read_as_something_else(whole: Path, copy: Path) -> None:
    true, before = payloads(whole), read_manifest(whole)
    subset = read_subset(str(whole), "few", before, RemoteFiles())
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(amount(150, 6000)):
        draw = random.Random(f"{SEED} {number}")
        path, how = draw.choice(files), draw.choice(DAMAGES)
        content = path.read_bytes()
        changed = how(content, draw)
        if changed == content:
            continue
        path.write_bytes(changed)
        case = f"seed {SEED} {number}: {how.__name__} in {path.name}"
        try:
            assert is_told(copy) or is_harmless(copy, path, before, subset), case
            check_reading(copy, true)
        except Exception as error:
            raise AssertionError(case) from error
        path.write_bytes(content)
        tally("damages of datasets found")
    assert verify_dataset(copy) == []


def test_shards__that_were_swapped_are_told(whole: Path, copy: Path) -> None:
    true = payloads(whole)
    first, second, third = sorted((copy / "shards").glob("*.tar"))
    for one, other in ((first, second), (second, third)):
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)
        assert is_told(copy)
        check_reading(copy, true)
        one.write_bytes(a)
        other.write_bytes(b)
        tally("damages of datasets found")


def rewrite(folder: Path, change: Callable[[list[list[dict[str, Any]]]], None]) -> None:
    """Change the rows of samples.parquet as one who knows the format would: all digests of the index are made anew."""
    with pq.ParquetFile(folder / "samples.parquet") as index:
        groups = [index.read_row_group(group).to_pylist() for group in range(index.num_row_groups)]
    change(groups)
    with pq.ParquetWriter(folder / "samples.parquet", SAMPLES_SCHEMA) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    path = folder / "samples.parquet"
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, samples_sha256=sha256_of(path), samples_footer_sha256=footer_sha256(path)))


def swap(*columns: str) -> Callable[[list[list[dict[str, Any]]]], None]:
    def change(groups: list[list[dict[str, Any]]]) -> None:
        first = groups[0][0]
        second = next(row for row in groups[0] if all(row[column] != first[column] for column in columns))
        for column in columns:
            first[column], second[column] = second[column], first[column]

    return change


@pytest.mark.parametrize(
    "columns",
    [("key",), ("offset", "size"), ("digest",), ("offset", "size", "digest"), ("label",), ("size",)],
)
def test_index__edited_with_all_its_digests_is_told(copy: Path, columns: tuple[str, ...]) -> None:
    shutil.rmtree(copy / "subsets")
    true = payloads(copy)
    rewrite(copy, swap(*columns))
    assert is_told(copy)
    if columns not in (("key",), ("offset", "size", "digest")):  # reading alone does not find these
        check_reading(copy, true)
    tally("damages of datasets found")


def test_samples__swapped_in_their_shard_with_its_digest_are_told(whole: Path, copy: Path) -> None:
    """Headers, payloads and the manifest's sha256 fit each other again."""
    true = payloads(whole)
    dataset = Dataset.open(copy)
    first, second = dataset[0], dataset[1]
    path = copy / dataset.manifest.shards[0].url
    content = bytearray(path.read_bytes())
    length = min(first.size, second.size)
    one, other = (content[s.offset : s.offset + length] for s in (first, second))
    content[first.offset : first.offset + length], content[second.offset : second.offset + length] = other, one
    path.write_bytes(content)
    manifest = read_manifest(copy)
    shard = replace(manifest.shards[0], sha256=hashlib.sha256(content).hexdigest())
    write_manifest(copy, replace(manifest, shards=(shard, *manifest.shards[1:])))
    assert is_told(copy)
    check_reading(copy, true)
    tally("damages of datasets found")


def test_features__damage_is_told_or_changes_nothing(tmp_path: Path) -> None:
    from dinowds.embed.patches.reader import features_schema

    schema = features_schema(16, pa.float32(), None)
    rows = np.random.default_rng(0)
    path = tmp_path / "features.parquet"
    count = 60
    columns: dict[str, Any] = {
        "key": [f"k{number}" for number in range(count)], "slide": [f"s{number // 9}" for number in range(count)],
        "x": np.arange(count), "y": np.arange(count), "label": np.arange(count) % 3, "cohort": ["a"] * count,
        "width": np.full(count, 32), "height": np.full(count, 32),
        "feature": list(rows.normal(size=(count, 16)).astype(np.float32)),
    }  # fmt: skip
    table = pa.Table.from_arrays([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)
    pq.write_table(table, path, write_page_checksum=True, row_group_size=20)
    content = path.read_bytes()

    def read() -> list[bytes]:
        features = read_features(path)
        tables = list(features.tables(["slide", "label", "feature"]))
        return [features.matrix(t).tobytes() + str(t.drop_columns(["feature"]).to_pydict()).encode() for t in tables]

    true = read()
    for number in range(amount(150, 6000)):
        draw = random.Random(f"{SEED} {number}")
        path.write_bytes(draw.choice((flipped, flipped, cut, zeroed))(content, draw))
        try:
            assert read() == true
        except DatasetError as error:
            is_one_line(error)
        except Exception as error:
            raise AssertionError(f"seed {SEED} {number}") from error
        tally("damages of features found")


def test_checkpoint__damage_is_told_or_changes_nothing(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "step-00000001.pt"
    torch.save({"format_version": FORMAT_VERSION, "model": {"w": torch.randn(50, 20), "b": torch.randn(7)}}, path)
    content, true = path.read_bytes(), load_checkpoint(path)["model"]
    for number in range(amount(150, 6000)):
        draw = random.Random(f"{SEED} {number}")
        path.write_bytes(draw.choice((flipped, flipped, cut, zeroed))(content, draw))
        try:
            found = load_checkpoint(path, verify=True)["model"]
            assert found.keys() == true.keys()
            assert all(torch.equal(found[name], true[name]) for name in true)
        except CheckpointError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {SEED} {number}") from error
        tally("damages of checkpoints found")
