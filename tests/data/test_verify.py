"""Each damage of a dataset is found, and named by shard and key."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinowds.data import verify
from dinowds.data.manifest import SAMPLES_SCHEMA, read_manifest
from dinowds.data.store import sequential
from dinowds.data.subsets.selection import pack_mask
from dinowds.data.subsets.subset import Subset, write_subset
from dinowds.data.verify import CHANGED, Damage, verify_dataset
from dinowds.errors import DatasetError, StorageError
from dinowds.remote.files import RemoteFiles
from dinowds.shard.build import ShardOptions, build_dataset
from tests.index_only import accept_index
from tests.servers import S3Server, http_server
from tests.support import signed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 labelled images in 3 shards."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "source").mkdir()
    for index in range(30):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        (folder / "source" / f"{index}.png").write_bytes(content.getvalue())
        (folder / "source" / f"{index}.cls").write_text(str(index % 3))
    build_dataset([folder / "source"], folder / "out", ShardOptions(max_count=10))
    return folder / "out"


@pytest.fixture
def dataset_copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "samples.parquet").to_pylist()
    return rows


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_verify__whole_dataset_has_no_damage_and_reports_all_bytes(whole: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_dataset(whole, lambda done, total: seen.append((done, total))) == []
    total = sum(path.stat().st_size for path in (whole / "shards").iterdir())
    assert len(seen) == 3
    assert seen[-1] == (total, total)


@pytest.mark.parametrize(
    ("position", "problem"),
    [
        (lambda row: row["offset"] + row["size"] // 2, "its bytes are not those that were written"),
        (lambda row: row["offset"] - 512, "its header is damaged"),
        (lambda row: row["offset"] + -(-row["size"] // 512) * 512 + 3, "its label: its header is damaged"),
        (lambda row: row["offset"] + -(-row["size"] // 512) * 512 + 512, "its label is not the one that was written"),
    ],
)
def test_verify__each_changed_sample_is_named(
    dataset_copy: Path, position: Callable[[dict[str, Any]], int], problem: str
) -> None:
    rows = rows_of(dataset_copy)
    changed = [rows[0], rows[9], rows[25]]
    for row in changed:
        change_byte(dataset_copy / f"shards/out-{row['shard']:06d}.tar", position(row))
    expected = [Damage(f"shards/out-{row['shard']:06d}.tar", row["key"], problem) for row in changed]
    assert verify_dataset(dataset_copy) == expected


def test_verify__every_single_byte_of_a_shard_counts(dataset_copy: Path) -> None:
    path = dataset_copy / "shards" / "out-000002.tar"
    size = path.stat().st_size
    for position in np.random.default_rng(0).integers(0, size, 60).tolist():
        change_byte(path, position)
        damages = verify_dataset(dataset_copy)
        assert [damage.shard for damage in damages] == ["shards/out-000002.tar"], position
        change_byte(path, position)
    assert verify_dataset(dataset_copy) == []


def test_verify__padding_is_told_from_samples(dataset_copy: Path) -> None:
    path = dataset_copy / "shards" / "out-000000.tar"
    change_byte(path, path.stat().st_size - 1)
    problem = "its sha256 is not the manifest's, though all its samples are right"
    assert verify_dataset(dataset_copy) == [Damage("shards/out-000000.tar", None, problem)]


def test_verify__swapped_samples_are_both_named(dataset_copy: Path) -> None:
    path = dataset_copy / "shards" / "out-000000.tar"
    first, second = (row["offset"] - 512 for row in rows_of(dataset_copy)[:2])
    content = bytearray(path.read_bytes())
    content[first : first + 512], content[second : second + 512] = (
        content[second : second + 512],
        content[first : first + 512],
    )
    path.write_bytes(content)
    damages = verify_dataset(dataset_copy)
    assert [damage.key for damage in damages] == [row["key"] for row in rows_of(dataset_copy)[:2]]
    assert all("its member is called" in damage.problem for damage in damages)


def test_verify__cut_and_missing_shards_are_named_with_what_they_lack(dataset_copy: Path) -> None:
    rows = [row for row in rows_of(dataset_copy) if row["shard"] == 1]
    os.truncate(dataset_copy / "shards/out-000001.tar", rows[6]["offset"] + 3)
    (dataset_copy / "shards/out-000002.tar").unlink()
    damages = verify_dataset(dataset_copy)
    assert "bytes, the manifest says" in damages[0].problem
    assert [damage.key for damage in damages[1:-1]] == [row["key"] for row in rows[6:]]
    assert damages[-1] == Damage("shards/out-000002.tar", None, "cannot be read (No such file or directory)")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("key", "other", "expected 'other"),
        ("size", 1, "its header says"),
        ("offset", 2**50, "cannot be right"),
        ("size", -5, "cannot be right"),
        ("label", 9, "label is not the one"),
        ("digest", b"x" * 16, "its bytes are not"),
        ("ext", "jpg", "expected"),
        ("shard", 2, "has rows of another shard"),
        ("cohort", "other", "counts of cohorts"),
    ],
)
def test_verify__changed_index_is_found_twice(dataset_copy: Path, column: str, value: object, problem: str) -> None:
    index = pq.ParquetFile(dataset_copy / "samples.parquet")
    groups = [index.read_row_group(group).to_pylist() for group in range(3)]
    index.close()
    groups[0][4][column] = value
    with pq.ParquetWriter(dataset_copy / "samples.parquet", SAMPLES_SCHEMA) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    accept_index(dataset_copy)
    damages = verify_dataset(dataset_copy)
    assert damages[0] == Damage("samples.parquet", None, "its sha256 is not the manifest's")
    assert any(problem in damage.problem for damage in damages[1:])


def test_verify__index_that_cannot_be_read_does_not_hide_shards(dataset_copy: Path) -> None:
    (dataset_copy / "samples.parquet").write_bytes(b"no parquet")
    path = dataset_copy / "shards" / "out-000001.tar"
    change_byte(path, 700)
    damages = verify_dataset(dataset_copy)
    assert [damage.shard for damage in damages if "sha256" in damage.problem] == [
        "samples.parquet",
        "shards/out-000001.tar",
    ]
    assert sum("were not compared" in damage.problem for damage in damages) == 3


def test_verify__lost_or_added_row_groups_are_found(dataset_copy: Path) -> None:
    index = pq.ParquetFile(dataset_copy / "samples.parquet")
    groups = [index.read_row_group(group) for group in range(3)]
    index.close()
    for kept, problem in ((groups[:2], "has no rows"), ([*groups, groups[0]], "has row groups of shards")):
        with pq.ParquetWriter(dataset_copy / "samples.parquet", SAMPLES_SCHEMA) as writer:
            for rows in kept:
                writer.write_table(rows)
        accept_index(dataset_copy)
        assert any(problem in damage.problem for damage in verify_dataset(dataset_copy)[1:])


def test_verify__counts_of_the_manifest_are_compared(dataset_copy: Path) -> None:
    path = dataset_copy / "manifest.json"
    content = json.loads(path.read_text())
    content["shardlist"][1]["nsamples"] = 11
    content["dinowds"]["cohorts"] = {"source": 29}
    path.write_text(json.dumps(signed(content)))
    problems = [damage.problem for damage in verify_dataset(dataset_copy)]
    assert problems == ["has 10 rows in samples.parquet, the manifest says 11"]
    content["shardlist"][1]["nsamples"] = 10
    path.write_text(json.dumps(signed(content)))
    assert [damage.shard for damage in verify_dataset(dataset_copy)] == ["manifest.json"]


def test_verify__manifest_and_description_of_a_subset_that_were_changed_are_told(dataset_copy: Path) -> None:
    """Also where nothing else repeats what they say, such as the names of labels. Older ones have no sha256."""
    path = dataset_copy / "manifest.json"
    whole = json.loads(path.read_text())
    for values in ({"label_names": ["a"]}, {"seed": 1}, {"metadata": {"of": "others"}}, {"sha256": ""}):
        path.write_text(json.dumps({**whole, "dinowds": {**whole["dinowds"], **values}}))
        (damage,) = verify_dataset(dataset_copy)
        assert damage == Damage("manifest.json", None, CHANGED)
    path.write_text(json.dumps(whole))
    description = add_subset(dataset_copy).with_suffix(".json")
    about = json.loads(description.read_text())
    description.write_text(json.dumps({**about, "slides": 3}))
    assert verify_dataset(dataset_copy) == [Damage("subsets/few", None, CHANGED)]
    description.write_text(json.dumps({key: value for key, value in about.items() if key != "sha256"}))
    del whole["dinowds"]["sha256"]
    path.write_text(json.dumps(whole))
    assert verify_dataset(dataset_copy) == []


def test_verify__shards_may_be_moved(dataset_copy: Path) -> None:
    path = dataset_copy / "manifest.json"
    content = json.loads(path.read_text())
    place = dataset_copy.with_name("elsewhere.tar")
    (dataset_copy / content["shardlist"][0]["url"]).rename(place)
    content["shardlist"][0]["url"] = str(place)
    path.write_text(json.dumps(content))
    assert verify_dataset(dataset_copy) == []


def test_verify__files_that_the_manifest_does_not_list_are_named(dataset_copy: Path) -> None:
    (dataset_copy / "shards" / "out-000009.tar").write_bytes(b"x")
    (dataset_copy / "quarantine.jsonl").write_text('{"source": "s", "member": "m", "reason": "r"}\n')
    assert verify_dataset(dataset_copy) == [
        Damage("shards/out-000009.tar", None, "the manifest does not list this file"),
        Damage("quarantine.jsonl", None, "its counts of reasons are not the manifest's"),
    ]
    (dataset_copy / "shards" / "out-000009.tar").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_MOST_LINES", 10)
        (damage,) = verify_dataset(dataset_copy)
        assert "expected at most 10" in damage.problem
    for content in (b"[]\n", b"{\n", b"\xff\n", b"[" * 200_000):
        (dataset_copy / "quarantine.jsonl").write_bytes(content)
        (damage,) = verify_dataset(dataset_copy)
        assert damage.problem.startswith("cannot be read (")


def add_subset(folder: Path) -> Path:
    """The first 7 of 30 samples as 'few'; the path of its files without their ends."""
    mask = pack_mask(np.arange(30) < 7)
    subset = Subset("few", {}, 7, 0, {"source": 7}, read_manifest(folder).samples_sha256, file_sha256="")
    assert write_subset(str(folder), subset, mask, RemoteFiles())
    stem = folder / "subsets" / "few"
    note(stem, file_sha256=hashlib.sha256(stem.with_suffix(".npy").read_bytes()).hexdigest())
    return stem


def note(stem: Path, **values: object) -> None:
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(signed({**json.loads(path.read_text()), **values})))


def test_verify__subsets_are_compared_with_their_dataset_and_their_masks(dataset_copy: Path) -> None:
    stem = add_subset(dataset_copy)
    assert verify_dataset(dataset_copy) == []
    assert verify_dataset(f"{dataset_copy}:few") == []
    (missing,) = verify_dataset(f"{dataset_copy}:other")
    assert "has no subset 'other'" in missing.problem
    whole = stem.with_suffix(".json").read_text()
    mask = stem.with_suffix(".npy").read_bytes()

    def problem() -> str:
        (damage,) = verify_dataset(dataset_copy)
        assert damage.shard == "subsets/few"
        return damage.problem

    note(stem, samples=8)
    assert problem() == "its mask has 7 samples, its description says 8"
    stem.with_suffix(".json").write_text(whole)
    note(stem, samples_sha256="0" * 64)
    assert "is a subset of another" in problem()
    stem.with_suffix(".json").write_text(whole)
    change_byte(stem.with_suffix(".npy"), -1)
    assert problem() == "the sha256 of its mask is not the one of its description"
    for content, words in ((mask[:-1], "its mask has"), (b"", "its mask has"), (b"PK" + mask[2:], "not in the form")):
        stem.with_suffix(".npy").write_bytes(content)
        note(stem, file_sha256=hashlib.sha256(content).hexdigest())
        assert words in problem()
    stem.with_suffix(".npy").unlink()
    assert "No such file" in problem()
    stem.with_suffix(".json").write_text("[" * 100_000)
    assert "is not a subset of dinowds" in problem()


def upload(files: RemoteFiles, folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.upload(path, f"{url}/{path.relative_to(folder)}")


@pytest.mark.parametrize("block", [700, 8 << 20])
def test_verify__remote_dataset_as_a_local_one(
    dataset_copy: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Blocks are smaller than samples and than reads, or larger than shards."""
    monkeypatch.setattr(sequential, "_BLOCK", block)
    add_subset(dataset_copy)
    url, files = f"{s3.url}/deep/data", RemoteFiles()
    upload(files, dataset_copy, url)
    seen: list[tuple[int, int]] = []
    assert verify_dataset(url, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == 2 * (read_manifest(url).num_bytes,)
    row = rows_of(dataset_copy)[12]
    change_byte(dataset_copy / "shards" / "out-000001.tar", row["offset"] + 20)
    os.truncate(dataset_copy / "shards" / "out-000002.tar", 5000)
    (dataset_copy / "shards" / "more.tar").write_bytes(b"")
    change_byte(dataset_copy / "subsets" / "few.npy", -1)
    upload(files, dataset_copy, url)
    damages = verify_dataset(url)
    assert damages == verify_dataset(dataset_copy)
    assert len({damage.shard for damage in damages}) == 4
    files.remove(f"{url}/shards/out-000000.tar")
    files.remove(f"{url}/samples.parquet")
    problems = {damage.shard: damage.problem for damage in verify_dataset(url) if damage.key is None}
    assert "cannot be read" in problems["shards/out-000000.tar"]
    assert "cannot be read" in problems["samples.parquet"]
    files.remove(f"{url}/manifest.json")
    with pytest.raises(DatasetError, match=r"no such dataset, or an unfinished one"):
        verify_dataset(url)


def test_verify__over_http_and_of_local_index_with_remote_shards(whole: Path, tmp_path: Path) -> None:
    """A server that lists nothing; and URLs in the manifest that are not relative."""
    with http_server(whole) as server:
        assert verify_dataset(server.url) == []
        for name in ("samples.parquet", "quarantine.jsonl"):
            shutil.copy(whole / name, tmp_path / name)
        content = json.loads((whole / "manifest.json").read_text())
        urls = [f"{server.url}/shards/out-000000.tar", str(whole / "shards" / "out-000001.tar"), "shards/mine.tar"]
        shutil.copytree(whole / "shards", tmp_path / "shards")
        (tmp_path / "shards" / "out-000002.tar").rename(tmp_path / "shards" / "mine.tar")
        for name in ("out-000000.tar", "out-000001.tar"):
            (tmp_path / "shards" / name).unlink()
        for entry, url in zip(content["shardlist"], urls, strict=True):
            entry["url"] = url
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert verify_dataset(tmp_path) == []
        change_byte(tmp_path / "shards" / "mine.tar", 700)
        assert [damage.shard for damage in verify_dataset(tmp_path)] == ["shards/mine.tar"]


def test_verify__errors_keep_secrets_and_pipes_are_not_waited_for(dataset_copy: Path, tmp_path: Path) -> None:
    path = dataset_copy / "manifest.json"
    content = json.loads(path.read_text())
    with http_server(dataset_copy) as server:
        root = server.url.replace("//", "//user:SECRET@")
        content["shardlist"][0]["url"] = f"{root}/nowhere.tar?sig=SECRET"
        os.mkfifo(tmp_path / "pipe")
        content["shardlist"][1]["url"] = str(tmp_path / "pipe")
        path.write_text(json.dumps(content))
        damages = verify_dataset(dataset_copy)
        assert "SECRET" not in str(damages)
        assert damages[0].shard == f"{server.url}/nowhere.tar"
        assert Damage(str(tmp_path / "pipe"), None, "cannot be read (Not a regular file)") in damages
        with pytest.raises(DatasetError, match=f"{server.url}: its manifest names .*pipe"):  # no file of this host
            verify_dataset(root)


def test_verify__server_that_does_not_answer_is_no_damage(whole: Path) -> None:
    with http_server(whole, faults=("403",), every=4) as server, pytest.raises(StorageError, match="403"):
        verify_dataset(server.url)
