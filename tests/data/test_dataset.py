"""Opening a dataset."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import dinowds.data.store.fetch
from dinowds.data.dataset import Dataset
from dinowds.data.manifest import UNFINISHED_NAME, Manifest, read_manifest
from dinowds.data.store.fetch import fetch
from dinowds.data.store.store import LocalStore
from dinowds.errors import DatasetError, SampleError, StorageError
from dinowds.remote.files import RemoteFiles, RetryOptions
from tests.index_only import accept_index, cut, random_rows, write_rows
from tests.servers import Fault, http_server
from tests.support import jpeg_patch

FAST = RemoteFiles(RetryOptions(tries=3, first_wait_s=0.001, longest_wait_s=0.01, timeout_s=5))


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


def test_by_shard__each_shard_once_with_all_its_samples(dataset: Dataset) -> None:
    table = pq.read_table(dataset.index_path, columns=["shard"])
    shard_of = np.array(table["shard"].to_pylist())
    assert dataset.first_ids.tolist() == [*(int((shard_of < shard).sum()) for shard in range(shard_of.max() + 1)), 90]
    ids = np.random.default_rng(0).integers(0, 90, 200)  # some more than once
    groups = list(dataset.by_shard(ids))
    assert sorted(np.concatenate([places for _, places, _ in groups]).tolist()) == list(range(200))
    assert [shard for shard, *_ in groups] == sorted({*shard_of[ids].tolist()})
    for shard, places, positions in groups:
        assert (shard_of[ids[places]] == shard).all()
        assert np.array_equal(dataset.first_ids[shard] + positions, ids[places])
    assert list(dataset.by_shard(ids[:0])) == []
    for outside in (-1, 90):
        with pytest.raises(IndexError, match=f"{outside}.* of a dataset of 90"):
            next(dataset.by_shard(np.array([3, outside])))


def test_store__gives_the_source_s_bytes(dataset: Dataset) -> None:
    store = LocalStore(dataset)
    originals = {jpeg_patch(seed) for seed in range(60)} | {jpeg_patch(1000 + seed) for seed in range(30)}
    assert {store.read(dataset[sample]) for sample in range(len(dataset))} == originals


def test_store__wrong_bytes_name_shard_and_key(copy: Path) -> None:
    dataset = Dataset.open(copy)
    sample = dataset[30]
    with open(Path(dataset.shard_url(sample.shard)), "r+b") as shard:
        shard.seek(sample.offset)
        shard.write(b"\0")
    with pytest.raises(SampleError, match=rf"dataset-\d+\.tar: {sample.key}\.jpg: the bytes do not match"):
        LocalStore(dataset).read(sample)
    assert LocalStore(dataset, verify_digests=False).read(sample)[0] == 0


def test_store__missing_shard_is_named(copy: Path) -> None:
    dataset = Dataset.open(copy)
    Path(dataset.shard_url(2)).unlink()
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
    accept_index(copy)
    with pytest.raises(DatasetError, match=r"has 89 rows in 1 row groups, but manifest\.json lists 90"):
        Dataset.open(copy)


def test_open__index_without_a_column(copy: Path) -> None:
    table = pq.read_table(copy / "samples.parquet")
    pq.write_table(table.drop_columns(["digest"]), copy / "samples.parquet")
    accept_index(copy)
    with pytest.raises(DatasetError, match="has no such column, expected a column 'digest'"):
        Dataset.open(copy)


def test_open__index_that_is_no_parquet(copy: Path) -> None:
    (copy / "samples.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DatasetError, match=r"samples\.parquet: is not a Parquet file"):
        Dataset.open(copy)


def test_dataset__iterates_over_its_samples(dataset: Dataset) -> None:
    assert [sample.id for sample in dataset] == list(range(90))


@pytest.mark.parametrize("sample", [-1, 90, 10**12])
def test_dataset__no_such_sample(dataset: Dataset, sample: int) -> None:
    with pytest.raises(IndexError, match="of a dataset of 90"):
        _ = dataset[sample]
    with pytest.raises(IndexError, match="of a dataset of 90"):
        dataset.slides_of(np.array([0, sample]))


def test_dataset__slides_of_no_samples(dataset: Dataset) -> None:
    assert dataset.slides_of(np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("sizes", [(1,) * 30, (7, 8, 15), (3, 1, 26), (30,)])
@pytest.mark.parametrize("at_least", [1, 9, 1000])
def test_dataset__cohort_masks_are_a_partition(tmp_path: Path, sizes: tuple[int, ...], at_least: int) -> None:
    rows = random_rows(30)
    dataset = Dataset.open(write_rows(tmp_path, cut(rows, sizes)))
    batches = partial(dataset.batches, at_least=at_least)
    dataset.batches = batches  # type: ignore[method-assign]
    masks = dataset.cohort_masks()
    assert list(masks) == ["cohort0", "cohort1", "cohort2"]
    for name, mask in masks.items():
        assert (dataset.selection & mask).all_ids().tolist() == [i for i in range(30) if rows[i]["cohort"] == name]
        assert len(mask) == 4


def test_dataset__batches_are_the_rows(tmp_path: Path) -> None:
    rows = random_rows(60)
    dataset = Dataset.open(write_rows(tmp_path, cut(rows, (20, 5, 30, 5))))
    found = list(dataset.batches(["slide", "key"], at_least=22))
    assert [(first, len(table)) for first, table in found] == [(0, 25), (25, 30), (55, 5)]
    expected = [{"slide": row["slide"], "key": row["key"]} for row in rows]
    assert [row for _, table in found for row in table.to_pylist()] == expected


def test_dataset__pickle_does_not_grow_with_samples(tmp_path: Path) -> None:
    small = Dataset.open(write_rows(tmp_path / "small", [random_rows(10)]))
    large = Dataset.open(write_rows(tmp_path / "large", [random_rows(2000)]))
    _ = large[1999], large.selection, large.slides_of(np.arange(2000))
    assert len(pickle.dumps(large)) <= len(pickle.dumps(small)) + 20


def test_remote__is_read_as_a_local_one(dataset_path: Path, dataset: Dataset) -> None:
    with http_server(dataset_path.parent) as server:
        url = f"{server.url}/{dataset_path.name}"
        remote = Dataset.open(f"{url}/manifest.json", FAST)
        assert (remote.url, len(remote), remote.fingerprint) == (url, 90, dataset.fingerprint)
        assert list(remote) == list(dataset)
        assert remote.shard_url(1) == f"{url}/{dataset.manifest.shards[1].url}"
        fetched = [name for name, *_ in server.ranges]
        again: Dataset = pickle.loads(pickle.dumps(remote))  # noqa: S301
        assert again[80] == dataset[80]
        assert [name for name, *_ in server.ranges] == fetched  # the host has its copy


@pytest.mark.parametrize("faults", [(), ("503", "cut", "close")])
def test_remote__index_is_fetched_once_by_many(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: tuple[Fault, ...]
) -> None:
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dinowds.data.store.fetch, "_PIECE", 1000)
    path = dataset_path / "samples.parquet"
    with http_server(dataset_path.parent, faults, every=4) as server:
        url, barrier = f"{server.url}/{dataset_path.name}/samples.parquet", Barrier(4)

        def fetched(_: int) -> Path:
            barrier.wait()
            return fetch(FAST, url, read_manifest(dataset_path).samples_sha256, ".parquet")

        with ThreadPoolExecutor(4) as pool:
            (found,) = set(pool.map(fetched, range(4)))
        pieces = [range_[1:] for range_ in server.ranges if range_[0] == path.name and range_[1:] != (0, 1)]
        size = path.stat().st_size
        assert set(pieces) == {(start, min(start + 1000, size)) for start in range(0, size, 1000)}
        assert faults or len(pieces) == len(set(pieces))
    assert found.read_bytes() == path.read_bytes()


def test_remote__a_copy_is_marked_when_used_and_a_new_one_removes_old_ones(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))
    old = tmp_path / "cache" / "index" / "old.parquet"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    sha256 = read_manifest(dataset_path).samples_sha256
    with http_server(dataset_path) as server:
        path = fetch(FAST, f"{server.url}/samples.parquet", sha256, ".parquet")
    assert not old.exists()
    os.utime(path, (0, 0))
    assert fetch(FAST, "http://127.0.0.1:1/samples.parquet", sha256, ".parquet") == path
    assert (path.stat().st_atime > 0, path.stat().st_mtime) == (True, 0)


def test_remote__index_that_is_not_the_manifest_s(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))
    content = bytearray((copy / "samples.parquet").read_bytes())
    content[100] ^= 1
    (copy / "samples.parquet").write_bytes(content)
    with http_server(copy.parent) as server:
        with pytest.raises(DatasetError, match=r"samples\.parquet: its sha256 is \w{64}, expected \w{64}; copy"):
            Dataset.open(f"{server.url}/copy", FAST)
        assert not list((tmp_path / "cache").rglob("*.parquet*tmp"))
        (copy / "samples.parquet").unlink()
        with pytest.raises(DatasetError, match=r"samples\.parquet: no such file, though there is a manifest"):
            Dataset.open(f"{server.url}/copy", FAST)
        edit_manifest(copy, {"samples_sha256": "../../etc/passwd"})
        with pytest.raises(DatasetError, match="expected 64 hex digits"):
            Dataset.open(f"{server.url}/copy", FAST)


def test_remote__that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset_path: Path) -> None:
    with http_server(tmp_path) as server:
        for location in (f"{server.url}/nowhere", f"{server.url}/nowhere:a"):
            with pytest.raises(DatasetError, match=r"/nowhere: no such dataset, or an unfinished one"):
                Dataset.open(location, FAST)
    with http_server(tmp_path, faults=("503",), every=1) as server, pytest.raises(StorageError, match="after 3 tries"):
        Dataset.open(f"{server.url}/nowhere", FAST)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "file"))
    with (
        http_server(dataset_path.parent) as server,
        pytest.raises(DatasetError, match=r"file/index: cannot be written .*set DINOWDS_CACHE"),
    ):
        Dataset.open(f"{server.url}/{dataset_path.name}", FAST)
