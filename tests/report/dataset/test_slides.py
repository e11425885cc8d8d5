"""Slides by size, and maps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.report.dataset.columns import read_columns
from dinowds.report.dataset.slides import NO_SAMPLE, count_slides, lay_out, read_maps, spread_slides
from dinowds.shard.build import ShardOptions
from dinowds.shard.choice import Choice
from tests.report.dataset.support import HOSTILE, make_listed, two_cohorts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ShardOptions(max_count=15, verify="decode", choice=Choice(drop_blank=True))
    return make_listed(tmp_path_factory.mktemp("columns") / "listed", two_cohorts(), options)


def _lattice() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:20, 0:30]
    there = np.random.default_rng(0).random(x.shape) < 0.7
    there[0, 0] = there[-1, -1] = True
    return x[there] * 224.0 + 1000, y[there] * 224.0 - 500


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
