"""Crops of grids of features: what is random, and that features are moved and not changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dinowds.crops.recipe import VIEW, Output, plain_view, sample_generator
from dinowds.crops.region import RegionRecipe, render, sample_region_batch, sample_region_views
from dinowds.errors import ConfigError, SampleError

REGION = RegionRecipe()
Grid = npt.NDArray[Any]

SYMMETRIES: dict[tuple[int, int], Callable[[Grid], Grid]] = {
    (0, 0): lambda a: a,
    (0, 1): lambda a: a.swapaxes(0, 1)[::-1],  # a quarter turn counter-clockwise: the last column becomes the first row
    (0, 2): lambda a: a[::-1, ::-1],
    (0, 3): lambda a: a.swapaxes(0, 1)[:, ::-1],
    (1, 0): lambda a: a[:, ::-1],
    (1, 1): lambda a: a[:, ::-1].swapaxes(0, 1)[::-1],
    (1, 2): lambda a: a[::-1],
    (1, 3): lambda a: a[:, ::-1].swapaxes(0, 1)[:, ::-1],
}
"""(flip, turns) → the same by transposing and reversing axes."""


def coordinates(rows: int, columns: int, dtype: str = "float32") -> Grid:
    """Each cell's features are where it lies, and something that is large."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([row, column, 1000 + 100 * row + column], axis=-1).astype(dtype)


def draw(recipe: RegionRecipe, draws: int, rows: int = 16, columns: int = 16) -> Any:
    """[draws, V] records."""
    return sample_region_batch(0, [0] * draws, range(draws), recipe, [rows] * draws, [columns] * draws)


def test_region_recipe__sizes_of_the_reference() -> None:
    assert REGION.outputs == (Output("global", 2, 14), Output("local", 8, 6))
    assert (REGION.num_views, REGION.flip, REGION.symmetries) == (10, 0.5, False)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (14, 14), (20, 15)])
def test_views__boxes_are_whole_cells_inside_at_uniform_positions(rows: int, columns: int) -> None:
    views = draw(REGION, 4000, rows, columns)
    assert views.dtype == VIEW
    for of, size in ((views[:, :2], 14), (views[:, 2:], 6)):
        assert np.all(of["size"] == size)
        assert np.all((of["height"] == size) & (of["width"] == size))
        for name, cells in (("top", rows), ("left", columns)):
            places, counts = np.unique(of[name], return_counts=True)
            assert places.tolist() == list(range(cells - size + 1))
            mean = of.size / len(places)
            assert np.abs(counts - mean).max() <= 4.5 * np.sqrt(mean)


def test_views__nothing_but_place_and_flip_is_drawn() -> None:
    views = draw(REGION, 2000)
    assert abs(views["flip"].mean() - 0.5) < 4.5 * 0.5 / np.sqrt(views.size)
    for view in (views[3, 1], views[5, 7]):
        box = [int(view[name]) for name in ("top", "left", "height", "width", "size")]
        assert view == plain_view(*box, flip=view["flip"])


def test_views__symmetries_are_equally_likely() -> None:
    views = draw(RegionRecipe(flip=0.1, symmetries=True), 1000)
    kinds, counts = np.unique(views["flip"] * 4 + views["turns"], return_counts=True)
    assert kinds.tolist() == list(range(8))
    assert np.abs(counts - views.size / 8).max() < 4.5 * np.sqrt(views.size / 8)
    other = draw(RegionRecipe(), 1000)  # the option moves no box
    for name in ("top", "left", "flip"):
        assert np.array_equal(views[name], other[name])


def test_views__numbers_are_independent() -> None:
    views = draw(RegionRecipe(symmetries=True), 4000, 40, 40)
    columns = [views[name][:, view] for view in (0, 1, 2, 9) for name in ("top", "left", "flip", "turns")]
    columns += [np.roll(views["top"][:, view], 1) for view in (0, 9)]
    correlations = np.corrcoef(np.array(columns, float))
    assert np.abs(correlations - np.eye(len(columns))).max() < 4.5 / np.sqrt(4000)


def test_batch__is_each_sample_alone() -> None:
    recipe = RegionRecipe(symmetries=True)
    samples, visits, rows, columns = [9, 2, 10**9, 0], [0, 5, 1, 0], [16, 14, 30, 16], [16, 20, 15, 40]
    alone = [
        sample_region_views(sample_generator(7, visit, sample), recipe, *size)
        for sample, visit, *size in zip(samples, visits, rows, columns, strict=True)
    ]
    assert np.array_equal(sample_region_batch(7, visits, samples, recipe, rows, columns), np.stack(alone))
    back = sample_region_batch(7, visits[::-1], samples[::-1], recipe, rows[::-1], columns[::-1])
    assert np.array_equal(back, np.stack(alone[::-1]))
    assert len({record.tobytes() for record in alone}) == 4


@pytest.mark.parametrize("orientation", SYMMETRIES)
@pytest.mark.parametrize("vertical", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_render__orientation(orientation: tuple[int, int], vertical: int, dtype: str) -> None:
    grid = coordinates(9, 12, dtype)
    flip, turns = orientation
    view = plain_view(2, 5, 6, 6, 6, flip=flip, vertical_flip=vertical, turns=turns)
    features, cells = np.zeros((6, 6, 3), dtype), np.zeros((6, 6), dtype)
    render(grid, np.array([view]), [features])
    render(grid[..., 2], np.array([view]), [cells])
    box = grid[2:8, 5:11]
    # A flip top to bottom after one left to right is the same turned by half.
    expected = SYMMETRIES[(1 - flip, (turns + 2) % 4)](box) if vertical else SYMMETRIES[orientation](box)
    assert np.array_equal(features, expected)
    assert np.array_equal(cells, expected[..., 2])


def test_render__every_orientation_is_another() -> None:
    outs = [np.zeros((4, 4)) for _ in SYMMETRIES]
    views = np.array([plain_view(0, 0, 4, 4, 4, flip=flip, turns=turns) for flip, turns in SYMMETRIES])
    render(np.arange(16).reshape(4, 4), views, outs)
    assert len({out.tobytes() for out in outs}) == 8


def test_render__views_of_a_recipe() -> None:
    grid = coordinates(16, 16)
    views = sample_region_views(sample_generator(0, 0, 0), RegionRecipe(symmetries=True), 16, 16)
    outs = [np.full((view["size"], view["size"], 3), np.nan, np.float32) for view in views]
    render(grid, views, outs)
    for view, out in zip(views, outs, strict=True):
        top, left, size = view["top"], view["left"], view["size"]
        cells = {tuple(cell) for cell in out.reshape(-1, 3).tolist()}
        assert cells == {tuple(cell) for cell in grid[top : top + size, left : left + size].reshape(-1, 3).tolist()}


def test_views__grid_smaller_than_a_view() -> None:
    message = r"^global views of 14 × 14 cells: found a grid of 16 × 13, expected at least as many; .*$"
    with pytest.raises(ConfigError, match=message):
        sample_region_views(sample_generator(0, 0, 0), REGION, 16, 13)
    with pytest.raises(ConfigError, match="found a grid of 12 × 16"):
        sample_region_batch(0, [0, 0], [0, 1], REGION, [16, 12], [16, 16])
    only_local = RegionRecipe((Output("global", 0, 14), Output("local", 3, 6)))
    assert sample_region_views(sample_generator(0, 0, 0), only_local, 6, 6)["top"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"flip": 1.5}, "flip of region views: found 1.5, expected a probability"),
        ({"outputs": (Output("global", 2, 0),)}, "found 2 of 0 cells"),
        ({"outputs": (Output("local", -1, 6),)}, "found -1 of 6 cells"),
    ],
)
def test_region_recipe__values_that_cannot_work(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RegionRecipe(**values)


@pytest.mark.parametrize(("top", "left"), [(11, 0), (0, 11), (-1, 0)])
def test_render__box_outside_of_the_grid(top: int, left: int) -> None:
    with pytest.raises(SampleError, match=r"^grid of 16 × 16 cells: found a view of rows .*, expected one that lies"):
        render(np.zeros((16, 16, 2)), np.array([plain_view(top, left, 6, 6, 6)]), [np.zeros((6, 6, 2))])
