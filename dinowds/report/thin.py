"""Fewer points of a curve that look like all of them. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_SPARE = 4
"""Times as many points as asked for are kept until the end, so that the last thinning sees fine steps."""


def thin(x: Values, y: Values, limit: int) -> tuple[Values, Values]:
    """At most `limit` points, in the order of x: both ends, and the least and the largest of each of equal stretches.

    No peak or dip is lost, which a mean or every n-th point would lose. A curve that is short enough stays as it is.

    Args:
        x: [n], ascending.
        y: [n], finite.
        limit: at least 4.
    """
    if len(x) <= limit:
        return x, y
    num_stretches = (limit - 2) // 2
    stretch = np.minimum((x - x[0]) / max(x[-1] - x[0], 1) * num_stretches, num_stretches - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    num_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(x)))
    extremes = (np.flatnonzero(y == of.reduceat(y, starts)[num_of]) for of in (np.minimum, np.maximum))
    kept = np.zeros(len(x), bool)
    kept[[0, -1]] = True
    for places in extremes:
        kept[places[np.diff(num_of[places], prepend=-1) > 0]] = True  # the first where several are as low or high
    return x[kept], y[kept]


class Thinner:
    """`thin` of a curve that comes in pieces, in memory for a few times `limit` points."""

    def __init__(self, limit: int) -> None:
        self._limit, self._num_held = limit, 0
        self._pieces: list[tuple[Values, Values]] = []

    def add(self, x: Values, y: Values) -> None:
        """The next points. x goes on from where it was; points of a damaged file that do not are sorted in."""
        self._pieces.append((x, y))
        self._num_held += len(x)
        if self._num_held > 2 * _SPARE * self._limit:
            self._pieces = [thin(*self._all(), _SPARE * self._limit)]
            self._num_held = len(self._pieces[0][0])

    def points(self) -> tuple[Values, Values]:
        """At most `limit`."""
        return thin(*self._all(), self._limit)

    def _all(self) -> tuple[Values, Values]:
        if not self._pieces:
            return np.empty(0), np.empty(0)
        x, y = (np.concatenate(parts) for parts in zip(*self._pieces, strict=True))
        if (np.diff(x) < 0).any():
            order = np.argsort(x, kind="stable")
            x, y = x[order], y[order]
        return x, y
