"""The stage of the training stream that turns decoded samples into batches of views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from dinowds.crops.recipe import Recipe, sample_generator, sample_views
from dinowds.crops.render import render_views
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

    def __init__(self, recipe: Recipe, renderer: str, seed: int, batch_size: int) -> None:
        self._recipe, self._renderer, self._seed, self._batch_size = recipe, renderer, seed, batch_size

    def __call__(self, stream: Iterable[dict[str, Any]]) -> Iterator[Batch]:
        place, batch, slots = 0, None, []
        for sample in stream:
            if batch is None:
                batch = self._empty(sample["__step__"])
                # [view][place] → memory of one view; made once a batch, since indexing a tensor costs microseconds
                slots = [view for views in batch.views.values() for view in views.numpy()]
            self._render(sample, [slot[place] for slot in slots])
            batch.keys.append(sample["__key__"])
            batch.samples[place] = sample["__sample__"]
            batch.bad += sample["__bad__"]
            place += 1
            if place == self._batch_size:
                yield batch
                place, batch = 0, None

    def _render(self, sample: dict[str, Any], outs: list[NDArray[np.uint8]]) -> None:
        image = sample["image"]
        generator = sample_generator(self._seed, sample["__visit__"], sample["__sample__"])
        render_views(self._renderer, image, sample_views(generator, self._recipe, *image.shape[:2]), outs)

    def _empty(self, step: int) -> Batch:
        views = {
            output.name: torch.empty((output.count, self._batch_size, output.size, output.size, 3), dtype=torch.uint8)
            for output in self._recipe.outputs
        }
        if get_worker_info() is not None:
            # Rendered where the main process will read it: nothing is copied on the way there.
            for tensor in views.values():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        return Batch(step, views, [], torch.empty(self._batch_size, dtype=torch.int64))
