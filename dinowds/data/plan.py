"""The order of an epoch, as pure functions of numbers.

    chunks of all shards ── permuted by (seed, epoch) ──► one stream of N samples
    the stream's first T·B samples, T = ⌊N / B⌋, are cut into P equal partitions;
    every W chunks of the stream, cut at partition edges, are a window, permuted by (seed, epoch, window);
    global batch t = for each partition p in turn, its samples t·B/P … (t+1)·B/P − 1.

Nothing here depends on ranks, workers or what was read before: they only decide who reads which slice of a batch.
A sample is named by its id: its position in `samples.parquet`, counted over all shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinowds.errors import ConfigError

Ids = NDArray[np.int64]

_CHUNKS, _WINDOW, _SUBSTITUTE = range(3)  # streams of random numbers, kept apart by the seed's spawn key
_BLOCK = 1 << 16
_MAX_PARTITIONS = 64


def _generator(seed: int, *spawn_key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=spawn_key)))


@dataclass(frozen=True)
class Order:
    """What the order depends on, besides the dataset and the epoch."""

    batch_size: int
    seed: int
    chunk_size: int = 64
    window_chunks: int = 1024
    partitions: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_size", "window_chunks", "partitions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.partitions:
            raise ConfigError(
                f"data.partitions is {self.partitions}, which does not divide train.batch_size {self.batch_size}; "
                "leave data.partitions out to have it chosen"
            )


def choose_partitions(num_samples: int, batch_size: int, chunk_size: int, window_chunks: int) -> int:
    """The largest power of two, at most 64, that divides the batch and leaves each partition a full window.

    A dataset that fits into one window gets one partition and with it a uniform shuffle.
    """
    full_windows = num_samples // (chunk_size * window_chunks)
    partitions = 1
    while batch_size % (2 * partitions) == 0 and 2 * partitions <= min(_MAX_PARTITIONS, full_windows):
        partitions *= 2
    return partitions


class Chunks:
    """All chunks of a dataset: runs of `chunk_size` samples; the last one of a shard may be shorter.

    Held as numbers per shard, so that memory does not grow with samples.
    """

    def __init__(self, shard_counts: Sequence[int], chunk_size: int) -> None:
        self.chunk_size = chunk_size
        counts = np.asarray(shard_counts, dtype=np.int64)
        self._first_sample = np.concatenate([[0], np.cumsum(counts)])
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-counts // chunk_size))])

    @property
    def num_samples(self) -> int:
        return int(self._first_sample[-1])

    def __len__(self) -> int:
        return int(self._first_chunk[-1])

    def spans(self, chunks: NDArray[np.integer]) -> tuple[Ids, Ids]:
        """First sample id and number of samples of each chunk in `chunks`."""
        shard = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        first = self._first_sample[shard] + (chunks - self._first_chunk[shard]) * self.chunk_size
        return first, np.minimum(self.chunk_size, self._first_sample[shard + 1] - first)


class EpochPlan:
    """The order of one epoch. Holds one permutation of chunks; a window's order is made when it is reached."""

    def __init__(self, chunks: Chunks, order: Order, epoch: int) -> None:
        """Raises ConfigError if the dataset is smaller than one global batch."""
        self.order, self.epoch = order, epoch
        self._chunks = chunks
        self.num_steps = steps_per_epoch(chunks.num_samples, order.batch_size)
        self._permuted = np.arange(len(chunks), dtype=np.int32 if len(chunks) < 2**31 else np.int64)
        _generator(order.seed, _CHUNKS, epoch).shuffle(self._permuted)
        self._cells = self._cell_starts()
        self._partition_length = self.num_steps * order.batch_size // order.partitions
        partition_edges = np.arange(order.partitions + 1, dtype=np.int64) * self._partition_length
        inside = self._cells[self._cells < partition_edges[-1]]
        self._edges = np.union1d(inside, partition_edges)
        self._open_windows: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def _cell_starts(self) -> Ids:
        """Position in the stream at which every `window_chunks`-th chunk starts."""
        width = self.order.window_chunks
        sums = [np.zeros(1, dtype=np.int64)]
        for start in range(0, len(self._permuted), width * max(1, _BLOCK // width)):
            _, counts = self._chunks.spans(self._permuted[start : start + width * max(1, _BLOCK // width)])
            sums.append(np.add.reduceat(counts, np.arange(0, len(counts), width)))
        return np.cumsum(np.concatenate(sums))

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Ids:
        """Sample ids of places `start` … `stop − 1` of global batch `step` of this epoch; all of it by default."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of an epoch of {self.num_steps}")
        places = np.arange(start, self.order.batch_size if stop is None else stop, dtype=np.int64)
        slice_length = self.order.batch_size // self.order.partitions
        partition, place = np.divmod(places, slice_length)
        return self._at(partition * self._partition_length + step * slice_length + place)

    def substitute(self, sample: int, attempt: int) -> int:
        """The sample that stands in for an unreadable `sample`; `attempt` counts from 0."""
        generator = _generator(self.order.seed, _SUBSTITUTE, self.epoch, sample, attempt)
        return int(generator.integers(self._chunks.num_samples))

    def _at(self, positions: Ids) -> Ids:
        """Ids at positions of the shuffled stream."""
        ids = np.empty_like(positions)
        windows = np.searchsorted(self._edges, positions, side="right") - 1
        for window in np.unique(windows):
            mine = windows == window
            start = self._edges[window]
            ids[mine] = self._in_stream(start + self._shuffled(int(window))[positions[mine] - start])
        return ids

    def _shuffled(self, window: int) -> Ids:
        """Permutation of the places of a window. The newest are kept: one for each partition."""
        if window in self._open_windows:
            self._open_windows.move_to_end(window)
        else:
            length = int(self._edges[window + 1] - self._edges[window])
            generator = _generator(self.order.seed, _WINDOW, self.epoch, window)
            self._open_windows[window] = generator.permutation(length)  # int64
            while len(self._open_windows) > self.order.partitions:
                self._open_windows.popitem(last=False)
        return self._open_windows[window]

    def _in_stream(self, positions: Ids) -> Ids:
        """Ids at positions, all of one window, of the stream of chunks before windows are shuffled."""
        width = self.order.window_chunks
        cell = int(np.searchsorted(self._cells, positions[0], side="right")) - 1
        first, counts = self._chunks.spans(self._permuted[cell * width : (cell + 1) * width])
        ends = self._cells[cell] + np.cumsum(counts)
        chunk = np.searchsorted(ends, positions, side="right")
        ids: Ids = first[chunk] + positions - (ends - counts)[chunk]
        return ids


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Global batches of an epoch. Raises ConfigError where there is not one."""
    if num_samples < batch_size:
        raise ConfigError(
            f"train.batch_size is {batch_size}, but the dataset has only {num_samples} samples; "
            f"set train.batch_size to at most {num_samples}"
        )
    return num_samples // batch_size
