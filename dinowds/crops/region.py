"""Multi-crop of grids of features: the regions of hierarchical pretraining (HIPT, Chen et al. 2022, arXiv:2206.02647).

As with images, a recipe gives records of numbers and `render` turns grid and record into views. Features are moved,
never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.config import RegionCropsConfig
from dinowds.crops.recipe import Output, Views, plain_view, uniform_numbers
from dinowds.errors import ConfigError, SampleError

# Rows of the block of uniform numbers of a sample, one column a view. New kinds of number get new rows at the end.
_TOP, _LEFT, _FLIP, _TURNS, _ROWS = range(5)


@dataclass(frozen=True)
class RegionRecipe:
    """All views of one grid, in order. Raises ConfigError for values that cannot work."""

    outputs: tuple[Output, ...] = (Output("global", 2, 14), Output("local", 8, 6))
    """The tensors that the views fill; sizes in cells. 14 and 6 are ⌊7/8 · 16⌋ and ⌊3/8 · 16⌋."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    symmetries: bool = False
    """Flip with probability 1/2, whatever `flip`, and turn by 0, 90, 180 or 270 degrees: the eight symmetries of a
    square, all equally likely."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip of region views: found {self.flip}, expected a probability from 0 to 1")
        for output in self.outputs:
            if output.count < 0 or output.size < 1:
                raise ConfigError(
                    f"{output.name} views of a region: found {output.count} of {output.size} cells, expected 0 or more "
                    "of at least 1"
                )

    @property
    def num_views(self) -> int:
        """Views of one grid."""
        return sum(output.count for output in self.outputs)


def region_recipe(crops: RegionCropsConfig) -> RegionRecipe:
    """The recipe that the values of `crops` ask for."""
    named = (("global", crops.global_), ("local", crops.local))
    outputs = tuple(Output(name, of.count, of.size) for name, of in named if of.count)
    return RegionRecipe(outputs, crops.flip, crops.symmetries)


def sample_region_views(rng: np.random.Generator, recipe: RegionRecipe, rows: int, columns: int) -> Views:
    """Draw the numbers of every view of one grid of `rows` × `columns` cells. Positions are uniform.

    Always takes the same amount from `rng`.

    Returns:
        [V] records, whose box is `size` × `size` cells.

    Raises:
        ConfigError: the grid is smaller than a view.
    """
    uniform = rng.random((1, _ROWS, recipe.num_views))
    views: Views = _views(uniform, recipe, np.array([rows]), np.array([columns]))[0]
    return views


def sample_region_batch(
    seed: int,
    visits: Sequence[int],
    samples: Sequence[int],
    recipe: RegionRecipe,
    rows: Sequence[int],
    columns: Sequence[int],
) -> Views:
    """The same for many grids at once, each with its own `recipe.sample_generator`: [B, V] records."""
    uniform = uniform_numbers(seed, visits, samples, (_ROWS, recipe.num_views))
    return _views(uniform, recipe, np.asarray(rows), np.asarray(columns))


def render(grid: NDArray[Any], views: Views, outs: Sequence[NDArray[Any]]) -> None:
    """Write each of `views`, [V] records, of `grid`, [rows, columns, …], into its place of `outs`, [size, size, …].

    For features, [rows, columns, C], and masks, [rows, columns], alike; any dtype.

    Raises:
        SampleError: a view's box does not lie in the grid.
    """
    for view, out in zip(views, outs, strict=True):
        top, left, size = int(view["top"]), int(view["left"]), int(view["size"])
        if not (0 <= top <= grid.shape[0] - size and 0 <= left <= grid.shape[1] - size):
            raise SampleError(
                f"grid of {grid.shape[0]} × {grid.shape[1]} cells: found a view of rows {top} to {top + size - 1} and "
                f"columns {left} to {left + size - 1}, expected one that lies inside"
            )
        cells = grid[top : top + size, left : left + size]
        if view["flip"]:
            cells = cells[:, ::-1]
        if view["vertical_flip"]:
            cells = cells[::-1]
        out[:] = np.rot90(cells, int(view["turns"]))


def _views(uniform: NDArray[np.float64], recipe: RegionRecipe, rows: NDArray[Any], columns: NDArray[Any]) -> Views:
    """Uniform numbers [B, rows, V] and grids' sizes [B] → [B, V] records."""
    _check_grids(recipe, rows, columns)
    size = np.repeat([output.size for output in recipe.outputs], [output.count for output in recipe.outputs])
    views: Views = np.full((len(uniform), recipe.num_views), plain_view(0, 0, 0, 0, 0))
    views["size"] = views["height"] = views["width"] = size
    views["top"] = np.floor(uniform[:, _TOP] * (rows[:, None] - size + 1))
    views["left"] = np.floor(uniform[:, _LEFT] * (columns[:, None] - size + 1))
    views["flip"] = uniform[:, _FLIP] < (0.5 if recipe.symmetries else recipe.flip)
    if recipe.symmetries:
        views["turns"] = 4 * uniform[:, _TURNS]
    return views


def _check_grids(recipe: RegionRecipe, rows: NDArray[Any], columns: NDArray[Any]) -> None:
    for output in recipe.outputs:
        small = np.flatnonzero(np.minimum(rows, columns) < output.size)
        if output.count and len(small):
            raise ConfigError(
                f"{output.name} views of {output.size} × {output.size} cells: found a grid of {rows[small[0]]} × "
                f"{columns[small[0]]}, expected at least as many; make the views smaller or the regions larger"
            )
