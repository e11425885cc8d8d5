"""Samples whose payloads are the same, byte for byte. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinowds.data.subsets.selection import Ids
from dinowds.report.dataset.columns import Columns
from dinowds.shard.choice.quality import equal_digests


@dataclass(frozen=True)
class Duplicates:
    """Payloads that several samples have."""

    copies: int
    """Samples whose payload an earlier one has: what `dinowds shard --drop-duplicates` would leave out."""
    groups: int
    """Payloads that are there several times."""
    across_slides: int
    """Of these, the ones in several known slides."""
    across_cohorts: int
    across_labels: int
    """In samples with different labels."""
    largest: tuple[Ids, ...]
    """Ids of the samples of the largest groups, the largest first."""


def find_groups(columns: Columns, most: int) -> Duplicates:
    """Count groups of equal payloads, and give the `most` largest; of equally large ones, the earlier."""
    rows, is_repeat = equal_digests(columns.digest)
    starts = np.flatnonzero(~is_repeat & np.append(is_repeat[1:], False))
    if not len(starts):
        return Duplicates(0, 0, 0, 0, 0, ())
    is_member = is_repeat.copy()
    is_member[starts] = True
    rows = rows[is_member]
    starts = np.flatnonzero(~is_repeat[is_member])
    counts = np.diff(starts, append=len(rows))
    order = np.lexsort((rows[starts], -counts))[:most]
    return Duplicates(
        copies=len(rows) - len(starts),
        groups=len(starts),
        across_slides=_differing(columns.slide[rows], starts, unknown=0),
        across_cohorts=_differing(columns.cohort[rows], starts),
        across_labels=_differing(columns.label[rows], starts, unknown=-1),
        largest=tuple(columns.ids[rows[starts[group] : starts[group] + counts[group]]] for group in order.tolist()),
    )


def _differing(values: NDArray[np.integer], starts: Ids, unknown: int = -1) -> int:
    """Groups, which begin at `starts`, whose values [n] differ; `unknown`, the least that there may be, is none."""
    most = np.maximum.reduceat(values, starts)
    filled = np.where(values == unknown, most.repeat(np.diff(starts, append=len(values))), values)
    return int(np.count_nonzero(np.minimum.reduceat(filled, starts) != most))
