"""Look-ups that all processes of a host share."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import dinowds.data.index.lookup
import dinowds.data.index.rowgroups
import dinowds.files
from dinowds.data.dataset import Dataset
from dinowds.data.index.lookup import Index
from dinowds.data.index.rowgroups import COLUMNS, RowGroups, footer_sha256
from dinowds.data.index.shardrows import slide_hash
from dinowds.data.index.unused import mark_used
from dinowds.data.manifest import read_manifest
from dinowds.errors import DatasetError
from dinowds.files import try_lock, waiting_lock
from tests.index_only import Row, accept_index, cut, random_rows, write_rows

SIZES = (40, 1, 7, 100, 23)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture
def rows() -> list[Row]:
    return random_rows(sum(SIZES))


@pytest.fixture
def folder(tmp_path: Path, rows: list[Row]) -> Path:
    return write_rows(tmp_path / "dataset", cut(rows, SIZES))


def cache_file(cache: Path) -> Path:
    (path,) = cache.glob("*.index")
    return path


def found(dataset: Dataset) -> list[tuple[Any, ...]]:
    samples = [dataset[i] for i in range(len(dataset))]
    return [(s.key, s.offset, s.size, s.ext, s.digest, s.label) for s in samples]


def expected(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("key", "offset", "size", "ext", "digest", "label")) for row in rows]


def refuse(*_: object) -> bytes:
    raise AssertionError("decoded again")


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none", "gzip", "lz4"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_row_groups__read_as_parquet_does(tmp_path: Path, compression: str, use_dictionary: bool) -> None:
    write_rows(tmp_path, cut(random_rows(60), (30, 1, 29)), compression, use_dictionary)
    groups = RowGroups.locate(tmp_path / "samples.parquet", "")
    assert groups.counts.tolist() == [30, 1, 29]
    with pq.ParquetFile(tmp_path / "samples.parquet") as file:
        for group in (2, 0, 1):
            whole = file.read_row_group(group).to_pylist()
            assert groups.read(group, COLUMNS).to_pylist() == whole
            part = groups.read(group, ("slide", "key"), ("slide",)).to_pylist()
            assert part == [{"slide": row["slide"], "key": row["key"]} for row in whole]


def test_index__is_what_was_written(cache: Path, folder: Path, rows: list[Row]) -> None:
    dataset = Dataset.open(folder)
    assert found(dataset) == expected(rows)
    ids = np.random.default_rng(0).permutation(len(rows))
    hashes = [slide_hash(rows[i]["cohort"], rows[i]["slide"]) for i in ids]
    assert dataset.slides_of(ids).tolist() == hashes
    assert 0 in hashes
    names = list(dataset.manifest.cohorts)
    shard = dataset.rows(3)
    mine = rows[48:148]
    assert [names[code] for code in shard.cohort] == [row["cohort"] for row in mine]
    assert shard.keys == [row["key"] for row in mine]
    assert shard.offset.tolist() == [row["offset"] for row in mine]
    assert shard.size.tolist() == [row["size"] for row in mine]
    assert shard.label.tolist() == [-1 if row["label"] is None else row["label"] for row in mine]
    assert not shard.offset.flags.writeable
    assert {path.suffix for path in cache.iterdir()} == {".index", ""}  # and the lock
    assert len(list(cache.iterdir())) == 2


def test_index__of_slides_by_name_and_cohort() -> None:
    hashes = [
        slide_hash("a", "b"),
        slide_hash("a", "c"),
        slide_hash("b", "b"),
        slide_hash("", "ab"),
        slide_hash("ab", ""),
    ]
    assert len(set(hashes)) == len(hashes)
    assert slide_hash("a", None) == 0


def test_index__later_processes_decode_nothing(folder: Path, rows: list[Row], monkeypatch: Any) -> None:
    assert found(Dataset.open(folder)) == expected(rows)
    monkeypatch.setattr(Index, "_decode", refuse)
    monkeypatch.setattr(RowGroups, "locate", refuse)
    assert found(Dataset.open(folder)) == expected(rows)


def test_index__every_changed_byte_is_noticed(cache: Path, folder: Path, rows: list[Row]) -> None:
    assert found(Dataset.open(folder)) == expected(rows)
    path = cache_file(cache)
    content = path.read_bytes()
    used = max(place for place, byte in enumerate(content) if byte) + 1
    random = np.random.default_rng(0)
    for position in [*range(64), *random.integers(0, used, 200).tolist()]:
        changed = bytearray(content)
        changed[position] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        assert found(Dataset.open(folder)) == expected(rows)
    for size in (0, 10, used // 3, used - 5):  # cut short
        path.write_bytes(content[:size])
        assert found(Dataset.open(folder)) == expected(rows)


def test_index__what_was_bad_is_made_again_once(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    len(found(Dataset.open(folder)))
    path = cache_file(cache)
    content = bytearray(path.read_bytes())
    place = content.index(b"0-000050")
    content[place] ^= 1
    path.write_bytes(content)
    decoded: list[int] = []
    decode = Index._decode

    def noted(index: Index, shard: int) -> bytes:
        decoded.append(shard)
        return decode(index, shard)

    monkeypatch.setattr(Index, "_decode", noted)
    for _ in range(2):
        len(found(Dataset.open(folder)))
    assert decoded == [3]


def test_index__grows_past_the_room_that_was_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinowds.data.index.lookup, "_KEY_BYTES", -56)
    monkeypatch.setattr(dinowds.data.index.lookup, "_GROWTH", 0)
    rows = [{**row, "key": row["key"] * 8} for row in random_rows(600)]
    folder = write_rows(tmp_path / "dataset", cut(rows, (100,) * 6))
    first, second = Dataset.open(folder), Dataset.open(folder)
    assert second[0].key == rows[0]["key"]
    assert found(first) == expected(rows)
    assert found(second) == expected(rows)


def test_index__another_file_of_the_same_name_gets_its_own(tmp_path: Path) -> None:
    before, after = random_rows(30, seed=1), random_rows(30, seed=2)
    folder = write_rows(tmp_path / "dataset", [before])
    assert found(Dataset.open(folder)) == expected(before)
    manifest = (folder / "manifest.json").read_bytes()
    write_rows(folder, [after])
    (folder / "manifest.json").write_bytes(manifest)  # as if it were of the same content
    accept_index(folder)
    assert found(Dataset.open(folder)) == expected(after)
    write_rows(folder, cut(after, (10, 20)))
    (folder / "manifest.json").write_bytes(manifest)
    accept_index(folder)
    with pytest.raises(DatasetError, match=r"has 30 rows in 2 row groups, but manifest\.json lists 30 samples in 1"):
        Dataset.open(folder)


def test_index__cleared_while_it_is_in_use(
    cache: Path, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, other = Dataset.open(folder), Dataset.open(folder)
    assert dataset[0].key == rows[0]["key"]
    cache_file(cache).unlink()
    assert found(dataset) == expected(rows)
    assert found(other) == expected(rows)
    monkeypatch.setattr(Index, "_decode", refuse)
    assert [Dataset.open(folder)[i].key for i in (60, 170)] == [rows[i]["key"] for i in (60, 170)]


def test_index__without_a_cache_folder(
    folder: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(dinowds.data.index.lookup, "_KEPT_PACKED", 2)
    dataset = Dataset.open(folder)
    with caplog.at_level(logging.WARNING):
        again: Dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        for _ in range(2):
            assert found(again) == expected(rows)
    assert [record.message for record in caplog.records if "DINOWDS_CACHE" in record.message] != []
    assert len(caplog.records) == 1


def test_index__replaced_by_one_of_the_same_size(tmp_path: Path, rows: list[Row]) -> None:
    folder = write_rows(tmp_path / "dataset", cut(rows, SIZES), "none", False)
    assert found(Dataset.open(folder)) == expected(rows)
    path, manifest = folder / "samples.parquet", (folder / "manifest.json").read_bytes()
    before = path.stat()
    other = [{**row, "digest": row["digest"][::-1]} for row in rows]
    write_rows(folder, cut(other, SIZES), "none", False)
    (folder / "manifest.json").write_bytes(manifest)
    accept_index(folder)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert found(Dataset.open(folder)) == expected(other)


def test_index__of_each_host_its_own(
    cache: Path, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert found(Dataset.open(folder)) == expected(rows)
    assert len(list(cache.glob("*.index"))) == 2


def test_index__cleared_just_before_a_shard_is_added(
    cache: Path, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(folder)
    path = cache_file(cache)
    others: list[Dataset] = []

    def cleared_first(locked: Path) -> AbstractContextManager[int]:
        if locked == path and not others:
            path.unlink()
            others.append(Dataset.open(folder))
            assert others[0][0].key == rows[0]["key"]
        return waiting_lock(locked)

    monkeypatch.setattr(dinowds.data.index.lookup, "waiting_lock", cleared_first)
    assert dataset[60].key == rows[60]["key"]
    assert found(others[0]) == expected(rows)
    assert found(dataset) == expected(rows)


def test_index__a_new_one_removes_what_nobody_used(cache: Path, folder: Path, rows: list[Row]) -> None:
    cache.mkdir(parents=True)
    days = {
        "old.index": 31,
        "new.index": 29,
        "old.parquet": 31,
        "old.npy": 31,
        ".a.index.1.tmp": 2,
        ".b.1.tmp": 0,
        ".c.1.tmp": 0,
    }
    days |= {"old.txt": 31, ".lock": 31}
    for name, age in days.items():
        (cache / name).write_bytes(b"")
        os.utime(cache / name, (time.time() - 86400 * age,) * 2)
    os.utime(cache / "old.parquet", (time.time(), time.time() - 86400 * 31))
    with (cache / ".c.1.tmp").open() as written:  # by a process that lives
        assert try_lock(written.fileno())
        assert found(Dataset.open(folder)) == expected(rows)
    left = {path.name for path in cache.iterdir()}
    assert set(days) - left == {"old.index", "old.npy", ".a.index.1.tmp", ".b.1.tmp"}


def test_index__temporaries_stay_for_a_day_where_there_are_no_locks(
    cache: Path, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinowds.files, "try_lock", lambda _: None)
    cache.mkdir(parents=True)
    for name, age in ((".a.index.1.tmp", 2), (".b.1.tmp", 0)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - 86400 * age,) * 2)
    assert found(Dataset.open(folder)) == expected(rows)
    assert {path.name for path in cache.glob("*.tmp")} == {".b.1.tmp"}


def test_index__in_use_is_marked(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[Path] = []
    monkeypatch.setattr(dinowds.data.index.lookup, "mark_used", marked.append)
    assert len(Dataset.open(folder)) == sum(SIZES)
    assert marked == [cache_file(cache)]  # by more than a look, which not every file system notes
    os.utime(marked[0], (0, 0))
    mark_used(marked[0])
    assert time.time() - marked[0].stat().st_atime < 3600
    assert marked[0].stat().st_mtime == 0
    mark_used(cache / "nowhere")


def test_row_groups__in_a_folder_that_looks_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"s3:/bucket/\xff")
    rows = random_rows(9)
    folder = write_rows(tmp_path / name, [rows])
    groups = RowGroups.locate(Path(name) / "samples.parquet", "")
    assert groups.read(0, ["key"])["key"].to_pylist() == [row["key"] for row in rows]
    table = Dataset(name, read_manifest(folder)).columns(["key"])
    assert table["key"].to_pylist() == [row["key"] for row in rows]


@pytest.mark.parametrize(("offset", "size"), [(1 << 42, 1), (0, (1 << 42) + 1), (5, (1 << 63) - 1), (1 << 62, 1 << 62)])
def test_index__payloads_lie_inside_their_shard(tmp_path: Path, offset: int, size: int) -> None:
    rows = random_rows(20)
    rows[3] |= {"offset": 1 << 41, "size": 1 << 41}
    rows[15] |= {"offset": offset, "size": size}
    dataset = Dataset.open(write_rows(tmp_path / "dataset", cut(rows, (10, 10))))
    assert dataset[3].size == 1 << 41
    with pytest.raises(DatasetError, match="row group 1 has an 'offset' and a 'size' that lie outside"):
        _ = dataset[10]


def test_index__of_a_manifest_with_other_sizes_is_another(folder: Path) -> None:
    assert found(Dataset.open(folder))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(1 << 42), "1000"))
    dataset = Dataset.open(folder)
    with pytest.raises(DatasetError, match="outside its shard of 1000 bytes"):
        _ = dataset[0]


@pytest.mark.parametrize("column", ["offset", "size", "label", "cohort"])
def test_index__a_row_that_cannot_be_names_its_row_group(tmp_path: Path, column: str) -> None:
    rows = random_rows(20)
    folder = write_rows(tmp_path / "dataset", cut(rows, (10, 10)))
    manifest = (folder / "manifest.json").read_bytes()
    rows[15][column] = "other" if column == "cohort" else -5
    write_rows(folder, cut(rows, (10, 10)))
    (folder / "manifest.json").write_bytes(manifest)
    accept_index(folder)
    dataset = Dataset.open(folder)
    assert dataset[0].key == rows[0]["key"]
    with pytest.raises(DatasetError, match=rf"samples\.parquet: row group 1 has .*'?({column}|other)"):
        _ = dataset[10]


def test_index__damaged_parquet_is_one_line(folder: Path) -> None:
    path = folder / "samples.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    dataset = Dataset.open(folder)
    with pytest.raises(DatasetError, match=r"samples\.parquet: row group 0 cannot be read") as caught:
        _ = dataset[0]
    assert "\n" not in str(caught.value)


def test_index__too_many_open_files_say_what_to_raise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = RowGroups.locate(folder / "samples.parquet", "")

    def full(path: Path) -> None:
        raise OSError(errno.EMFILE, f"Failed to open local file '{path}'")

    monkeypatch.setattr(dinowds.data.index.rowgroups, "open_file", full)
    with pytest.raises(DatasetError, match=r"row group 0 cannot be read \(.*\); raise the limit of open files"):
        groups.read(0, ["key"])


def test_index__a_changed_footer_is_noticed(folder: Path) -> None:
    """Before it is parsed: Arrow ends the process at some of them."""
    path = folder / "samples.parquet"
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little") + 8
    for place in range(len(content) - length, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(DatasetError, match=r"samples\.parquet: (its footer is not the one|is not a Parquet file)"):
            Dataset.open(folder)
        with pytest.raises(DatasetError, match=r"samples\.parquet: (its footer is not the one|is not a Parquet file)"):
            Dataset(str(folder), read_manifest(folder)).columns(["key"])


def test_index__of_a_manifest_without_the_footer_s_digest(folder: Path, rows: list[Row]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["dinowds"]["samples_footer_sha256"]
    path.write_text(json.dumps(content))
    assert found(Dataset.open(folder)) == expected(rows)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0\0\0\0PAR", b"\1\0\0\0PAR1", b"\xff\xff\xff\xffPAR1"])
def test_footer__of_what_does_not_end_like_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="does not end like one"):
        footer_sha256(tmp_path / "file")


def test_index__processes_and_threads_at_once(folder: Path, rows: list[Row]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map_async(found, [Dataset.open(folder)] * 4)
        shared, mine = Dataset.open(folder), []
        threads = [threading.Thread(target=lambda: mine.append(found(shared))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [*results.get(60), *mine] == [expected(rows)] * 7


_LOOK_UPS = """
import sys
from dinowds.data.dataset import Dataset
print("ready", flush=True)
while True:
    dataset = Dataset.open(sys.argv[1])
    for sample in range(0, len(dataset), 5):
        dataset[sample]
    (__import__("pathlib").Path(sys.argv[2]) / "index" / dataset.index._file_name()).unlink()
"""


def test_index__survives_kills(cache: Path, folder: Path, rows: list[Row]) -> None:
    random = np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOK_UPS, str(folder), str(cache.parent)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(float(random.random()) / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert found(Dataset.open(folder)) == expected(rows)
    assert all(path.suffix in (".index", ".tmp") or path.name == ".lock" for path in cache.iterdir())
