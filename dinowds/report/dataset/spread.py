"""How values are spread: histograms, and the five numbers of a box. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 48

_BINS_PER_OCTAVE = 64
_OCTAVES = 64  # a power of two, as bins are joined by twos


@dataclass(frozen=True)
class Box:
    """Of some values, without those that are NaN."""

    count: int
    low: float
    """Quantile 0.05."""
    first: float
    """Quantile 0.25."""
    median: float
    third: float
    """Quantile 0.75."""
    high: float
    """Quantile 0.95."""


@dataclass(frozen=True)
class Histogram:
    """Counts of groups of values in common bins."""

    edges: NDArray[np.float64]
    """[bins + 1]."""
    counts: NDArray[np.int64]
    """[groups, bins]."""


def box_of(values: NDArray[np.floating]) -> Box | None:
    """The five numbers of values [n]; None where all are NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    return Box(len(known), *np.quantile(known, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist())


def boxes_of(values: NDArray[np.floating], groups: NDArray[np.integer], num_groups: int) -> list[Box | None]:
    """Values [n] and the group 0 … num_groups - 1 of each → [num_groups] boxes."""
    order = np.argsort(groups, kind="stable")
    edges = np.searchsorted(groups[order], np.arange(num_groups + 1))
    ordered = values[order]
    return [box_of(ordered[start:stop]) for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]


def log_histogram(values: NDArray[np.int64], groups: NDArray[np.integer], num_groups: int) -> Histogram:
    """Whole numbers [n] from 1 in bins of equal ratio, a power of two of them an octave, from the least to the largest.

    There are at most 3 n^⅓ bins, and `MOST_BINS`. Smaller numbers count as 1.
    """
    if not len(values):
        return Histogram(np.ones(1), np.zeros((num_groups, 0), np.int64))
    bins = np.floor(np.log2(np.maximum(values, 1)) * _BINS_PER_OCTAVE).astype(np.int64)
    width = _OCTAVES * _BINS_PER_OCTAVE
    counts = np.bincount(groups.astype(np.int64) * width + bins, minlength=num_groups * width)
    counts = counts.reshape(num_groups, width)
    per_octave = float(_BINS_PER_OCTAVE)
    most = min(MOST_BINS, int(np.ceil(3 * len(values) ** (1 / 3))))
    while True:
        filled = np.flatnonzero(counts.any(axis=0))
        first, last = int(filled[0]), int(filled[-1])
        if last - first < most:
            break
        per_octave /= 2
        counts = counts.reshape(num_groups, -1, 2).sum(axis=2)
    return Histogram(2.0 ** (np.arange(first, last + 2) / per_octave), counts[:, first : last + 1])


def share_between(values: NDArray[np.floating], groups: NDArray[np.integer]) -> float | None:
    """Which share of the variance of values [n] lies between their groups, 0 to 1: epsilon squared (Kelley 1935).

    It is 0 in the mean where groups mean nothing, whatever the number of samples. Values that are NaN are left out.
    None for fewer than two groups, no more values than groups, or values that are all the same.
    """
    is_known = ~np.isnan(values)
    values = values[is_known].astype(np.float64)
    _, codes, counts = np.unique(groups[is_known], return_inverse=True, return_counts=True)
    if not 2 <= len(counts) < len(values):
        return None
    total = float(((values - values.mean()) ** 2).sum())
    means = np.bincount(codes, values) / counts
    within = float(((values - means[codes]) ** 2).sum())
    if total <= 1e-12 * float((values**2).sum()):
        return None
    share = 1 - (within / (len(values) - len(counts))) / (total / (len(values) - 1))
    return min(1.0, max(0.0, share))
