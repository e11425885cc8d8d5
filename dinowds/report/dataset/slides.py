"""Samples of each slide, and where they lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.selection import Ids
from dinowds.report.dataset.columns import Columns, read_rows_of
from dinowds.shard.repeats import ranks_among_equals

MAP_CELLS = 160
"""Most cells of a slide's map along a side."""
NO_SAMPLE = -2
"""In a cell."""
_SPARSE, _FILLED = 0.05, 0.25
"""Share of a map's cells that have a sample: where there would be less, and what there is then."""


@dataclass(frozen=True)
class SlideCounts:
    """Samples of S slides, the largest first."""

    hashes: NDArray[np.uint64]
    """[S]."""
    counts: NDArray[np.int64]
    """[S]."""
    first: Ids
    """[S]: places of a sample of each, among the selected ones."""

    def share_of_largest(self, share: float) -> float:
        """Which share of the samples of known slides the largest `share` of the slides has, at least one of them."""
        largest = max(1, round(share * len(self.counts)))
        return float(self.counts[:largest].sum() / self.counts.sum())


@dataclass(frozen=True)
class SlideMap:
    """Where the samples of a slide lie."""

    cohort: str
    slide: str
    count: int
    """Samples that have x and y."""
    labels: NDArray[np.int32]
    """[rows, columns]: label of a sample in each cell, -1 for a sample without; `NO_SAMPLE`."""
    cell: float
    """Side of a cell, in units of x and y."""


def count_slides(columns: Columns) -> SlideCounts:
    """Samples of each known slide; of equally large ones, that with the earlier sample first."""
    hashes, first, counts = np.unique(columns.slide, return_index=True, return_counts=True)
    known = hashes != 0
    hashes, first, counts = hashes[known], first[known], counts[known]
    order = np.lexsort((first, -counts))
    return SlideCounts(hashes[order], counts[order], first[order])


def spread_slides(cohorts: NDArray[np.int32], most: int) -> NDArray[np.int64]:
    """Positions of `most` slides: those of the largest of each cohort, then of the second largest, and so on.

    Args:
        cohorts: int32 [S], of each slide, the largest slide first.
    """
    return np.argsort(ranks_among_equals(cohorts), kind="stable")[:most]


def read_maps(dataset: Dataset, columns: Columns, slides: SlideCounts, most: int) -> list[SlideMap]:
    """Maps of at most `most` slides of which x and y are known, spread over the cohorts.

    Raises:
        DatasetError: the index cannot be read.
    """
    chosen = spread_slides(columns.cohort[slides.first], 2 * most)
    named = read_rows_of(dataset, columns.ids[slides.first[chosen]], ("cohort", "slide", "x", "y"))
    pairs = zip(chosen.tolist(), named, strict=True)
    picked = sorted([(at, row) for at, row in pairs if None not in (row["x"], row["y"])][:most], key=itemgetter(0))
    if not picked:
        return []
    places = np.flatnonzero(np.isin(columns.slide, slides.hashes[[position for position, _ in picked]]))
    x, y = _positions(dataset, columns.ids[places])
    maps = []
    for position, row in picked:
        mine = (columns.slide[places] == slides.hashes[position]) & ~np.isnan(x) & ~np.isnan(y)
        labels, cell = lay_out(x[mine], y[mine], columns.label[places[mine]])
        maps.append(SlideMap(row["cohort"], row["slide"], int(mine.sum()), labels, cell))
    return maps


def lay_out(
    x: NDArray[np.float64], y: NDArray[np.float64], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int32], float]:
    """Samples at x and y [n] → labels of the cells of a map, as in `SlideMap`, and the side of a cell.

    A cell is as large as the most frequent step between neighbouring coordinates; larger where a side of the map would
    have more than `MAP_CELLS`, or where hardly any cell would have a sample, as with places at random.
    """
    sides = np.array([np.ptp(x), np.ptp(y)])
    step = max(1.0, *map(_usual_step, (x, y)))
    area = float(np.prod(sides + step))
    if len(x) * step**2 < _SPARSE * area:
        step = float(np.sqrt(_FILLED * area / len(x)))
    cell = max(step, float(sides.max()) / (MAP_CELLS - 1))
    rows, columns = (np.floor((values - values.min()) / cell).astype(np.int64) for values in (y, x))
    found = np.full((int(rows.max()) + 1, int(columns.max()) + 1), NO_SAMPLE, np.int32)
    found[rows, columns] = labels
    return found, cell


def _usual_step(values: NDArray[np.float64]) -> float:
    steps, counts = np.unique(np.diff(np.unique(values)), return_counts=True)
    return float(steps[counts.argmax()]) if len(steps) else 1.0


def _positions(dataset: Dataset, ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of samples [n]; NaN where they are unknown."""
    found = np.full((2, len(ids)), np.nan)
    for shard, places, positions in dataset.by_shard(ids):
        rows = dataset.index.groups.read(shard, ("x", "y")).take(positions)
        for number, name in enumerate(("x", "y")):
            found[number, places] = pc.fill_null(pc.cast(rows[name], "double", safe=False), np.nan).to_numpy()
    return found[0], found[1]


def name_slides(dataset: Dataset, columns: Columns, slides: SlideCounts, most: int) -> list[tuple[str, str, int]]:
    """Cohort, name and samples of the largest `most` slides."""
    rows = read_rows_of(dataset, columns.ids[slides.first[:most]], ("cohort", "slide"))
    return [(row["cohort"], row["slide"], int(count)) for row, count in zip(rows, slides.counts, strict=False)]
