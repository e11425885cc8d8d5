"""A random sample of samples, spread evenly over groups. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dinowds.data.subsets.selection import Ids
from dinowds.shard.repeats import ranks_among_equals


def even_shares(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Of groups that have `counts` [G] each, how many to take, int64 [G]: `total` of them in all, or all there are.

    As many of each group as of any other, or all that it has; of the last few, the first groups get one more.
    """
    low, high = 0, int(counts.max(initial=0))
    while low < high:  # the most that each may give without there being more than `total`
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(counts, level).sum() <= total else (low, level - 1)
    shares = np.minimum(counts, low)
    more = np.flatnonzero(counts > low)[: max(0, total - int(shares.sum()))]
    shares[more] += 1
    return shares


def draw_evenly(groups: NDArray[np.integer], total: int, seed: int) -> Ids:
    """Places of samples, int64, ascending: `total` of [N], or all, by `even_shares` of their groups [N].

    Which ones of a group is at random, drawn by `seed`.
    """
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shares = even_shares(counts, total) if len(names) else counts
    codes = codes.reshape(-1)[shuffled]
    return np.sort(shuffled[ranks_among_equals(codes) < shares[codes]])
