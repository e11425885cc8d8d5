"""Images of a dataset in the order of its shards, decoded in loader processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dinowds.data.blocks import Blocks, Packer, as_images
from dinowds.data.dataset import Dataset, Sample
from dinowds.data.decode import decode_image, decode_reduced
from dinowds.data.loader import load
from dinowds.data.store.runs import join_ranges
from dinowds.data.store.store import Run, Store, open_store
from dinowds.data.subsets.selection import Ids
from dinowds.errors import SampleError
from dinowds.remote.files import shown

_RUN_SAMPLES = 32
"""Neighbours that are read together, as `data.chunk_size`: some requests at once for a block of a remote shard."""
_READ_AHEAD = 2
"""Blocks, or portions, of each loader process that are asked for before they are needed."""


@dataclass
class Block:
    """Consecutive samples of a shard: those that go through the device together."""

    shard: int
    places: range
    """Of its samples among the selected ones of the shard."""
    images: Tensor | list[Tensor]
    """uint8 [n, H, W, 3] where all have one size, else [n] of [H, W, 3]; without the bad ones."""
    bad: dict[int, str]
    """Place → why the image could not be read."""

    def pin_memory(self) -> Block:
        if isinstance(self.images, Tensor):
            self.images = self.images.pin_memory()
        return self


class _Planned(NamedTuple):
    shard: int
    places: range
    samples: list[Sample]
    runs: list[Run]
    """[samples]: that each lies in."""


def shard_ids(dataset: Dataset, shard: int, places: range | None = None) -> Ids:
    """int64 [n]: ids of the selected samples of a shard, or of those at `places` among them."""
    counts = dataset.selection.counts
    places = range(int(counts[shard])) if places is None else places
    return dataset.selection.ids(int(counts[:shard].sum()) + np.arange(places.start, places.stop))


class ShardBlocks(IterableDataset[Block]):
    """First stage: blocks of at most `block_size` samples of these shards, in order; of an empty shard, an empty one.

    With several loader processes, process k of K yields the blocks k, k + K, …: the order in which DataLoader takes
    them.
    """

    def __init__(
        self, dataset: Dataset, shards: Sequence[int], block_size: int, image_size: int | None, blocks: Blocks
    ) -> None:
        """
        Args:
            image_size: side, px, that images get by `fit`; None leaves them as they are.
        """
        super().__init__()
        self._dataset, self._shards = dataset, list(shards)
        self._block_size, self._image_size, self._blocks = block_size, image_size, blocks
        self._store = open_store(dataset)

    def __iter__(self) -> Iterator[Block]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        planned = (self._planned(*span) for span in islice(self._spans(), first, None, stride))
        return map(self._decoded, read_ahead(planned, self._store))

    def _spans(self) -> Iterator[tuple[int, range]]:
        for shard in self._shards:
            count = int(self._dataset.selection.counts[shard])
            for first in range(0, max(1, count), self._block_size):
                yield shard, range(first, min(first + self._block_size, count))

    def _planned(self, shard: int, places: range) -> _Planned:
        samples = self._dataset.samples(shard_ids(self._dataset, shard, places))
        return _Planned(shard, places, samples, runs_of(samples))

    def _decoded(self, planned: _Planned) -> Block:
        packer = Packer(self._blocks, max(1, len(planned.samples)))
        bad: dict[int, str] = {}
        for place, sample, run in zip(planned.places, planned.samples, planned.runs, strict=True):
            try:
                payload = self._store.read(sample, run)
                if self._image_size is None:
                    packer.add(decode_reduced(payload, 1, packer.peek)[0])
                else:
                    packer.add(fit(decode_image(payload), self._image_size))
            except SampleError as error:
                bad[place] = str(error).removeprefix(f"{self._where(sample)}: ")
        return Block(planned.shard, planned.places, packer.finish(as_images), bad)

    def _where(self, sample: Sample) -> str:
        """What the store's messages begin with."""
        return f"{shown(self._dataset.shard_url(sample.shard))}: {sample.key}.{sample.ext}"


class HasRuns(Protocol):
    @property
    def runs(self) -> Sequence[Run]: ...


Plan = TypeVar("Plan", bound=HasRuns)


def read_ahead(plans: Iterable[Plan], store: Store) -> Iterator[Plan]:
    """The same plans, of which the store is told to expect the next few before they come."""
    waiting: deque[Plan] = deque()
    for plan in plans:
        store.expect(dict.fromkeys(plan.runs))
        waiting.append(plan)
        if len(waiting) > _READ_AHEAD:
            yield waiting.popleft()
    yield from waiting


def runs_of(samples: Sequence[Sample]) -> list[Run]:
    """[n] samples of a shard in their order → [n]: the bytes that each is read with."""
    runs: list[Run] = []
    for first in range(0, len(samples), _RUN_SAMPLES):
        part = samples[first : first + _RUN_SAMPLES]
        starts = np.array([sample.offset for sample in part])
        stops = starts + [sample.size for sample in part]
        ranges = iter(join_ranges(starts, stops))
        start, stop = next(ranges)
        for sample in part:
            if sample.offset >= stop:
                start, stop = next(ranges)
            runs.append(Run(sample.shard, start, stop))
    return runs


def fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] → [side, side, 3]: the largest square in the middle, resized (bicubic, antialiased)."""
    height, width = image.shape[:2]
    square = min(height, width)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


def load_blocks(
    dataset: Dataset, shards: Sequence[int], block_size: int, image_size: int | None, num_workers: int, is_gpu: bool
) -> Generator[Block, None, None]:
    """The blocks of `ShardBlocks`, made in `num_workers` processes, in page-locked memory for a GPU."""
    source = ShardBlocks(dataset, shards, block_size, image_size, Blocks(num_workers))
    return load(wds.DataPipeline(source), num_workers, pin_memory=is_gpu)
