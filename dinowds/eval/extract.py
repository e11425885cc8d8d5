"""Features of samples by several models at once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from dinowds.config import Kind, PatchConfig, RegionConfig, RunConfig
from dinowds.data.blocks import Blocks, Packer, as_images, small_tensor
from dinowds.data.dataset import Sample
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.loader import load
from dinowds.data.store.cache import DEFAULT_CACHE, CacheOptions
from dinowds.data.store.store import Run, Store, open_store
from dinowds.data.subsets.selection import Ids
from dinowds.embed.patches.stream import fit, read_ahead, runs_of
from dinowds.errors import DatasetError, SampleError
from dinowds.eval.labelled import Labelled
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from dinowds.model.weights import Weights
from dinowds.train import dist
from dinowds.train.devices import autocast_dtype, choose_num_workers, resolve_precision
from dinowds.train.feed import cache_options
from dinowds.world import World

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


class Model(Protocol):
    """Normalised images [N, 3, S, S], or regions [N, n, n, C] with NaN for missing cells → features [N, D]."""

    embed_dim: int
    """D."""

    def __call__(self, samples: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Inputs:
    """How samples are read, and what becomes of them before the models get them."""

    kind: Kind
    side: int = 0
    """That images get by `stream.fit`, px."""
    channels: int = 0
    """Features of a region's cell."""
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    """Of images, as shares of 255."""
    batch_size: int = 256
    """Samples that go through a device at once."""
    precision: str = "auto"
    num_workers: int | None = None
    """Loader processes of each rank; None: chosen by the cores."""
    prefetch_factor: int = 2
    verify_digests: bool = True
    cache: CacheOptions = DEFAULT_CACHE

    @classmethod
    def of_run(cls, config: RunConfig) -> Inputs:
        """As a run with this configuration evaluates its models. `config`: with `student.input_dim` resolved."""
        side = channels = 0
        if isinstance(config, PatchConfig):
            side = config.tune.knn.image_size or config.crops.global_.size
        else:
            assert isinstance(config, RegionConfig)
            assert config.student.input_dim is not None
            channels = config.student.input_dim
        return cls(
            config.kind,
            side,
            channels,
            batch_size=config.tune.knn.batch_size_per_gpu,
            precision=config.speed.precision,
            num_workers=config.speed.num_workers,
            prefetch_factor=config.speed.prefetch_factor,
            verify_digests=config.data.verify_digests,
            cache=cache_options(config),
        )

    @classmethod
    def of_weights(
        cls, weights: Weights, side: int | None, batch_size: int, precision: str, num_workers: int | None
    ) -> Inputs:
        """As these weights want them. `side`: of images, px; None for the size that their positions are made for."""
        architecture = weights.architecture
        return cls(
            architecture.kind,
            side or architecture.grid * architecture.patch_size,
            architecture.in_dim,
            weights.mean,
            weights.std,
            batch_size,
            precision,
            num_workers,
        )


class Features(NamedTuple):
    """The same on all ranks."""

    vectors: list[Tensor]
    """Of each model, float32 [N, D], on its device."""
    is_good: Tensor
    """bool [N], beside them: the other samples could not be read, their vectors mean nothing."""

    def missing(self, name: str, budget: int, option: str) -> str:
        """What to tell of samples that could not be read; '' for nothing. The same on all ranks.

        Args:
            name: of their dataset, in messages.
            budget: the most of them, which `option` says.

        Raises:
            DatasetError: they are more, or all.
        """
        num_bad = int((~self.is_good).sum())
        text = f"{name}: {num_bad:,} of {len(self.is_good):,} samples could not be read"
        if num_bad > budget or (num_bad and num_bad == len(self.is_good)):
            raise DatasetError(f"{text}, {option} is {budget}; check them with 'dinowds inspect --verify', or raise it")
        return text if num_bad else ""


class Extractor:
    """Decodes, and calls models."""

    def __init__(self, inputs: Inputs, world: World, report: Callable[[int], None] = lambda _done: None) -> None:
        """`report`: gets the samples that this rank is done with, now and then."""
        self._inputs, self._world, self._report = inputs, world, report

    def groups(self, labelled: Labelled) -> dict[Shape, Ids]:
        """Places of labelled samples by the shape that the models get; of regions, as the index says."""
        side, channels = self._inputs.side, self._inputs.channels
        if self._inputs.kind == "image":
            return {(side, side, 3): np.arange(len(labelled.ids))}
        widths = np.empty(len(labelled.ids), np.int64)
        for shard, places, positions in labelled.dataset.by_shard(labelled.ids):
            widths[places] = labelled.dataset.index.groups.read(shard, ["width"])["width"].to_numpy()[positions]
        return {(side, side, channels): np.flatnonzero(widths == side) for side in np.unique(widths).tolist()}

    def __call__(self, models: Sequence[Model], labelled: Labelled) -> Features:
        """Of all labelled samples. All ranks call it together, with models in evaluation mode, on one device."""
        world, batch_size = self._world, self._inputs.batch_size
        dealt = deal(self.groups(labelled), batch_size, world.size)
        orders = [np.concatenate([portion.places for portion in portions]) for portions in dealt]
        own = self._own(models, labelled, dealt[world.rank], len(orders[world.rank]))
        *vectors, is_good = (gather(part, orders) for part in own)
        return Features(vectors, is_good.bool())

    @torch.no_grad()
    def _own(self, models: Sequence[Model], labelled: Labelled, portions: list[Portion], count: int) -> list[Tensor]:
        """This rank's vectors by each model, float32 [count, D], and which are good, uint8 [count], on the device."""
        device = _device_of(models)
        own = [torch.zeros(count, model.embed_dim, device=device) for model in models]
        is_good = torch.zeros(count, dtype=torch.uint8, device=device)
        precision = autocast_dtype(resolve_precision(self._inputs.precision, device))
        first = 0
        with (
            closing(self._decoded(labelled, portions, device)) as stream,
            torch.autocast(device.type, precision, enabled=precision is not None),
        ):
            for decoded in stream:
                samples = self._input(decoded.samples.to(device, non_blocking=True))
                rows = first + decoded.good.to(device, non_blocking=True)
                is_good[rows] = 1
                for model, vectors in zip(models, own, strict=True):
                    vectors[rows] = model(samples)[: len(rows)].float()
                first += decoded.count
                self._report(first)
        return [*own, is_good]

    def _decoded(
        self, labelled: Labelled, portions: list[Portion], device: torch.device
    ) -> Generator[Decoded, None, None]:
        inputs = self._inputs
        num_workers = choose_num_workers(inputs.num_workers, self._world, device)
        store = open_store(labelled.dataset, inputs.verify_digests, inputs.cache)
        source = _Source(labelled, portions, inputs.kind, store, Blocks(num_workers, inputs.prefetch_factor))
        return load(wds.DataPipeline(source), num_workers, inputs.prefetch_factor, pin_memory=device.type == "cuda")

    def _input(self, samples: Tensor) -> Tensor:
        """What `_Source` gives → what a model takes."""
        if self._inputs.kind == "image":
            return normalise(samples.permute(0, 3, 1, 2), torch.float32, self._inputs.mean, self._inputs.std)
        return samples.view(torch.float16).float()


def _device_of(models: Sequence[Model]) -> torch.device:
    """Of the first that has parameters."""
    modules = (model for model in models if isinstance(model, nn.Module))
    return next(parameter.device for module in modules for parameter in module.parameters())


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
        planned = map(self._planned, islice(self._portions, first, None, stride))
        return map(self._decoded, read_ahead(planned, self._store))

    def _planned(self, portion: Portion) -> _Planned:
        samples = self._dataset.samples(self._ids[portion.places])
        by_shard = groupby(samples, key=lambda sample: sample.shard)
        return _Planned(portion, samples, [run for _, members in by_shard for run in runs_of(list(members))])

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
