"""Positions → cells → regions: against a plain search of a dense grid, on random slides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dinowds.embed.regions.grids import (
    CellIndex,
    Int64s,
    Neighbours,
    Shape,
    choose_step,
    common_step,
    cut_regions,
    look_at_neighbours,
    place,
)
from dinowds.errors import ConfigError


def _starts(length: int, shape: Shape) -> Iterator[int]:
    """Where regions begin along a side: until one reaches its end."""
    start = 0
    while True:
        yield start
        if start + shape.cells >= length:
            return
        start += shape.stride


def _lattice(rows: int, columns: int) -> tuple[Int64s, Int64s]:
    """Row and column of all cells, row by row."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return row, column


@pytest.mark.parametrize("seed", range(60))
def test_cut_regions__is_what_a_dense_grid_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    shape = Shape(n, int(rng.integers(1, n + 1)), float(rng.choice([0, 0.3, 0.5, 1])))
    exists = rng.random(rng.integers(1, 14, 2)) < rng.choice([0.3, 0.8, 1])
    exists[rng.integers(exists.shape[0]), rng.integers(exists.shape[1])] = True
    row, column = rng.permutation(np.argwhere(exists)).T  # listed in any order
    step, (left, top) = int(rng.integers(1, 600)), rng.integers(-(10**6), 10**6, 2)

    cells = place(left + column * step, top + row * step, step)
    assert cells.is_placed.all()
    np.testing.assert_array_equal(cells.row, row - row.min())
    np.testing.assert_array_equal(cells.column, column - column.min())
    assert (cells.x, cells.y) == (left + column.min() * step, top + row.min() * step)

    exists = exists[row.min() : row.max() + 1, column.min() : column.max() + 1]
    counts = {
        (down, right): int(exists[down : down + n, right : right + n].sum())
        for down in _starts(exists.shape[0], shape)
        for right in _starts(exists.shape[1], shape)
    }
    regions, num_sparse = cut_regions(cells, shape)
    expected = {at: count for at, count in counts.items() if count >= shape.min_count}
    assert (
        dict(zip(zip(*map(np.ndarray.tolist, regions[:2]), strict=True), regions.num_filled, strict=True)) == expected
    )
    assert num_sparse == sum(0 < count < shape.min_count for count in counts.values())

    index = CellIndex(cells)
    for down, right in expected:
        found = index.patches(down, right, n)
        for i, j in np.ndindex(n, n):
            inside = down + i < exists.shape[0] and right + j < exists.shape[1] and exists[down + i, right + j]
            assert (found[i, j] >= 0) == inside
            if inside:
                assert (cells.row[found[i, j]], cells.column[found[i, j]]) == (down + i, right + j)


@pytest.mark.parametrize("step", [1, 64, 223.7, 256, 1024.0004])
def test_step__is_found_from_rounded_positions(step: float) -> None:
    exists = np.random.default_rng(0).random(60 * 80) < 0.7
    row, column = (axis[exists] for axis in _lattice(60, 80))
    x, y = np.floor(17.3 + column * step).astype(np.int64), np.floor(-1000.9 + row * step).astype(np.int64)
    neighbours = look_at_neighbours(x, y)
    assert neighbours is not None
    found = choose_step(x, y, neighbours, 999)
    assert found == pytest.approx(step, rel=1e-3)
    cells = place(x, y, found)
    assert cells.is_placed.all()
    np.testing.assert_array_equal(cells.row, row - row.min())
    np.testing.assert_array_equal(cells.column, column - column.min())


def test_step__of_a_slide_with_gaps_or_few_patches_is_its_cohorts() -> None:
    row, column = _lattice(10, 10)
    every_third = 3 * 256 * column, 3 * 256 * row
    sparse = look_at_neighbours(*every_third)
    assert sparse == Neighbours(768, 768.0, 180)
    assert choose_step(*every_third, sparse, 256) == 256
    assert choose_step(*every_third, sparse, 300) == 768  # no multiple: another scanner
    assert choose_step(np.array([0, 7]), np.array([0, 0]), Neighbours(7, 7.0, 1), 256) == 256
    assert choose_step(np.array([5]), np.array([5]), None, 256) == 256


def test_common_step__is_that_of_most_neighbours() -> None:
    assert common_step([Neighbours(512, 512.0, 300), Neighbours(507, 507.5, 100), Neighbours(507, 507.1, 300)]) == 507.2
    assert common_step([]) is None


def test_place__leaves_out_what_lies_between_cells_and_seconds() -> None:
    row, column = _lattice(4, 5)
    x, y = 10 + 256 * column, 20 + 256 * row
    strays = np.array([[-300, 20], [10 + 128, 20], [10, 20 + 130], [10 + 256, 20]])  # the first one at the smallest x
    cells = place(np.concatenate([strays[:, 0], x]), np.concatenate([strays[:, 1], y]), 256)
    assert cells.is_placed.tolist() == [False, False, False, True] + [position != 1 for position in range(20)]
    assert np.flatnonzero(cells.is_second).tolist() == [4 + 1]  # listed after the other one
    assert (cells.x, cells.y) == (10, 20)


def test_place__of_the_largest_numbers() -> None:
    x = np.array([-(2**52), -(2**52) + 512, 2**52])
    cells = place(x, np.zeros(3, np.int64), 512)
    assert cells.is_placed.tolist() == [True, True, False]


@pytest.mark.parametrize("arguments", [(4, 0), (4, 5), (4, 4, -0.1), (4, 4, 1.1)])
def test_shape__refuses(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--stride|--min-filled"):
        Shape(*arguments)  # type: ignore[arg-type]
