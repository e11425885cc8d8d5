"""Which samples of a dataset are meant: all of them, or those of a mask. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dinowds.errors import DatasetError

Ids = NDArray[np.int64]
Mask = NDArray[np.uint8]
"""One bit a sample, in the order of sample ids; the first sample is the lowest bit of the first byte."""

_BLOCK = 64  # bytes of the mask for each number that is held: 512 samples, an eighth of the mask's own size
_SLICE = 1 << 14  # blocks that are looked into at once: 1 MB
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ONES = _BITS.sum(axis=1, dtype=np.uint8)
"""uint8 [256]: ones of a byte."""
_NTH_ONE = np.argsort(1 - _BITS, axis=1, kind="stable")
"""int64 [256, 8]: where the nth one of a byte is."""


class Selection:
    """Samples of a dataset in the order of their ids; the one at place i is the i-th of them.

    Without a mask place and id are the same. With one, what is held is the mask (a bit a sample) and a number for each
    512 samples.
    """

    def __init__(self, shard_counts: Sequence[int] | NDArray[np.int64], mask: Mask | None = None) -> None:
        """
        Args:
            shard_counts: samples of each shard.
            mask: which are selected; None for all.

        Raises:
            DatasetError: the mask is not of as many samples.
        """
        totals = np.asarray(shard_counts, dtype=np.int64)
        self._first_id: Ids = np.concatenate([[0], np.cumsum(totals)])
        self.mask = mask
        self.counts: Ids = totals
        """int64 [shards]: selected samples of each shard."""
        if mask is None:
            self._num_selected = int(self._first_id[-1])
            return
        num_samples = int(self._first_id[-1])
        if mask.dtype != np.uint8 or mask.shape != (-(-num_samples // 8),):
            raise DatasetError(
                f"a mask of {mask.shape} bytes does not fit {num_samples} samples; make the subset again"
            )
        self._before = _ones_before(mask)  # int64 [blocks + 1]
        before_shard = self._rank(mask, self._first_id)
        self.counts = np.diff(before_shard)
        self._num_selected = int(before_shard[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        totals = np.diff(self._first_id)
        if isinstance(self.mask, np.memmap) and self.mask.filename is not None:
            return (_reopened, (totals, str(self.mask.filename), xxhash.xxh3_128_digest(self.mask.data)))
        return (Selection, (totals, self.mask))

    def __len__(self) -> int:
        return self._num_selected

    def ids(self, places: Ids) -> Ids:
        """int64 [n] places, each 0 … len − 1 → int64 [n] sample ids."""
        if self.mask is None:
            return places
        blocks = np.searchsorted(self._before, places, side="right") - 1
        nth = places - self._before[blocks]  # of the ones of its block
        ids = blocks * (8 * _BLOCK)
        for start in range(0, len(places), _SLICE):
            part = slice(start, start + _SLICE)
            packed = _blocks(self.mask, blocks[part])
            ones = _ONES[packed]
            up_to = np.cumsum(ones, axis=1, dtype=np.int64)
            byte = np.argmax(up_to > nth[part, None], axis=1)
            which = (np.arange(len(byte)), byte)
            ids[part] += 8 * byte + _NTH_ONE[packed[which], nth[part] - up_to[which] + ones[which]]
        return ids

    def all_ids(self) -> Ids:
        """int64 [len]: the ids of all selected samples."""
        if self.mask is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.chosen())

    def chosen(self) -> NDArray[np.bool_]:
        """bool [samples of the dataset]: whether each is selected."""
        num_samples = int(self._first_id[-1])
        if self.mask is None:
            return np.ones(num_samples, dtype=np.bool_)
        return np.unpackbits(self.mask, count=num_samples, bitorder="little").view(np.bool_)

    def __and__(self, mask: Mask) -> Selection:
        """Those that `mask` selects too."""
        return Selection(np.diff(self._first_id), mask if self.mask is None else self.mask & mask)

    def _rank(self, mask: Mask, ids: Ids) -> Ids:
        """Selected samples before each of `ids`."""
        blocks, bits = np.divmod(ids, 8 * _BLOCK)
        ranks: Ids = self._before[blocks]
        starts = 8 * np.arange(_BLOCK)
        for start in range(0, len(ids), _SLICE):
            part = slice(start, start + _SLICE)
            taken = np.clip(bits[part, None] - starts, 0, 8)  # bits of each byte that are before the id
            ranks[part] += _ONES[_blocks(mask, blocks[part]) & ((1 << taken) - 1)].sum(axis=1, dtype=np.int64)
        return ranks


def pack_mask(chosen: NDArray[np.bool_]) -> Mask:
    """bool [samples] → mask."""
    return np.packbits(chosen, bitorder="little")


def open_mask(path: str) -> Mask:
    """Map the mask that is stored at `path`; raises ValueError or OSError where there is none."""
    mask: Mask = np.load(path, mmap_mode="r", allow_pickle=False)
    return mask


def _reopened(totals: Ids, path: str, digest: bytes) -> Selection:
    try:
        mask = open_mask(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be opened again ({error}); restore it") from None
    if xxhash.xxh3_128_digest(mask.data) != digest:
        raise DatasetError(f"{path}: the subset was made anew while it was in use; start again")
    return Selection(totals, mask)


def _ones_before(mask: Mask) -> Ids:
    """int64 [blocks + 1]: ones before each block of the mask; the last one is for all of it."""
    sums = [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(mask), _SLICE * _BLOCK):
        ones = _ONES[mask[start : start + _SLICE * _BLOCK]]
        sums.append(np.add.reduceat(ones, np.arange(0, len(ones), _BLOCK), dtype=np.int64))
    before: Ids = np.cumsum(np.concatenate(sums))
    return before


def _blocks(mask: Mask, blocks: Ids) -> NDArray[np.uint8]:
    """uint8 [n, 64]: blocks of the mask; what lies behind its end is 0."""
    places = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
    packed: NDArray[np.uint8] = np.where(places < len(mask), mask[np.minimum(places, len(mask) - 1)], np.uint8(0))
    return packed
