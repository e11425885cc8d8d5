"""The stage of the training stream that turns encoded regions into batches of views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.crops.batches import Batch, in_batches, join
from dinowds.crops.region import RegionRecipe, render, sample_region_batch
from dinowds.data.blocks import Blocks, Bytes, Packer, Shape, as_tensors
from dinowds.data.grids import decode_grid
from dinowds.data.source import PlanSource, RawSample

_ITEM_BYTES = 2  # of a float16


class CropRegions:
    """Stage: every `source.rank_batch` regions become one `Batch` of views, float16 [V, B, s, s, C].

    Crops depend on (seed, visit, sample id) and the grid's size alone.
    """

    def __init__(
        self, source: PlanSource, recipe: RegionRecipe, channels: int, seed: int, blocks: Blocks | None = None
    ) -> None:
        """
        Args:
            source: that the stream begins with; it replaces what cannot be decoded.
            channels: features of a cell.
            blocks: memory for as many loader processes as the stage runs in; without, for this process alone.
        """
        self._source, self._recipe, self._seed = source, recipe, seed
        self._decode = partial(decode_grid, channels=channels)
        self._channels, self._blocks = channels, blocks or Blocks()

    def __call__(self, stream: Iterable[RawSample]) -> Iterator[Batch]:
        yield from map(self._rendered, in_batches(stream, self._source.rank_batch))

    def _rendered(self, batch: list[RawSample]) -> Batch:
        good = [self._source.first_good(raw, self._decode) for raw in batch]
        raws, grids = [raw for raw, _ in good], [grid for _, grid in good]
        views = sample_region_batch(
            self._seed,
            [raw["__visit__"] for raw in raws],
            [raw["__sample__"] for raw in raws],
            self._recipe,
            [len(grid) for grid in grids],
            [len(grid) for grid in grids],
        )
        packer, outputs = Packer(self._blocks), self._recipe.outputs
        shapes = [
            (output.count, len(batch), output.size, output.size, self._channels * _ITEM_BYTES) for output in outputs
        ]
        # [view][place] → memory of one view: made where the main process will read it
        slots = [_as_halves(view) for views_ in packer.rooms(shapes) for view in views_]
        for place, grid in enumerate(grids):
            render(grid, views[place], [slot[place] for slot in slots])
        named = packer.finish(partial(_named, names=[output.name for output in outputs]))
        return join(raws, named, None, self._blocks)


def _as_halves(memory: Bytes) -> NDArray[np.float16]:
    return memory.view(np.float16)


def _named(memory: Bytes, shapes: Sequence[Shape], names: list[str]) -> dict[str, Tensor]:
    tensors = as_tensors(memory, shapes)
    return {name: tensor.view(torch.float16) for name, tensor in zip(names, tensors, strict=True)}
