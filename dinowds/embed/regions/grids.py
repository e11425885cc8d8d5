"""From the positions of patches to the cells of regions. Pure.

The patches of a slide lie on a lattice: x = x₀ + column · step, y = y₀ + row · step. A region is a square of n × n
cells of it. Only positions count, never the order in which patches are listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinowds.errors import ConfigError

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

TOLERANCE = 0.01
"""A patch is in the cell that it is at most this share of the step away from, along x and along y: tilers round."""

_FEW = 8
"""Neighbours that a slide must have, so that its own step is believed."""
_MOST_CELLS = 1 << 24
"""A side of a slide, in cells; more are a wrong position."""


@dataclass(frozen=True)
class Shape:
    """What regions are cut, in cells. Raises ConfigError for what cannot be."""

    cells: int
    """n, a side of a region."""
    stride: int
    """From one region to the next, along x and along y; less than n for regions that overlap."""
    min_filled: float = 0.5
    """Least share of a region's cells that must exist."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.cells:
            raise ConfigError(f"--stride: is {self.stride} cells, expected 1 to {self.cells}, the side of a region")
        if not 0 <= self.min_filled <= 1:
            raise ConfigError(f"--min-filled: is {self.min_filled:g}, expected a share from 0 to 1")

    @property
    def min_count(self) -> int:
        """Least number of cells that must exist."""
        return max(1, ceil(self.min_filled * self.cells**2 - 1e-9))


class Cells(NamedTuple):
    """The patches of one slide [P] on its lattice."""

    row: Int64s
    """From 0, the row of the smallest y; means nothing where the patch is not placed."""
    column: Int64s
    is_placed: Bools
    is_second: Bools
    """Not placed since an earlier one of the list has its cell; the others that are not placed lie off the lattice."""
    x: float
    """Of column 0."""
    y: float
    """Of row 0."""


class Regions(NamedTuple):
    """Regions of one slide [R], by rows and then by columns."""

    row: Int64s
    """Of the top left cell."""
    column: Int64s
    num_filled: Int64s
    """Cells that exist."""


class Neighbours(NamedTuple):
    """The step that the neighbours in the rows and columns of a slide suggest."""

    common: int
    """The commonest distance; the smallest of several."""
    mean: float
    """Of the distances that are within the tolerance of it: other than `common` where the tiler rounded."""
    pairs: int
    """Of neighbours at any distance."""


def look_at_neighbours(x: Int64s, y: Int64s) -> Neighbours | None:
    """Distances between a patch and the next one in its row or column; None where there are none. `x`, `y`: [P]."""
    distances = np.concatenate([_distances(x, y), _distances(y, x)])
    if not len(distances):
        return None
    values, counts = np.unique(distances, return_counts=True)
    common = int(values[np.argmax(counts)])
    near = np.abs(values - common) <= TOLERANCE * common
    mean = float(np.average(values[near], weights=counts[near]))
    return Neighbours(common, mean, len(distances))


def common_step(slides: list[Neighbours]) -> float | None:
    """The step of most patches of a cohort, from its slides' neighbours; None where no slide has any."""
    if not slides:
        return None
    common, counts = (np.array(column, np.int64) for column in zip(*((n.common, n.pairs) for n in slides), strict=True))
    which = np.unique(common, return_inverse=True)[1]
    best = np.flatnonzero(which == np.argmax(np.bincount(which, counts)))
    return float(np.average([slides[at].mean for at in best], weights=counts[best]))


def choose_step(x: Int64s, y: Int64s, found: Neighbours | None, cohort_step: float) -> float:
    """The step of one slide: its own, or its cohort's where it has few neighbours or lacks most of them.

    Slides of a cohort differ where scanners do. Where every second patch is missing, the commonest distance is a
    multiple of the step.
    """
    if found is None or found.pairs < _FEW:
        return cohort_step
    multiple = found.mean / cohort_step
    if round(multiple) >= 2 and abs(multiple - round(multiple)) <= TOLERANCE * multiple:
        return cohort_step
    if found.mean == found.common:
        return found.mean
    placed = {step: int(place(x, y, step).is_placed.sum()) for step in (float(found.common), found.mean)}
    return max(placed, key=lambda step: placed[step])


def place(x: Int64s, y: Int64s, step: float) -> Cells:
    """Patches at `x`, `y`, int64 [P], in the order in which they are listed → their cells on the lattice of most."""
    column, on_column, left = _axis(x, step, np.ones(len(x), np.bool_))
    row, on_row, top = _axis(y, step, on_column)
    is_placed = on_column & on_row
    if is_placed.any():
        first_row, first_column = row[is_placed].min(), column[is_placed].min()
        row, column = row - first_row, column - first_column
        left, top = left + first_column * step, top + first_row * step
        too_far = is_placed & ((row >= _MOST_CELLS) | (column >= _MOST_CELLS))
        is_placed &= ~too_far
    is_second = np.zeros(len(x), np.bool_)
    rows = np.flatnonzero(is_placed)
    first = np.unique(row[rows] * _MOST_CELLS + column[rows], return_index=True)[1]
    is_second[np.delete(rows, first)] = True
    return Cells(row, column, is_placed & ~is_second, is_second, left, top)


def cut_regions(cells: Cells, shape: Shape) -> tuple[Regions, int]:
    """The regions of a slide with enough cells, and the number of those that have some, but too few.

    The first region begins at row 0 and column 0; along each side the last one is the first that reaches the slide's
    end. Cells beyond it do not exist.
    """
    row, column = cells.row[cells.is_placed], cells.column[cells.is_placed]
    if not len(row):
        none = np.zeros(0, np.int64)
        return Regions(none, none, none), 0
    bands, width = _covering(row, shape), int(column.max()) + 1
    values, counts = np.unique(np.concatenate([(k * width + column)[k >= 0] for k in bands]), return_counts=True)
    band, column = np.divmod(values, width)  # one for each column of each row of regions
    across = _count(width, shape)
    places = [(band * across + k, k >= 0) for k in _covering(column, shape)]
    regions, which = np.unique(np.concatenate([place[fits] for place, fits in places]), return_inverse=True)
    filled = np.bincount(which, np.concatenate([counts[fits] for _, fits in places])).astype(np.int64)
    enough = filled >= shape.min_count
    top, left = np.divmod(regions[enough], across)
    return Regions(top * shape.stride, left * shape.stride, filled[enough]), int(np.sum(~enough))


class CellIndex:
    """Which patch of a slide is in a cell."""

    def __init__(self, cells: Cells) -> None:
        patches = np.flatnonzero(cells.is_placed)
        keys = cells.row[patches] * _MOST_CELLS + cells.column[patches]
        order = np.argsort(keys)
        self._keys, self._patches = keys[order], patches[order]

    def patches(self, row: int, column: int, n: int) -> Int64s:
        """Those of the region with this top left cell, int64 [n, n]; -1 where there is none."""
        rows, columns = row + np.arange(n)[:, None], column + np.arange(n)
        wanted = rows * _MOST_CELLS + columns
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        exists = (self._keys[at] == wanted) & (columns < _MOST_CELLS)
        return np.where(exists, self._patches[at], -1)


def _distances(along: Int64s, across: Int64s) -> Int64s:
    order = np.lexsort((along, across))
    is_same = np.diff(across[order]) == 0
    found = np.diff(along[order])[is_same]
    return found[found > 0]  # type: ignore[no-any-return]


def _axis(values: Int64s, step: float, among: Bools) -> tuple[Int64s, Bools, float]:
    """Along one axis: numbers of cells, which patches are on the lattice, and where cell 0 is. The lattice is the one
    that most of `among` are on.
    """
    tolerance = TOLERANCE * step
    residues = np.sort(np.mod(values[among], step))
    circle = np.concatenate([residues, residues + step])
    stops = np.searchsorted(circle, residues + 2 * tolerance, side="right")
    first = int(np.argmax(stops - np.arange(len(residues)))) if len(residues) else 0
    phase = float(circle[(first + int(stops[first]) - 1) // 2]) if len(residues) else 0.0
    cells = np.rint((values - phase) / step)
    is_on = np.abs(values - phase - cells * step) <= tolerance
    return cells.astype(np.int64), is_on, phase


def _count(cells: int, shape: Shape) -> int:
    """Regions along a side of so many cells."""
    return 1 + max(0, -(-(cells - shape.cells) // shape.stride))


def _covering(cells: Int64s, shape: Shape) -> list[Int64s]:
    """For each patch the numbers of the regions that have its cell, along one axis; -1 where there are fewer."""
    count = _count(int(cells.max()) + 1, shape)
    last = cells // shape.stride
    numbers = [last - back for back in range(-(-shape.cells // shape.stride))]
    return [np.where((k >= 0) & (k < count) & (cells < k * shape.stride + shape.cells), k, -1) for k in numbers]
