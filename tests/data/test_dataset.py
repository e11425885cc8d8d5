"""Opening a dataset."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import UNFINISHED_NAME, Manifest, read_manifest
from dinowds.data.store import LocalStore
from dinowds.errors import DatasetError, SampleError
from tests.support import jpeg_patch


@pytest.fixture
def copy(dataset_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset_path, tmp_path / "copy")
    return tmp_path / "copy"


def edit_manifest(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["dinowds"].update(change)
    path.write_text(json.dumps(content))


def test_dataset__looks_up_every_sample(dataset: Dataset) -> None:
    table = pq.read_table(dataset.index_path)
    assert len(dataset) == table.num_rows == 90
    for sample, row in enumerate(table.to_pylist()):
        found = dataset[sample]
        assert (found.id, found.key, found.shard, found.offset, found.size, found.ext, found.digest, found.label) == (
            sample, *(row[name] for name in ("key", "shard", "offset", "size", "ext", "digest", "label")),
        )  # fmt: skip


def test_store__gives_the_source_s_bytes(dataset: Dataset) -> None:
    store = LocalStore(dataset)
    originals = {jpeg_patch(seed) for seed in range(60)} | {jpeg_patch(1000 + seed) for seed in range(30)}
    assert {store.read(dataset[sample]) for sample in range(len(dataset))} == originals


def test_store__wrong_bytes_name_shard_and_key(copy: Path) -> None:
    dataset = Dataset.open(copy)
    sample = dataset[30]
    with open(dataset.shard_path(sample.shard), "r+b") as shard:
        shard.seek(sample.offset)
        shard.write(b"\0")
    with pytest.raises(SampleError, match=rf"dataset-\d+\.tar: {sample.key}\.jpg: the bytes do not match"):
        LocalStore(dataset).read(sample)
    assert LocalStore(dataset, verify_digests=False).read(sample)[0] == 0


def test_store__missing_shard_is_named(copy: Path) -> None:
    dataset = Dataset.open(copy)
    dataset.shard_path(2).unlink()
    with pytest.raises(DatasetError, match=r"dataset-000002\.tar: shard cannot be opened"):
        LocalStore(dataset).read(dataset[60])


def test_dataset__pickled_reads_the_same(dataset: Dataset) -> None:
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert [again[i] for i in (0, 44, 89)] == [dataset[i] for i in (0, 44, 89)]


def test_open__accepts_the_manifest_s_path(dataset_path: Path) -> None:
    assert len(Dataset.open(dataset_path / "manifest.json")) == 90


def test_manifest__round_trip(dataset_path: Path) -> None:
    manifest = read_manifest(dataset_path)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version is 99, this dinowds reads 1"),
        ({"kind": "video"}, "kind is 'video'"),
        ({"shard_sha256": []}, "manifest.json: "),
        ({"cohorts": [1]}, "manifest.json: "),
    ],
)
def test_open__manifest_of_another_kind(copy: Path, change: dict[str, Any], message: str) -> None:
    edit_manifest(copy, change)
    with pytest.raises(DatasetError) as caught:
        Dataset.open(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"dinowds": 1}'])
def test_open__manifest_that_is_no_manifest(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Dataset.open(copy)


def test_open__unfinished(tmp_path: Path) -> None:
    (tmp_path / UNFINISHED_NAME).mkdir()
    with pytest.raises(DatasetError, match="unfinished dataset; run the same"):
        Dataset.open(tmp_path)


def test_open__index_of_another_dataset(copy: Path) -> None:
    table = pq.read_table(copy / "samples.parquet")
    pq.write_table(table.slice(1), copy / "samples.parquet")
    with pytest.raises(DatasetError, match=r"has 89 rows in 1 row groups, but manifest\.json lists 90"):
        Dataset.open(copy)


def test_open__index_without_a_column(copy: Path) -> None:
    table = pq.read_table(copy / "samples.parquet")
    pq.write_table(table.drop_columns(["digest"]), copy / "samples.parquet")
    with pytest.raises(DatasetError, match="has no such column, expected a column 'digest'"):
        Dataset.open(copy)


def test_open__index_that_is_no_parquet(copy: Path) -> None:
    (copy / "samples.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DatasetError, match=r"samples\.parquet: is not a Parquet file"):
        Dataset.open(copy)
