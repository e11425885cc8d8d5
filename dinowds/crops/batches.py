"""The stage of the training stream that turns decoded samples into batches of views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dinowds.crops.recipe import Recipe, sample_generator, sample_views
from dinowds.crops.render import render_views
from dinowds.data.blocks import Blocks, Bytes, Packer, Shape, as_tensors, small_tensor
from dinowds.data.source import BadSample


@dataclass
class Batch:
    """One rank's share of one global batch."""

    step: int
    """Of the run, over all epochs."""
    views: dict[str, Tensor]
    """Output of the recipe → uint8 [V, B, S, S, 3]."""
    keys: list[str]
    """[B] keys, in the order of the batch."""
    samples: Tensor
    """[B] int64: ids in the plan."""
    bad: list[BadSample] = field(default_factory=list)
    """What could not be read and was replaced."""

    def pin_memory(self) -> Batch:
        self.views = {name: views.pin_memory() for name, views in self.views.items()}
        return self


class Crop:
    """Stage: every `batch_size` decoded samples become one `Batch`; crops depend on (seed, visit, sample id) alone."""

    def __init__(self, recipe: Recipe, renderer: str, seed: int, batch_size: int, blocks: Blocks | None = None) -> None:
        """`blocks`: memory for as many loader processes as the stage runs in; without, for this process alone."""
        self._recipe, self._renderer, self._seed, self._batch_size = recipe, renderer, seed, batch_size
        self._blocks = blocks or Blocks()
        self._shapes = [(output.count, batch_size, output.size, output.size, 3) for output in recipe.outputs]
        self._build = partial(_named, names=[output.name for output in recipe.outputs])

    def __call__(self, stream: Iterable[dict[str, Any]]) -> Iterator[Batch]:
        batch: list[dict[str, Any]] = []
        packer = None
        slots: list[NDArray[np.uint8]] = []
        for sample in stream:
            if packer is None:
                packer = Packer(self._blocks)
                # [view][place] → memory of one view: rendered where the main process will read it
                slots = [view for views in packer.rooms(self._shapes) for view in views]
            self._render(sample, [slot[len(batch)] for slot in slots])
            batch.append(sample)
            if len(batch) == self._batch_size:
                yield self._joined(batch, packer)
                batch, packer = [], None

    def _render(self, sample: dict[str, Any], outs: list[NDArray[np.uint8]]) -> None:
        image = sample.pop("image")
        generator = sample_generator(self._seed, sample["__visit__"], sample["__sample__"])
        render_views(self._renderer, image, sample_views(generator, self._recipe, *image.shape[:2]), outs)

    def _joined(self, batch: list[dict[str, Any]], packer: Packer) -> Batch:
        return Batch(
            step=batch[0]["__step__"],
            views=packer.finish(self._build),
            keys=[sample["__key__"] for sample in batch],
            samples=small_tensor(np.array([sample["__sample__"] for sample in batch]), self._blocks),
            bad=[bad for sample in batch for bad in sample["__bad__"]],
        )


def _named(memory: Bytes, shapes: Sequence[Shape], names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, as_tensors(memory, shapes), strict=True))
