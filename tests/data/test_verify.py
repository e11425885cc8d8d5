"""Each damage of a dataset is found, and named by shard and key."""

from __future__ import annotations

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

from dinowds.data.manifest import SAMPLES_SCHEMA
from dinowds.data.verify import Damage, verify_dataset
from dinowds.shard.build import ShardOptions, build_dataset


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
        assert any(problem in damage.problem for damage in verify_dataset(dataset_copy)[1:])


def test_verify__counts_of_the_manifest_are_compared(dataset_copy: Path) -> None:
    path = dataset_copy / "manifest.json"
    content = json.loads(path.read_text())
    content["shardlist"][1]["nsamples"] = 11
    content["dinowds"]["cohorts"] = {"source": 29}
    path.write_text(json.dumps(content))
    problems = [damage.problem for damage in verify_dataset(dataset_copy)]
    assert problems == ["has 10 rows in samples.parquet, the manifest says 11"]
    content["shardlist"][1]["nsamples"] = 10
    path.write_text(json.dumps(content))
    assert [damage.shard for damage in verify_dataset(dataset_copy)] == ["manifest.json"]


def test_verify__files_that_the_manifest_does_not_list_are_named(dataset_copy: Path) -> None:
    (dataset_copy / "shards" / "out-000009.tar").write_bytes(b"x")
    (dataset_copy / "quarantine.jsonl").write_text('{"source": "s", "member": "m", "reason": "r"}\n')
    assert verify_dataset(dataset_copy) == [
        Damage("shards/out-000009.tar", None, "the manifest does not list this file"),
        Damage("quarantine.jsonl", None, "its counts of reasons are not the manifest's"),
    ]
    (dataset_copy / "shards" / "out-000009.tar").unlink()
    for content in (b"[]\n", b"{\n", b"\xff\n", b"[" * 200_000):
        (dataset_copy / "quarantine.jsonl").write_bytes(content)
        (damage,) = verify_dataset(dataset_copy)
        assert damage.problem.startswith("cannot be read (")
