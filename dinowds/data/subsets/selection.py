"""Which samples of a dataset are meant: all of them, or those of a mask. Pure numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dinowds.errors import DatasetError

Ids = NDArray[np.int64]
Mask = NDArray[np.uint8]
"""One bit a sample, in the order of sample ids; the first sample is the lowest bit of the first byte."""

_WORD = np.dtype("<u8")
_SLICE = 1 << 17  # words that are looked into at once: 1 MB
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_NTH_ONE = np.argsort(1 - _BITS, axis=1, kind="stable")
"""int64 [256, 8]: where the nth one of a byte is."""

_EACH_BYTE = np.uint64(0x0101010101010101)  # times a byte: that byte eight times; times a word: its bytes' running sums
_TOP_BITS = np.uint64(0x8080808080808080)
_TO_LAST_BYTE = np.uint64(56)


class Selection:
    """Samples of a dataset in the order of their ids; the one at place i is the i-th of them.

    Without a mask place and id are the same. With one, what is held is the mask (a bit a sample) and a number for each
    64 samples, of 32 bits where that is enough.
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
        before = _ones_before(mask)
        before_shard = _rank(mask, before, self._first_id)
        self._before = before.astype(np.uint32 if before[-1] < 1 << 32 else np.int64)  # [words + 1]
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
        words = np.searchsorted(self._before, places.astype(self._before.dtype), side="right") - 1
        return 64 * words + _nth_ones(_words(self.mask, words), places - self._before[words])

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


def pack_mask(chosen: NDArray[np.bool_]) -> Mask:
    """bool [samples] → mask."""
    return np.packbits(chosen, bitorder="little")


def mask_header(num_bytes: int) -> bytes:
    """How the .npy file of a mask of so many bytes begins, with every version of numpy."""
    about = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({num_bytes},), }}"
    line = about.encode() + b" " * (-(10 + len(about) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def open_mask(path: str, num_samples: int) -> Mask:
    """Map the mask of so many samples that is stored at `path`; raises ValueError or OSError where there is none."""
    num_bytes = -(-num_samples // 8)
    header = mask_header(num_bytes)
    with open(path, "rb") as file:
        if file.read(len(header)) != header or file.seek(0, os.SEEK_END) != len(header) + num_bytes:
            raise ValueError(f"it is no mask of {num_samples} samples")
        return np.memmap(file, np.uint8, "r", len(header), num_bytes)


def _reopened(totals: Ids, path: str, digest: bytes) -> Selection:
    try:
        mask = open_mask(path, int(totals.sum()))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be opened again ({error}); restore it") from None
    if xxhash.xxh3_128_digest(mask.data) != digest:
        raise DatasetError(f"{path}: the subset was made anew while it was in use; start again")
    return Selection(totals, mask)


def _ones_before(mask: Mask) -> Ids:
    """int64 [words + 1]: ones before each word of the mask; the last one is for all of it."""
    num_words = -(-len(mask) // 8)
    ones = np.zeros(num_words + 1, dtype=np.int64)
    for start in range(0, num_words, _SLICE):
        words = np.arange(start, min(start + _SLICE, num_words))
        ones[words + 1] = _ones_up_to(_words(mask, words)) >> _TO_LAST_BYTE
    before: Ids = np.cumsum(ones)
    return before


def _rank(mask: Mask, before: Ids, ids: Ids) -> Ids:
    """Selected samples before each of `ids`."""
    words, bits = np.divmod(ids, 64)
    of_word = _words(mask, words) & ((np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1))
    ranks: Ids = before[words] + (_ones_up_to(of_word) >> _TO_LAST_BYTE).astype(np.int64)
    return ranks


def _words(mask: Mask, places: Ids) -> NDArray[np.uint64]:
    """uint64 [n]: words of the mask; what lies behind its end is 0."""
    whole = mask[: len(mask) // 8 * 8].view(_WORD)
    last = np.zeros(8, dtype=np.uint8)
    last[: len(mask) % 8] = mask[whole.nbytes :]
    words = np.full(len(places), last.view(_WORD)[0], dtype=_WORD)
    is_whole = places < len(whole)
    words[is_whole] = whole[places[is_whole]]
    return words


def _ones_up_to(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64 [n]: in each byte of a word, the ones of the word up to and with that byte. Neighbours are added up."""
    pairs = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> np.uint64(2)) & np.uint64(0x3333333333333333))
    of_bytes = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    up_to: NDArray[np.uint64] = of_bytes * _EACH_BYTE
    return up_to


def _nth_ones(words: NDArray[np.uint64], nth: Ids) -> Ids:
    """int64 [n]: which bit of each word is its one number `nth`."""
    wanted, up_to = nth.astype(np.uint64), _ones_up_to(words)
    # A byte of `passed` has its top bit where the one that is wanted lies behind that byte.
    passed = ((wanted * _EACH_BYTE) | _TOP_BITS) - up_to
    shift = np.uint64(8) * ((((passed & _TOP_BITS) >> np.uint64(7)) * _EACH_BYTE) >> _TO_LAST_BYTE)
    of_byte = wanted - (((up_to << np.uint64(8)) >> shift) & np.uint64(0xFF))
    byte = (words >> shift) & np.uint64(0xFF)
    found: Ids = shift.astype(np.int64) + _NTH_ONE[byte.astype(np.intp), of_byte.astype(np.intp)]
    return found
