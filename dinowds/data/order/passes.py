"""The order of one pass over a selection of samples, as pure functions of numbers.

    all chunks ── permuted ──► one stream of places
    the stream's first M places are P equal partitions; those that are left out follow the last one;
    each partition is cut into equal windows of about W chunks, whose places are permuted.

What is held are numbers a shard and a window, never a number a chunk or a sample: 10⁹ samples take milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinowds.data.order.permutation import Keys, draw_keys, permute, unpermute

Places = NDArray[np.int64]

_CHUNKS, _WINDOW = 0, 1  # streams of keys, kept apart by the seed's spawn key
_PIECE = 1 << 20  # places that are listed at once


class Chunks:
    """All chunks of a selection: runs of `chunk_size` of its places; the last one of a shard may be shorter."""

    def __init__(self, shard_counts: NDArray[np.int64], chunk_size: int) -> None:
        """`shard_counts`: int64 [shards], selected samples of each shard."""
        self.chunk_size = chunk_size
        self._first_place: Places = np.concatenate([[0], np.cumsum(shard_counts, dtype=np.int64)])
        self._first_chunk: Places = np.concatenate([[0], np.cumsum(-(-shard_counts // chunk_size), dtype=np.int64)])
        short = np.flatnonzero(shard_counts % chunk_size)
        self.short: Places = self._first_chunk[short + 1] - 1
        """The chunks with fewer than `chunk_size` samples."""
        self.missing: Places = chunk_size - shard_counts[short] % chunk_size
        """How many each of `short` lacks."""

    @property
    def num_samples(self) -> int:
        return int(self._first_place[-1])

    def __len__(self) -> int:
        return int(self._first_chunk[-1])

    def spans(self, chunks: Places) -> tuple[Places, Places]:
        """First place and number of samples of each of `chunks`."""
        shard = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        first = self._first_place[shard] + (chunks - self._first_chunk[shard]) * self.chunk_size
        return first, np.minimum(self.chunk_size, self._first_place[shard + 1] - first)

    def of(self, places: Places) -> tuple[Places, Places]:
        """First place and number of samples of the chunk of each of `places`."""
        shard = np.searchsorted(self._first_place, places, side="right") - 1
        inside = (places - self._first_place[shard]) // self.chunk_size
        return self.spans(self._first_chunk[shard] + inside)


class Spots(NamedTuple):
    """Samples in the order of a pass; arrays are int64 [n]."""

    places: Places
    """In the selection."""
    chunk_first: Places
    """First place of each sample's chunk, as far as it lies in the same window."""
    chunk_count: Places
    """Samples of it there."""


class Layout(NamedTuple):
    """How a pass is cut into partitions, and these into windows."""

    partitions: int
    window_chunks: int
    """Chunks of a window, give or take half as many."""

    def num_windows(self, num_places: int, chunk_size: int) -> int:
        """Windows of each partition, for a pass over `num_places`."""
        return max(1, round(num_places / (self.partitions * self.window_chunks * chunk_size)))


class Pass:
    """The order of one pass. A window's order is computed when it is reached, and only where it is asked for."""

    def __init__(self, chunks: Chunks, length: int, layout: Layout, seed: int, *spawn_key: int) -> None:
        """
        Args:
            length: places of the stream that are used; at most all.
            seed: with `spawn_key`, what the pass is derived from.
        """
        self.length, self.partitions = length, layout.partitions
        self._chunks, self._layout, self._width = chunks, layout, layout.window_chunks
        self._seed, self._spawn_key = seed, spawn_key
        self._chunk_keys = draw_keys(seed, *spawn_key, _CHUNKS)
        self._cells = self._cell_starts()
        self.edges = partition_edges(length, layout.partitions)
        """int64 [partitions + 1]: places of the stream at which partitions begin, and the end."""
        self._windows = self._window_starts()
        self._window_keys: OrderedDict[int, Keys] = OrderedDict()
        self._open_cells: OrderedDict[int, Places] = OrderedDict()

    def _window_starts(self) -> Places:
        """Places of the stream at which windows begin, and the end.

        They are equal, so that none has so few chunks that its batches are poorly mixed. What is left out is in a
        window of the last partition, so that it is drawn as evenly as the rest.
        """
        count = self._layout.num_windows(self.length, self._chunks.chunk_size)
        ends = np.append(self.edges[1:-1], self._chunks.num_samples)
        starts = self.edges[:-1, None] + np.arange(count) * (ends - self.edges[:-1])[:, None] // count
        return np.append(np.unique(starts), self._chunks.num_samples)

    def _cell_starts(self) -> Places:
        """Places of the stream at which every `window_chunks`-th chunk begins, and the end.

        All chunks are full but the few short ones: it is enough to ask where those go.
        """
        num_cells = -(-len(self._chunks) // self._width)
        sizes = np.full(num_cells, self._width * self._chunks.chunk_size, dtype=np.int64)
        sizes[-1:] -= (num_cells * self._width - len(self._chunks)) * self._chunks.chunk_size
        short = unpermute(self._chunks.short, len(self._chunks), self._chunk_keys)
        np.subtract.at(sizes, short // self._width, self._chunks.missing)
        return np.concatenate([[0], np.cumsum(sizes)])

    def at(self, positions: Places) -> Spots:
        """What is at `positions` (int64 [n]) once windows are shuffled. Those from `length` on are left out."""
        if not len(positions):
            return Spots(positions, positions, positions)
        windows = np.searchsorted(self._windows, positions, side="right") - 1
        unique, which = np.unique(windows, return_inverse=True)
        starts, stops = self._windows[windows], self._windows[windows + 1]
        moved = permute(positions - starts, stops - starts, self._keys_of(unique), which)
        return self._in_stream(starts + moved, starts, stops)

    def stream(self, start: int, stop: int) -> Iterator[Places]:
        """Places in the selection at `start` … `stop − 1` of the stream before windows are shuffled, piece by piece."""
        for begin in range(start, stop, _PIECE):
            end = min(begin + _PIECE, stop)
            first, last = np.searchsorted(self._cells, [begin, end - 1], side="right") - 1
            chunks = np.arange(first * self._width, min((last + 1) * self._width, len(self._chunks)))
            places, counts = self._chunks.spans(permute(chunks, len(self._chunks), self._chunk_keys))
            found = np.repeat(places - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            yield found[begin - self._cells[first] : end - self._cells[first]]

    def heads(self, counts: Places) -> Iterator[Places]:
        """Places in the selection at the first `counts` (int64 [partitions]) positions of each partition, piece by
        piece and in no order: a whole window is a stretch of the stream, and need not be shuffled to be listed.
        """
        for start, stop in zip(self.edges[:-1].tolist(), (self.edges[:-1] + counts).tolist(), strict=True):
            window = int(self._windows[np.searchsorted(self._windows, stop, side="right") - 1])
            yield from self.stream(start, window)
            for begin in range(window, stop, _PIECE):
                yield self.at(np.arange(begin, min(begin + _PIECE, stop))).places

    def _keys_of(self, windows: Places) -> Keys:
        """uint64 [windows, ROUNDS]. Those asked for last are kept: as many as partitions are open, twice."""
        for window in windows.tolist():
            if window not in self._window_keys:
                self._window_keys[window] = draw_keys(self._seed, *self._spawn_key, _WINDOW, window)
            self._window_keys.move_to_end(window)
        keys = np.stack([self._window_keys[window] for window in windows.tolist()])
        _forget(self._window_keys, 2 * self.partitions)
        return keys

    def _in_stream(self, positions: Places, starts: Places, stops: Places) -> Spots:
        """What is at `positions` of the stream of chunks, before windows are shuffled.

        A chunk that lies across the edge of a window is two there: `starts` and `stops` are those of the windows.
        """
        cells = np.unique(np.searchsorted(self._cells, positions, side="right") - 1)
        self._open(cells)
        first, counts, ends = np.concatenate([self._open_cells[cell] for cell in cells.tolist()], axis=1)
        _forget(self._open_cells, 4 * self.partitions)
        chunk = np.searchsorted(ends, positions, side="right")
        begins, ends, first = (ends - counts)[chunk], ends[chunk], first[chunk]
        lower = np.maximum(begins, starts)
        return Spots(first + positions - begins, first + lower - begins, np.minimum(ends, stops) - lower)

    def _open(self, cells: Places) -> None:
        """Look up the chunks of those cells that are not at hand, all at once: int64 [3, chunks] a cell, with each
        chunk's first place, its samples, and where it ends in the stream.
        """
        missing = [cell for cell in cells.tolist() if cell not in self._open_cells]
        if missing:
            starts = np.array(missing, dtype=np.int64) * self._width
            stops = np.minimum(starts + self._width, len(self._chunks))
            chunks = np.concatenate([np.arange(*pair) for pair in zip(starts, stops, strict=True)])
            spans = np.stack(self._chunks.spans(permute(chunks, len(self._chunks), self._chunk_keys)))
            for cell, part in zip(missing, np.split(spans, np.cumsum(stops - starts)[:-1], axis=1), strict=True):
                ends = self._cells[cell] + np.cumsum(part[1])
                self._open_cells[cell] = np.concatenate([part, ends[None]])
        for cell in cells.tolist():
            self._open_cells.move_to_end(cell)


def partition_edges(length: int, partitions: int) -> Places:
    """int64 [partitions + 1]: where equal partitions of `length` places begin, and the end."""
    return np.arange(partitions + 1, dtype=np.int64) * length // partitions


def _forget(kept: OrderedDict[int, NDArray[Any]], limit: int) -> None:
    while len(kept) > limit:
        kept.popitem(last=False)
