"""Few groups out of many: those that plots have colours for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinowds.report.plots import NUM_SERIES


@dataclass(frozen=True)
class Groups:
    names: Sequence[str]
    codes: NDArray[np.int64]
    """[n]: positions in `names`."""


def main_groups(codes: NDArray[np.integer], names: Sequence[str], most: int = NUM_SERIES) -> Groups:
    """Codes [n], positions in `names` → those of the `most` largest groups that have anything, in the order of `names`.

    Where there are more, the last one is of all others. A code of -1 is a group after all `names`, 'none'.
    """
    codes = np.where(codes < 0, len(names), codes).astype(np.int64)
    counts = np.bincount(codes, minlength=len(names) + 1)
    used = np.flatnonzero(counts)
    kept = used if len(used) <= most else np.sort(used[np.argsort(-counts[used], kind="stable")[: most - 1]])
    places = np.full(len(counts), len(kept))
    places[kept] = np.arange(len(kept))
    found = [[*names, "none"][code] for code in kept.tolist()]
    if len(kept) < len(used):
        found.append(f"{len(used) - len(kept):,} others")
    return Groups(found, places[codes])
