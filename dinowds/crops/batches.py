"""The stage of the training stream that turns encoded samples into batches of views, or of what becomes views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.crops.recipe import VIEW, Recipe, Views, sample_batch
from dinowds.crops.reduction import best_reduction
from dinowds.crops.render import get_renderer
from dinowds.data.blocks import Blocks, Bytes, Packer, Shape, as_tensors, small_tensor
from dinowds.data.decode import Room, decode_image, decode_reduced, image_size
from dinowds.data.source import BadSample, PlanSource, RawSample
from dinowds.errors import SampleError


class Images(NamedTuple):
    """What the device renderer makes views of."""

    pixels: Tensor
    """uint8 [n]: one image after another, each [h, w, 3], RGB."""
    shapes: list[tuple[int, int]]
    """[B] of (h, w), as decoded."""
    views: Views
    """[B, V] records, in px of the full images."""
    reductions: NDArray[np.int64]
    """[B]: how many times smaller than the full image each was decoded: 1, 2, 4 or 8."""


@dataclass
class Batch:
    """One rank's share of one global batch."""

    step: int
    """Of the run, over all epochs."""
    views: dict[str, Tensor]
    """Output of the recipe → uint8 [V, B, 3, S, S], of regions float16 [V, B, s, s, C]; empty if the device is to
    render them."""
    images: Images | None
    """What the device is to render; None if that is done."""
    keys: list[str]
    """[B] keys, in the order of the batch."""
    samples: Tensor
    """[B] int64: ids in the plan."""
    bad: list[BadSample] = field(default_factory=list)
    """What could not be read and was replaced."""

    def pin_memory(self) -> Batch:
        self.views = {name: views.pin_memory() for name, views in self.views.items()}
        if self.images:
            self.images = self.images._replace(pixels=self.images.pixels.pin_memory())
        return self


class _Ready(NamedTuple):
    """One sample, ready for its views."""

    raw: RawSample
    image: NDArray[np.uint8]
    views: Views
    reduction: int


class Crop:
    """Stage: every `source.rank_batch` samples become one `Batch`.

    Crops depend on (seed, visit, sample id) and the image's size alone.
    """

    def __init__(
        self, source: PlanSource, recipe: Recipe, renderer: str, seed: int, blocks: Blocks | None = None
    ) -> None:
        """
        Args:
            source: that the stream begins with; it replaces what cannot be decoded.
            renderer: `cpu` or `pil`; or `device` for batches of images and records.
            blocks: memory for as many loader processes as the stage runs in; without, for this process alone.
        """
        self._source, self._recipe, self._renderer, self._seed = source, recipe, renderer, seed
        self._blocks = blocks or Blocks()
        self._memory = np.empty(0, np.uint8)

    def __call__(self, stream: Iterable[RawSample]) -> Iterator[Batch]:
        make = self._hand_over if self._renderer == "device" else self._rendered
        yield from map(make, in_batches(stream, self._source.rank_batch))

    def _rendered(self, batch: list[RawSample]) -> Batch:
        outputs = self._recipe.outputs
        packer, render = Packer(self._blocks), get_renderer(self._renderer)
        shapes = [(output.count, len(batch), 3, output.size, output.size) for output in outputs]
        # [view][place] → memory of one view: rendered where the main process will read it
        slots = [view for views in packer.rooms(shapes) for view in views]
        raws = []
        for place, sample in enumerate(self._ready(batch, self._scratch)):
            render(sample.image, sample.views, [slot[place] for slot in slots], sample.reduction)
            raws.append(sample.raw)
        views = packer.finish(partial(_named, names=[output.name for output in outputs]))
        return join(raws, views, None, self._blocks)

    def _hand_over(self, batch: list[RawSample]) -> Batch:
        packer = Packer(self._blocks, len(batch))
        views = np.empty((len(batch), self._recipe.num_views), VIEW)
        reductions = np.empty(len(batch), np.int64)
        raws = []
        for place, sample in enumerate(self._ready(batch, packer.peek)):
            packer.add(sample.image)
            views[place], reductions[place] = sample.views, sample.reduction
            raws.append(sample.raw)
        packer.add(views.view(np.uint8))
        return join(raws, {}, packer.finish(partial(_as_images, reductions=reductions)), self._blocks)

    def _ready(self, batch: list[RawSample], room: Room) -> Iterator[_Ready]:
        """Numbers for all at once, from the headers; then image by image, as its views allow."""
        good = [self._source.first_good(raw, image_size) for raw in batch]
        views, reductions = self._numbers([raw for raw, _ in good], [size for _, size in good])
        for place, (raw, _) in enumerate(good):
            try:
                image, reduction = decode_reduced(raw[raw["__ext__"]], reductions[place], room)
                yield _Ready(raw, image, views[place], reduction)
            except SampleError as error:
                yield self._substitute(self._source.replace(raw, str(error)))

    def _scratch(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Memory that is used again for every image; fresh memory comes from the kernel page by page."""
        if math.prod(shape) > len(self._memory):
            self._memory = np.empty(math.prod(shape), np.uint8)
        return self._memory[: math.prod(shape)].reshape(shape)

    def _substitute(self, raw: RawSample) -> _Ready:
        raw, image = self._source.first_good(raw, decode_image)
        views, _ = self._numbers([raw], [image.shape[:2]])
        return _Ready(raw, image, views[0], 1)

    def _numbers(self, raws: Sequence[RawSample], sizes: Sequence[tuple[int, ...]]) -> tuple[Views, list[int]]:
        views = sample_batch(
            self._seed,
            [raw["__visit__"] for raw in raws],
            [raw["__sample__"] for raw in raws],
            self._recipe,
            [size[0] for size in sizes],
            [size[1] for size in sizes],
        )
        return views, [1] * len(raws) if self._renderer == "pil" else best_reduction(views).tolist()


def in_batches(stream: Iterable[RawSample], size: int) -> Iterator[list[RawSample]]:
    """Every `size` samples; what is left at the end is no batch."""
    batch: list[RawSample] = []
    for raw in stream:
        batch.append(raw)
        if len(batch) == size:
            yield batch
            batch = []


def join(raws: list[RawSample], views: dict[str, Tensor], images: Images | None, blocks: Blocks) -> Batch:
    """The batch of these samples, whose views or images are packed already."""
    return Batch(
        step=raws[0]["__step__"],
        views=views,
        images=images,
        keys=[raw["__key__"] for raw in raws],
        samples=small_tensor(np.array([raw["__sample__"] for raw in raws]), blocks),
        bad=[bad for raw in raws for bad in raw["__bad__"]],
    )


def _named(memory: Bytes, shapes: Sequence[Shape], names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, as_tensors(memory, shapes), strict=True))


def _as_images(memory: Bytes, shapes: Sequence[Shape], reductions: NDArray[np.int64]) -> Images:
    """Images, then their records."""
    *sizes, records = shapes
    num_bytes = int(np.prod(records))
    views = memory[len(memory) - num_bytes :].copy().view(VIEW).reshape(len(sizes), -1)
    pixels = torch.from_numpy(memory)[: len(memory) - num_bytes]
    return Images(pixels, [(size[0], size[1]) for size in sizes], views, reductions)
