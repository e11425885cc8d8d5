"""Features of labelled samples by models that are in training, over all ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dinowds.config import Kind, PatchConfig, RegionConfig, RunConfig
from dinowds.data.blocks import Blocks, Packer, as_images, small_tensor
from dinowds.data.dataset import Sample
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.loader import load
from dinowds.data.store.store import Run, Store, open_store
from dinowds.data.subsets.selection import Ids
from dinowds.embed.patches.stream import fit, runs_of
from dinowds.errors import SampleError
from dinowds.eval.labelled import Labelled
from dinowds.model.pixels import normalise
from dinowds.model.vit import ImageViT
from dinowds.train import dist
from dinowds.train.devices import autocast_dtype, choose_num_workers, resolve_precision
from dinowds.train.feed import cache_options
from dinowds.world import World

_READ_AHEAD = 2
"""Portions of each loader process that are asked for before they are needed."""

Shape = tuple[int, int, int]
"""Of a decoded sample: rows, columns, channels."""


class Portion(NamedTuple):
    """Samples of one shape that go through the models at once."""

    places: Ids
    """int64 [n], among the labelled ones; there may be none."""
    shape: Shape


def deal(groups: dict[Shape, Ids], batch_size: int, num_ranks: int) -> list[list[Portion]]:
    """Places of samples of each shape → the portions of each rank: the same number for all, of at most `batch_size`.

    With sharded weights a forward pass is a collective, so no rank may make one more than another.
    """
    dealt: list[list[Portion]] = [[] for _ in range(num_ranks)]
    for shape, places in groups.items():
        each = -(-len(places) // (num_ranks * batch_size))
        parts = np.array_split(places, each * num_ranks)
        for rank, mine in enumerate(dealt):
            mine.extend(Portion(part, shape) for part in parts[rank * each : (rank + 1) * each])
    return dealt


class Features(NamedTuple):
    """The same on all ranks."""

    vectors: list[Tensor]
    """Of each model, float32 [N, D], on its device."""
    is_good: Tensor
    """bool [N], beside them: the other samples could not be read, their vectors mean nothing."""


class Extractor:
    """Decodes, and calls models, as a run with this configuration does."""

    def __init__(self, config: RunConfig, world: World) -> None:
        """`config`: with `student.input_dim` resolved."""
        self._config, self._world = config, world

    def groups(self, labelled: Labelled) -> dict[Shape, Ids]:
        """Places of labelled samples by the shape that the models get; of regions, as the index says."""
        config = self._config
        if isinstance(config, PatchConfig):
            side = config.tune.knn.image_size or config.crops.global_.size
            return {(side, side, 3): np.arange(len(labelled.ids))}
        assert isinstance(config, RegionConfig)
        assert config.student.input_dim is not None
        widths = np.empty(len(labelled.ids), np.int64)
        for shard, places, positions in labelled.dataset.by_shard(labelled.ids):
            widths[places] = labelled.dataset.index.groups.read(shard, ["width"])["width"].to_numpy()[positions]
        channels = config.student.input_dim
        return {(side, side, channels): np.flatnonzero(widths == side) for side in np.unique(widths).tolist()}

    def __call__(self, backbones: Sequence[ImageViT], labelled: Labelled) -> Features:
        """Class tokens of all labelled samples. All ranks call it together, with models in evaluation mode."""
        world, batch_size = self._world, self._config.tune.knn.batch_size_per_gpu
        dealt = deal(self.groups(labelled), batch_size, world.size)
        orders = [np.concatenate([portion.places for portion in portions]) for portions in dealt]
        own = self._own(backbones, labelled, dealt[world.rank], len(orders[world.rank]))
        *vectors, is_good = (gather(part, orders) for part in own)
        return Features(vectors, is_good.bool())

    @torch.no_grad()
    def _own(
        self, backbones: Sequence[ImageViT], labelled: Labelled, portions: list[Portion], count: int
    ) -> list[Tensor]:
        """This rank's vectors by each model, float32 [count, D], and which are good, uint8 [count], on the device."""
        device = next(backbones[0].parameters()).device
        own = [torch.zeros(count, backbone.embed_dim, device=device) for backbone in backbones]
        is_good = torch.zeros(count, dtype=torch.uint8, device=device)
        precision = autocast_dtype(resolve_precision(self._config.speed.precision, device))
        first = 0
        with (
            closing(self._decoded(labelled, portions, device)) as stream,
            torch.autocast(device.type, precision, enabled=precision is not None),
        ):
            for decoded in stream:
                samples = self._input(decoded.samples.to(device, non_blocking=True))
                rows = first + decoded.good.to(device, non_blocking=True)
                is_good[rows] = 1
                for backbone, vectors in zip(backbones, own, strict=True):
                    vectors[rows] = backbone(samples)[: len(rows)].float()
                first += decoded.count
        return [*own, is_good]

    def _decoded(
        self, labelled: Labelled, portions: list[Portion], device: torch.device
    ) -> Generator[Decoded, None, None]:
        config = self._config
        num_workers = choose_num_workers(config.speed.num_workers, self._world, device)
        store = open_store(labelled.dataset, config.data.verify_digests, cache_options(config))
        source = _Source(labelled, portions, config.kind, store, Blocks(num_workers, config.speed.prefetch_factor))
        return load(
            wds.DataPipeline(source), num_workers, config.speed.prefetch_factor, pin_memory=device.type == "cuda"
        )

    def _input(self, samples: Tensor) -> Tensor:
        """What `_Source` gives → what a backbone takes."""
        if self._config.kind == "image":
            return normalise(samples.permute(0, 3, 1, 2))
        return samples.view(torch.float16).float()


def gather(own: Tensor, orders: list[Ids]) -> Tensor:
    """This rank's rows, [orders[rank], …] → those of all ranks, each at the place that `orders` says; on all ranks."""
    rows = torch.cat(dist.all_gather_tensors(own))
    ordered = torch.empty_like(rows)
    ordered[torch.from_numpy(np.concatenate(orders)).to(rows.device)] = rows
    return ordered


@dataclass
class Decoded:
    """A portion."""

    samples: Tensor
    """uint8 [n, …] of those that could be read; [1, …] of zeros where there are none: models are called anyhow."""
    good: Tensor
    """int64 [n]: which of the portion they are."""
    count: int
    """Of the portion."""

    def pin_memory(self) -> Decoded:
        self.samples, self.good = self.samples.pin_memory(), self.good.pin_memory()
        return self


class _Planned(NamedTuple):
    portion: Portion
    samples: list[Sample]
    runs: list[Run]
    """[samples]: that each lies in."""


class _Source(IterableDataset[Decoded]):
    """Portions, decoded. Process k of K yields the portions k, k + K, …: the order in which DataLoader takes them."""

    def __init__(self, labelled: Labelled, portions: list[Portion], kind: Kind, store: Store, blocks: Blocks) -> None:
        super().__init__()
        self._dataset, self._ids, self._portions = labelled.dataset, labelled.ids, portions
        self._kind, self._store, self._blocks = kind, store, blocks

    def __iter__(self) -> Iterator[Decoded]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self._decoded, self._ahead(islice(self._portions, first, None, stride)))

    def _ahead(self, portions: Iterable[Portion]) -> Iterator[_Planned]:
        waiting: deque[_Planned] = deque()
        for portion in portions:
            samples = self._dataset.samples(self._ids[portion.places])
            by_shard = groupby(samples, key=lambda sample: sample.shard)
            runs = [run for _, members in by_shard for run in runs_of(list(members))]
            self._store.expect(dict.fromkeys(runs))
            waiting.append(_Planned(portion, samples, runs))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _decoded(self, planned: _Planned) -> Decoded:
        portion, samples, runs = planned
        decode = partial(decode_sample, kind=self._kind, shape=portion.shape)
        packer, good = Packer(self._blocks, max(1, len(samples))), []
        for number, (sample, run) in enumerate(zip(samples, runs, strict=True)):
            try:
                packer.add(decode(self._store.read(sample, run)))
            except SampleError:
                continue
            good.append(number)
        if not good:
            packer.add(decode_nothing(self._kind, portion.shape))
        return Decoded(packer.finish(as_images), small_tensor(np.array(good, np.int64), self._blocks), len(samples))


def decode_sample(payload: bytes, kind: Kind, shape: Shape) -> NDArray[np.uint8]:
    """An image resized to `shape`, or the bytes of a region's cells, [n, n, 2C].

    Raises:
        SampleError: it cannot be decoded, or a region is not of this shape.
    """
    if kind == "image":
        return fit(decode_image(payload), shape[0])
    grid = decode_grid(payload, channels=shape[2])
    if grid.shape != shape:
        raise SampleError(f"grid of {grid.shape[0]} × {grid.shape[1]} cells, the index says {shape[0]} × {shape[1]}")
    return grid.view(np.uint8)


def decode_nothing(kind: Kind, shape: Shape) -> NDArray[np.uint8]:
    """Zeros in the place of `decode_sample`'s."""
    return np.zeros(shape, np.uint8) if kind == "image" else np.zeros(shape, np.float16).view(np.uint8)
