"""Permutations that are computed place by place, so that they take no memory and no time to set up.

A Feistel network shuffles the 2^b ≥ n numbers of b bits; one that lands outside 0 … n − 1 is sent through again until
it lands inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). 24 rounds, as
Mitchell et al., "Bandwidth-optimal random shuffling for GPUs" (2022), found good for small n too. Only integer
arithmetic and `SeedSequence` are used: the numbers are the same with every version of numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Keys = NDArray[np.uint64]

ROUNDS = 24
_MIN_BITS = 6  # narrower halves hold too few functions to shuffle well
_BLOCK = 1 << 14  # elements that stay in the processor's cache through all rounds
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_HALF = np.uint64(32)


def draw_keys(seed: int, *spawn_key: int) -> Keys:
    """uint64 [ROUNDS]: the keys of one permutation."""
    keys: NDArray[Any] = np.random.SeedSequence(seed, spawn_key=spawn_key).generate_state(ROUNDS, np.uint64)
    return keys


def permute(places: Places, sizes: Places | int, keys: Keys, which: Places | None = None) -> Places:
    """Where each of `places` goes.

    Args:
        places: int64 [n], each 0 … size − 1.
        sizes: of the permutation, at most 2^62; one for all, or int64 [n].
        keys: uint64 [ROUNDS] for all; with `which`, [k, ROUNDS].
        which: int64 [n]: the row of `keys` that is each one's.
    """
    return _walk(places, sizes, keys, which, inverse=False)


def unpermute(places: Places, sizes: Places | int, keys: Keys, which: Places | None = None) -> Places:
    """Which place goes to each of `places`: the inverse of `permute`."""
    return _walk(places, sizes, keys, which, inverse=True)


def _walk(places: Places, sizes: Places | int, keys: Keys, which: Places | None, inverse: bool) -> Places:
    result = np.zeros(len(places), dtype=np.int64)
    limits = np.broadcast_to(np.asarray(sizes, dtype=np.int64), len(places))
    for start in range(0, len(places), _BLOCK):
        part = slice(start, start + _BLOCK)
        open_ = np.flatnonzero(limits[part] > 1) + start  # one place alone stays where it is, and would walk for long
        if len(open_):
            own_keys = keys if which is None else np.ascontiguousarray(keys[which[open_]].T)
            result[open_] = _walk_block(places[open_], limits[open_], own_keys, inverse)
    return result


def _walk_block(places: Places, limits: Places, keys: Keys, inverse: bool) -> Places:
    """`keys` is uint64 [ROUNDS] or [ROUNDS, n]."""
    result = _shuffle(places.astype(np.uint64), limits, keys, inverse).astype(np.int64)
    outside = np.flatnonzero(result >= limits)
    while len(outside):
        own_keys = keys[:, outside] if keys.ndim == 2 else keys
        moved = _shuffle(result[outside].astype(np.uint64), limits[outside], own_keys, inverse).astype(np.int64)
        result[outside] = moved
        outside = outside[moved >= limits[outside]]
    return result


def _shuffle(numbers: NDArray[np.uint64], limits: Places, keys: Keys, inverse: bool) -> NDArray[np.uint64]:
    """One pass through the network of the smallest even-split domain that holds 0 … limit − 1."""
    bits = np.maximum(np.frexp((limits - 1).astype(np.float64))[1], _MIN_BITS).astype(np.uint64)
    low_bits = bits // np.uint64(2)
    masks = (np.uint64(1) << low_bits) - np.uint64(1), (np.uint64(1) << (bits - low_bits)) - np.uint64(1)
    halves = [numbers & masks[0], numbers >> low_bits]
    for i in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        changed = i % 2
        halves[changed] ^= _mix(halves[1 - changed], keys[i]) & masks[changed]
    joined: NDArray[np.uint64] = halves[0] | (halves[1] << low_bits)
    return joined


def _mix(half: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """32 bits that depend on all of `half` and `key`."""
    mixed = half + key
    mixed *= _MIX[0]
    mixed ^= mixed >> _HALF
    mixed *= _MIX[1]
    mixed >>= _HALF
    return mixed
