"""What is read from the index: columns, rows of some samples, stored statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.errors import DatasetError
from dinowds.report.dataset.columns import labels_per_cohort, read_columns, read_rows_of, read_statistics
from dinowds.shard.build import ShardOptions
from dinowds.shard.choice import Choice
from tests.report.dataset.support import make_listed, two_cohorts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ShardOptions(max_count=15, verify="decode", choice=Choice(drop_blank=True))
    return make_listed(tmp_path_factory.mktemp("columns") / "listed", two_cohorts(), options)


def test_columns__are_those_of_the_index_and_of_a_subset(folder: Path) -> None:
    dataset = Dataset.open(folder)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    columns = read_columns(dataset)
    names, labels = list(dataset.manifest.cohorts), dataset.manifest.label_names
    assert [names[code] for code in columns.cohort] == [row["cohort"] for row in rows]
    assert [None if code < 0 else code for code in columns.label.tolist()] == [row["label"] for row in rows]
    assert columns.size.tolist() == [row["size"] for row in rows]
    assert [digest.tobytes() for digest in columns.digest] == [row["digest"] for row in rows]
    table = labels_per_cohort(columns, len(names), len(labels))
    for place, name in enumerate(names):
        expected = [sum(row["cohort"] == name and row["label"] == label for row in rows) for label in (None, 0, 1)]
        assert table[place].tolist() == expected

    subset, mask, _ = choose_subset(dataset, "red", SubsetOptions(where="cohort == 'red'"))
    write_subset(dataset.url, subset, mask, dataset.files)
    chosen = read_columns(Dataset.open(f"{folder}:red"))
    assert chosen.ids.tolist() == [i for i, row in enumerate(rows) if row["cohort"] == "red"]
    assert chosen.size.tolist() == [row["size"] for row in rows if row["cohort"] == "red"]
    statistics = read_statistics(Dataset.open(f"{folder}:red"))
    expected_sharpness = [row["sharpness"] for row in rows if row["cohort"] == "red"]
    assert statistics["sharpness"].tolist() == pytest.approx(expected_sharpness)
    assert set(statistics) == {"white", "black", "sharpness"}


def test_columns__rows_of_samples_in_the_order_asked_for(folder: Path) -> None:
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    ids = np.array([40, 0, 17, 0])
    found = read_rows_of(Dataset.open(folder), ids, ("key", "x"))
    assert found == [{"key": rows[i]["key"], "x": rows[i]["x"]} for i in ids.tolist()]


def test_columns__label_without_a_name(folder: Path) -> None:
    dataset = Dataset.open(folder)
    short = Dataset(dataset.url, dataclasses.replace(dataset.manifest, label_names=()))
    with pytest.raises(DatasetError, match="label 1 has no name"):
        read_columns(short)


def test_statistics__of_an_index_without_them(dataset: Dataset) -> None:
    assert read_statistics(dataset) == {}
