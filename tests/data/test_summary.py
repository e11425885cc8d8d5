"""What a dataset's index says of it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dinowds.data.summary
from dinowds.data.dataset import Dataset
from dinowds.data.manifest import SAMPLES_SCHEMA, read_manifest
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.data.summary import summarize
from dinowds.data.verify import verify_dataset
from dinowds.errors import DatasetError
from dinowds.shard.build import ShardOptions, build_dataset
from tests.index_only import accept_index


def write_images(folder: Path, seed: int) -> None:
    """Images of many sizes and three formats in slides of random sizes, some with labels, some without a slide."""
    random = np.random.default_rng(seed)
    for index in range(60):
        slide = folder / f"slide{random.integers(6)}" if random.random() < 0.8 else folder
        slide.mkdir(parents=True, exist_ok=True)
        kind, suffix = [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")][random.integers(3)]
        content = io.BytesIO()
        Image.new("RGB", (int(random.integers(1, 4)), 2), (index, 0, 0)).save(content, kind)
        (slide / f"{index}.{suffix}").write_bytes(content.getvalue())
        if random.random() < 0.5:
            (slide / f"{index}.cls").write_text(str(random.integers(3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("alpha", "beta")):
        write_images(tmp_path / name, seed)
    (tmp_path / "beta" / "notes.txt").write_text("x")
    with tarfile.open(tmp_path / "alpha.tar", "w") as tar:  # in a folder each image has a slide
        tar.add(tmp_path / "alpha", "")
    build_dataset([tmp_path / "alpha.tar", tmp_path / "beta"], tmp_path / "out", ShardOptions(max_count=17))
    return tmp_path / "out"


@pytest.mark.parametrize("merge_rows", [1, 30, 1 << 20])
def test_summary__equals_a_plain_count_of_the_rows(
    folder: Path, merge_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinowds.data.summary, "_MERGE_ROWS", merge_rows)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    slides = Counter((row["cohort"], row["slide"]) for row in rows if row["slide"] is not None)
    summary = summarize(folder)
    assert (summary.samples, summary.shards) == (120, 8)
    assert summary.payload_bytes == sum(row["size"] for row in rows)
    assert summary.num_bytes == sum(path.stat().st_size for path in (folder / "shards").iterdir())
    assert summary.cohorts == {"alpha": 60, "beta": 60}
    assert summary.slides == len(slides)
    assert summary.slides_per_cohort == Counter(cohort for cohort, _ in slides)
    assert summary.samples_without_slide == sum(row["slide"] is None for row in rows) > 0
    counts = list(slides.values())
    assert summary.samples_per_slide == (min(counts), median(counts), max(counts))
    assert summary.labels == Counter(str(row["label"]) for row in rows if row["label"] is not None)
    assert list(summary.labels) == ["0", "1", "2"]
    assert summary.samples_without_label == sum(row["label"] is None for row in rows) > 0
    assert summary.sizes == Counter(f"{row['width']}x{row['height']}" for row in rows)
    assert list(summary.sizes.values()) == sorted(summary.sizes.values(), reverse=True)
    assert summary.formats == Counter(row["ext"] for row in rows)
    assert summary.quarantined == {"not an image file": 1}
    assert summary.metadata["skipped"]["directories"] > 1
    assert json.loads(json.dumps(summary.to_json()))["samples_per_slide"] == list(summary.samples_per_slide)


def test_summary__without_slides_and_labels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.png")
    build_dataset([tmp_path / "images"], tmp_path / "out", ShardOptions())
    summary = summarize(tmp_path / "out")
    assert (summary.slides, summary.samples_per_slide, summary.labels) == (0, None, {})


def test_summary__of_a_broken_index_is_an_error(folder: Path, tmp_path: Path) -> None:
    path = folder / "samples.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DatasetError, match=r"samples\.parquet: no such file"):
        summarize(folder)
    path.write_bytes(content[:-9])
    with pytest.raises(DatasetError, match=r"samples\.parquet: is not a Parquet file"):
        summarize(folder)
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(DatasetError, match=r"samples\.parquet: its footer is not the one that was written"):
        summarize(folder)
    accept_index(folder)
    with pytest.raises(DatasetError, match=r"has no such column, expected a column 'shard' of type int32"):
        summarize(folder)
    path.write_bytes(content)
    pq.write_table(pq.read_table(path).slice(0, 50), tmp_path / "short")
    shutil.move(tmp_path / "short", path)
    accept_index(folder)
    with pytest.raises(DatasetError, match=r"has 50 rows in 1 row groups, but manifest\.json lists 120 samples in 8"):
        summarize(folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("size", pa.array(["1"] * 120), "has a column 'size' of type string, expected a column 'size' of type int64"),
        ("size", pa.array([None] * 120, pa.int64()), "cannot be read (it has rows without 'size')"),
        ("slide", pa.array([b"\xff"] * 120).view(pa.string()), "cannot be read"),
    ],
)
def test_summary__of_columns_that_cannot_be_is_one_line(folder: Path, column: str, values: Any, message: str) -> None:
    path = folder / "samples.parquet"
    rows = pq.read_table(path)
    rows = rows.set_column(rows.column_names.index(column), column, values)
    with pq.ParquetWriter(path, rows.schema) as writer:
        for start in range(0, 120, 17):
            writer.write_table(rows.slice(start, 17))
    accept_index(folder)
    with pytest.raises(DatasetError) as caught:
        summarize(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(damage.shard == "samples.parquet" for damage in verify_dataset(folder))


def test_summary__of_an_index_with_changed_bytes_never_raises_anything_else(folder: Path) -> None:
    path = folder / "samples.parquet"
    content = path.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        changed = bytearray(content)
        for position in random.integers(0, len(content), 3):
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        try:
            summarize(folder)
        except DatasetError as error:
            messages.append(str(error))
        messages += [damage.problem for damage in verify_dataset(folder)]
    assert len(messages) > 150
    assert not any("\n" in message for message in messages)


def test_index__a_changed_byte_of_a_page_changes_no_value_unnoticed(folder: Path) -> None:
    path = folder / "samples.parquet"
    content = path.read_bytes()
    expected = Dataset.open(folder).columns(SAMPLES_SCHEMA.names)
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    messages = []
    for place in np.random.default_rng(0).integers(4, end, 100).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert (
                Dataset.open(folder).columns(SAMPLES_SCHEMA.names) == expected
            )  # of headers, some bytes do not matter
        except DatasetError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("text", ["[]", "null", "1", "{}", '{"dinowds": []}', "[" * 200_000])
def test_manifest__that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json: (not a manifest of dinowds|cannot be read as JSON)"):
        read_manifest(tmp_path)


def test_summary__of_a_subset_counts_its_samples(folder: Path) -> None:
    dataset = Dataset.open(folder)
    subset, mask, _ = choose_subset(dataset, "labelled", SubsetOptions(where="label is not None", fraction=0.5))
    write_subset(dataset.url, subset, mask, dataset.files)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    chosen = [rows[i] for i in np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()]
    summary = summarize(f"{folder}:labelled")
    assert (summary.subset, summary.samples) == ("labelled", len(chosen))
    assert summary.shards == len({row["shard"] for row in chosen})
    assert summary.payload_bytes == sum(row["size"] for row in chosen)
    assert summary.cohorts == {name: sum(row["cohort"] == name for row in chosen) for name in ("alpha", "beta")}
    assert summary.formats == Counter(row["ext"] for row in chosen)
    assert summary.samples_without_label == 0
    assert summary.slides == len({(row["cohort"], row["slide"]) for row in chosen if row["slide"] is not None})
