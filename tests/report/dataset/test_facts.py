"""Facts of the index: columns, spreads, draws, duplicates, slides and their maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.errors import DatasetError
from dinowds.report.dataset.columns import Columns, labels_per_cohort, read_columns, read_rows_of, read_statistics
from dinowds.report.dataset.draw import draw_evenly, even_shares
from dinowds.report.dataset.duplicates import find_groups
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.slides import NO_SAMPLE, count_slides, lay_out, read_maps, spread_slides
from dinowds.report.dataset.spread import MOST_BINS, box_of, boxes_of, log_histogram, share_between
from dinowds.shard.build import ShardOptions
from dinowds.shard.choice import Choice
from tests.report.dataset.support import HOSTILE, make_listed, two_cohorts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ShardOptions(max_count=15, verify="decode", choice=Choice(drop_blank=True))
    return make_listed(tmp_path_factory.mktemp("facts") / "listed", two_cohorts(), options)


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


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([5, 5], 4, [2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([1, 9, 9], 10, [1, 5, 4]),
        ([3, 2], 99, [3, 2]),
        ([4, 0, 4], 3, [2, 0, 1]),
        ([7, 7, 7], 2, [1, 1, 0]),
        ([], 5, []),
        ([3], 0, [0]),
    ],
)
def test_even_shares(counts: list[int], total: int, expected: list[int]) -> None:
    assert even_shares(np.array(counts, np.int64), total).tolist() == expected


def test_draw__even_seeded_and_anywhere_in_a_group() -> None:
    groups = np.array([0] * 900 + [1] * 90 + [2] * 10)
    places = draw_evenly(groups, 100, seed=1)
    assert np.bincount(groups[places]).tolist() == [45, 45, 10]
    assert np.array_equal(places, np.unique(places))
    assert np.array_equal(places, draw_evenly(groups, 100, seed=1))
    other = draw_evenly(groups, 100, seed=2)
    assert not np.array_equal(places, other)
    firsts = places[groups[places] == 0]
    assert firsts.min() < 200
    assert firsts.max() > 700
    assert draw_evenly(np.zeros(0, np.int64), 5, 0).tolist() == []


def test_box__quantiles_of_what_is_known() -> None:
    values = np.append(np.arange(101.0), np.nan)
    box = box_of(values)
    assert box is not None
    assert dataclasses.astuple(box) == pytest.approx((101, 5, 25, 50, 75, 95))
    first, none, last = boxes_of(np.array([3.0, np.nan, 1.0, 8.0]), np.array([2, 1, 0, 2]), 3)
    assert first is not None
    assert none is None
    assert last is not None
    assert (first.median, last.median) == (1, 5.5)


@pytest.mark.parametrize(
    "values", [[1], [7, 7, 7], [1, 2, 3, 1000, 10**9], list(range(1, 4000)), [9_000, 23_000] * 500, [0, 1, 2]]
)
def test_log_histogram__counts_all_between_the_least_and_the_largest(values: list[int]) -> None:
    array = np.array(values)
    groups = np.arange(len(array)) % 2
    found = log_histogram(array, groups, 2)
    assert found.counts.sum(axis=1).tolist() == np.bincount(groups, minlength=2).tolist()
    assert len(found.edges) == found.counts.shape[1] + 1
    assert 1 <= found.counts.shape[1] <= MOST_BINS
    assert found.edges[0] <= max(1, array.min())
    assert array.max() < found.edges[-1]
    ratios = found.edges[1:] / found.edges[:-1]
    assert ratios == pytest.approx(ratios[0])
    for place in range(found.counts.shape[1]):
        inside = (np.maximum(array, 1) >= found.edges[place]) & (np.maximum(array, 1) < found.edges[place + 1])
        assert found.counts[:, place].sum() == inside.sum()


def test_share_between__none_all_and_half() -> None:
    random = np.random.default_rng(0)
    groups = np.arange(4000) % 4
    noise = random.normal(0, 1, 4000)
    shares = [share_between(noise + shift * groups, groups) for shift in (0, 100, np.sqrt(1 / 1.25))]
    assert shares == pytest.approx([0, 1, 0.5], abs=0.02)
    few = [share_between(random.normal(0, 1, 12), np.arange(12) % 6) for _ in range(300)]
    assert np.mean([share for share in few if share is not None]) < 0.2  # its square root's cousin would say 0.45
    missing = np.where(np.arange(4000) % 8 == 0, np.nan, noise + 100 * groups)
    assert share_between(missing, groups) == pytest.approx(1, abs=0.02)
    assert share_between(np.ones(8), np.arange(8) % 2) is None
    assert share_between(noise, np.zeros(4000, int)) is None
    assert share_between(np.arange(3.0), np.arange(3)) is None


def _columns(digests: list[int], cohort: list[int], label: list[int], slide: list[int]) -> Columns:
    count = len(digests)
    digest = np.array([[d] * 16 for d in digests], np.uint8)
    codes = (np.array(cohort, np.int32), np.array(label, np.int32), np.array(slide, np.uint64))
    return Columns(10 * np.arange(count), *codes, np.ones(count, np.int64), digest)


def test_duplicates__groups_and_what_they_cross() -> None:
    columns = _columns(
        digests=[1, 2, 1, 3, 1, 3, 4, 4, 5, 5],
        cohort=[0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        label=[0, 0, -1, 1, 0, 2, -1, 1, 0, -1],
        slide=[7, 7, 8, 7, 7, 7, 7, 0, 3, 4],
    )
    found = find_groups(columns, 2)
    assert (found.copies, found.groups) == (5, 4)
    assert (found.across_cohorts, found.across_labels, found.across_slides) == (1, 1, 2)
    assert [ids.tolist() for ids in found.largest] == [[0, 20, 40], [30, 50]]
    none = find_groups(_columns([1, 2], [0, 0], [0, 0], [0, 0]), 2)
    assert (none.copies, none.groups, none.largest) == (0, 0, ())


def test_duplicates__are_as_many_as_a_table_finds() -> None:
    digests = np.random.default_rng(0).integers(0, 60, 200).tolist()
    counts = np.bincount(digests)
    found = find_groups(_columns(digests, [0] * 200, [0] * 200, [1] * 200), 1000)
    assert found.copies == 200 - np.count_nonzero(counts)
    assert sorted(map(len, found.largest), reverse=True) == [len(ids) for ids in found.largest]
    assert sorted(map(len, found.largest)) == sorted(counts[counts > 1].tolist())


def test_main_groups__largest_in_order_and_the_rest() -> None:
    codes = np.array([0, 1, 1, 2, 2, 2, 4, 4, 4, 4, -1])
    found = main_groups(codes, list("abcde"), 3)
    assert found.names == ["c", "e", "3 others"]
    assert found.codes.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 2]
    assert main_groups(codes, list("abcde")).names == ["a", "b", "c", "e", "none"]


def test_slides__largest_first_spread_over_cohorts(folder: Path) -> None:
    dataset = Dataset.open(folder)
    columns = read_columns(dataset)
    slides = count_slides(columns)
    assert slides.counts.tolist() == [21, 10, 10]
    assert slides.share_of_largest(0.1) == pytest.approx(21 / 41)
    assert spread_slides(np.array([0, 0, 0, 1, 0, 1]), 4).tolist() == [0, 3, 1, 5]
    maps = read_maps(dataset, columns, slides, 2)
    assert (maps[0].cohort, maps[0].slide, maps[0].count) == (HOSTILE, HOSTILE, 21)
    assert maps[1].cohort == "red"
    assert maps[1].cell == 1024  # every fourth sample of 256
    assert maps[1].labels.shape == (1, 10)
    assert len(read_maps(dataset, columns, slides, 9)) == 3


def _lattice() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:20, 0:30]
    there = np.random.default_rng(0).random(x.shape) < 0.7
    there[0, 0] = there[-1, -1] = True
    return x[there] * 224.0 + 1000, y[there] * 224.0 - 500


def test_lay_out__lattice_keeps_its_step() -> None:
    x, y = _lattice()
    labels = np.arange(len(x), dtype=np.int32)
    found, cell = lay_out(x, y, labels)
    assert cell == 224
    assert found.shape == (20, 30)
    for label in (0, 100, len(x) - 1):
        assert found[int((y[label] + 500) / 224), int((x[label] - 1000) / 224)] == label
    assert (found == NO_SAMPLE).sum() == 600 - len(x)


def test_lay_out__random_places_and_one_place() -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 100_000, (2, 300)).astype(float)
    found, _ = lay_out(x, y, np.zeros(300, np.int32))
    assert max(found.shape) < 160
    assert 0.1 < (found != NO_SAMPLE).mean() < 0.4
    one, cell = lay_out(np.array([5.0]), np.array([7.0]), np.array([3], np.int32))
    assert (one.tolist(), cell) == ([[3]], 1.0)
    line, cell = lay_out(np.arange(1e6, 1e6 + 1000), np.zeros(1000), np.zeros(1000, np.int32))
    assert line.shape[0] == 1
    assert line.shape[1] <= 160


def test_maps__of_samples_without_places(tmp_path: Path) -> None:
    rows = [(cohort, slide, label, None, None, pixels) for cohort, slide, label, _, _, pixels in two_cohorts(4)]
    opened = Dataset.open(make_listed(tmp_path / "listed", rows))
    columns = read_columns(opened)
    assert read_maps(opened, columns, count_slides(columns), 6) == []
