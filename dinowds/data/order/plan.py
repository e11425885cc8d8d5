"""Which samples are in which global batch: a pure function of (selection, order), and of nothing else.

    epoch e is the first T·B places of a pass that (seed, e) decides, T = ⌊N / B⌋;
    global batch t = for each partition p in turn, its places t·B/P … (t+1)·B/P − 1.

Nothing here depends on ranks, workers or what was read before: they only decide who reads which slice of a batch.
With weights, cohorts have passes of their own (`mixture.py`); a cap on slides moves samples between near batches
(`spread.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinowds.data.order.passes import Chunks, Layout, Pass, Spots
from dinowds.data.subsets.selection import Selection
from dinowds.errors import ConfigError

Ids = NDArray[np.int64]

PASS, SUBSTITUTE = 0, 1
"""Streams of random numbers, kept apart by the seed's spawn key."""

POOL = 32
"""Chunks that are open at once, for each sample of a global batch.

Two samples of a batch share a chunk, and so a slide where shards are sorted by slide, in about B²/2 · 1/(32·B) of its
pairs: at most B/64 samples (1.6 %) lose their slide's distinctness to it.
"""
_MAX_PARTITIONS = 64


@dataclass(frozen=True)
class Order:
    """What the order of samples depends on, besides the selection."""

    batch_size: int
    """Samples of a global batch."""
    seed: int = 0
    chunk_size: int = 32
    """Neighbouring samples that are read together."""
    window_chunks: int | None = None
    """Chunks of each partition that are mixed together, give or take half as many; None for enough that all partitions
    have POOL · batch_size."""
    partitions: int | None = None
    """Streams that every batch draws from equally; None to have them chosen (`resolved`)."""
    max_per_slide: int | None = None
    """Most samples of one slide in a batch; None for any number."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Cohort → its share of the samples that are drawn, in any unit; {} for each sample once an epoch."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_size", "window_chunks", "partitions", "max_per_slide"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected 0 or more")
        if self.partitions is not None and self.batch_size % self.partitions:
            raise ConfigError(
                f"data.partitions is {self.partitions}, which does not divide train.batch_size {self.batch_size}; "
                "leave data.partitions out to have it chosen"
            )

    def resolved(self, num_chunks: int) -> Order:
        """With partitions and window chosen for a selection of so many chunks.

        What fits into the pool is one window in one partition: a uniform shuffle. More is dealt to as many partitions
        as divide the batch, up to 64, so that up to 64 hosts read their own part alone; the pool stays the same.
        """
        pool = POOL * self.batch_size
        partitions = self.partitions or (1 if num_chunks <= pool else largest_divisor(self.batch_size, _MAX_PARTITIONS))
        return replace(self, partitions=partitions, window_chunks=self.window_chunks or -(-pool // partitions))

    @property
    def layout(self) -> Layout:
        """Of a pass over the whole selection; of an order that is `resolved`."""
        assert self.partitions is not None
        assert self.window_chunks is not None
        return Layout(self.partitions, self.window_chunks)

    def rank_batch(self, num_ranks: int) -> int:
        """Samples of a global batch that belong to each of `num_ranks` ranks.

        Raises:
            ConfigError: they cannot share it equally.
        """
        if self.batch_size % num_ranks:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}, expected a multiple of the {num_ranks} processes"
            )
        return self.batch_size // num_ranks


class Draws(NamedTuple):
    """Samples of some places of some global batches; arrays are int64 [steps, places]."""

    ids: Ids
    """Sample ids."""
    visits: Ids
    """Which pass over its group each is drawn in: a sample is drawn once a visit. Without weights, the epoch."""
    groups: Ids
    """Position in the plan's `selections`."""
    chunk_first: Ids
    """Place, in its group's selection, at which the chunk of each begins."""
    chunk_count: Ids
    """Samples of that chunk."""


class Seen(NamedTuple):
    """How often samples were drawn: the sum of both."""

    passes: list[int]
    """How often all samples of each of the plan's `selections` were."""
    pieces: Iterator[tuple[Ids, int]]
    """Sample ids, and how often more each of them was; −1 where a pass has left them out."""


class Plan(ABC):
    """The order of a run. Steps are counted over all epochs."""

    order: Order
    """As `resolved`."""
    steps_per_epoch: int
    selections: Sequence[Selection]
    layouts: Sequence[Layout]
    """Of the passes over each of `selections`."""

    @abstractmethod
    def draws(self, steps: Sequence[int], start: int = 0, stop: int | None = None) -> Draws:
        """Places `start` … `stop − 1` (all by default) of the global batches `steps`."""

    @abstractmethod
    def seen(self, until_step: int) -> Seen:
        """What the global batches before `until_step` have drawn, without walking through them."""

    def ids(self, step: int, start: int = 0, stop: int | None = None) -> Ids:
        """int64 [places]: sample ids of one global batch, or a slice of it."""
        ids: Ids = self.draws([step], start, stop).ids[0]
        return ids

    def substitute(self, sample: int, group: int, visit: int, attempt: int) -> int:
        """Id of the sample that stands in for an unreadable one, of the same group; `attempt` counts from 0."""
        sequence = np.random.SeedSequence(self.order.seed, spawn_key=(SUBSTITUTE, visit, sample, attempt))
        selection = self.selections[group]
        place = int(np.random.Philox(sequence).random_raw()) % len(selection)
        ids = selection.ids(np.array([place, (place + 1) % len(selection)], dtype=np.int64))
        return int(ids[0] if ids[0] != sample else ids[1])

    def chunk_ids(self, group: int, chunk_first: int, chunk_count: int) -> Ids:
        """Sample ids of a chunk, all of one shard."""
        return self.selections[group].ids(np.arange(chunk_first, chunk_first + chunk_count, dtype=np.int64))


class EpochPlan(Plan):
    """Each sample once an epoch; what does not fill the last batch is left out, and changes each epoch."""

    def __init__(self, selection: Selection, order: Order) -> None:
        """Raises ConfigError if the selection is smaller than one global batch."""
        self.selections = [selection]
        self._chunks = Chunks(selection.counts, order.chunk_size)
        self.order = order.resolved(len(self._chunks))
        self.layouts = [self.order.layout]
        self.steps_per_epoch = steps_per_epoch(len(selection), order.batch_size)
        self._passes: OrderedDict[int, Pass] = OrderedDict()

    def draws(self, steps: Sequence[int], start: int = 0, stop: int | None = None) -> Draws:
        places = np.arange(start, self.order.batch_size if stop is None else stop, dtype=np.int64)
        epochs, steps_of_epoch = np.divmod(np.asarray(steps, dtype=np.int64), self.steps_per_epoch)
        parts = [self._of_epoch(int(epoch), steps_of_epoch[epochs == epoch], places) for epoch in np.unique(epochs)]
        back = np.argsort(np.argsort(epochs, kind="stable"), kind="stable")
        return Draws(*(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)))

    def seen(self, until_step: int) -> Seen:
        epochs, steps = divmod(until_step, self.steps_per_epoch)
        return Seen([epochs], self._pieces(epochs, steps))

    def _pieces(self, epochs: int, steps: int) -> Iterator[tuple[Ids, int]]:
        selection = self.selections[0]
        left_out = np.arange(self.steps_per_epoch * self.order.batch_size, len(selection), dtype=np.int64)
        for epoch in range(epochs if len(left_out) else 0):
            yield selection.ids(self.epoch(epoch).at(left_out).places), -1
        this = self.epoch(epochs)
        for places in this.heads(np.full(this.partitions, steps * self.order.batch_size // this.partitions)):
            yield selection.ids(places), 1

    def epoch(self, epoch: int) -> Pass:
        """The pass of an epoch. The newest two are kept: a loader reads ahead over an epoch's end."""
        if epoch not in self._passes:
            length = self.steps_per_epoch * self.order.batch_size
            self._passes[epoch] = Pass(self._chunks, length, self.layouts[0], self.order.seed, PASS, epoch)
            while len(self._passes) > 2:
                self._passes.popitem(last=False)
        return self._passes[epoch]

    def _of_epoch(self, epoch: int, steps: Ids, places: Ids) -> Draws:
        this = self.epoch(epoch)
        slice_length = self.order.batch_size // this.partitions
        partition, place = np.divmod(places, slice_length)
        positions = this.edges[partition] + place + steps[:, None] * slice_length
        spots = Spots(*(array.reshape(positions.shape) for array in this.at(positions.ravel())))
        ids = self.selections[0].ids(spots.places.ravel()).reshape(positions.shape)
        visits = np.full_like(ids, epoch)
        return Draws(ids, visits, np.zeros_like(ids), spots.chunk_first, spots.chunk_count)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Global batches of an epoch. Raises ConfigError where there is not one."""
    if num_samples < batch_size:
        raise ConfigError(
            f"train.batch_size is {batch_size}, but the dataset has only {num_samples} samples; "
            f"set train.batch_size to at most {num_samples}"
        )
    return num_samples // batch_size


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
