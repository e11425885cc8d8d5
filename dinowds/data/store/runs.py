"""Which bytes of a shard are read together: a chunk, or where not all of it is selected, its pieces."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset, Sample
from dinowds.data.order.plan import Plan
from dinowds.data.store.store import Run

MAX_GAP = 4096
"""Bytes between two payloads that are read over: those of neighbours are apart by the padding of one, its label's
member and the header of the next. Samples that are not selected are not read.
"""
_KEPT_CHUNKS = 1 << 14


class Runs:
    """The runs of the chunks of a plan. Those that were asked for last are kept."""

    def __init__(self, dataset: Dataset, plan: Plan) -> None:
        self._dataset, self._plan = dataset, plan
        self._kept: OrderedDict[tuple[int, int], tuple[list[int], list[Run]]] = OrderedDict()

    def of(self, sample: Sample, group: int, chunk_first: int, chunk_count: int) -> Run:
        """The run that holds the payload of `sample`, of the chunk in which the plan drew it."""
        key = (group, chunk_first)
        if key not in self._kept:
            self._kept[key] = self._of_chunk(sample.shard, self._plan.chunk_ids(group, chunk_first, chunk_count))
            if len(self._kept) > _KEPT_CHUNKS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        starts, runs = self._kept[key]
        return runs[bisect_right(starts, sample.offset) - 1]

    def _of_chunk(self, shard: int, ids: NDArray[np.int64]) -> tuple[list[int], list[Run]]:
        rows = self._dataset.rows(shard)
        local = ids - self._dataset.first_ids[shard]
        starts = rows.offset[local]
        runs = [Run(shard, start, stop) for start, stop in join_ranges(starts, starts + rows.size[local])]
        return [run.start for run in runs], runs


def run_of(sample: Sample) -> Run:
    """The payload alone."""
    return Run(sample.shard, sample.offset, sample.offset + sample.size)


def join_ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Join byte ranges, int64 [n] each and in ascending order, that are at most MAX_GAP apart."""
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > MAX_GAP) + 1
    firsts, lasts = np.append(0, breaks), np.append(breaks, len(starts)) - 1
    return list(zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True))
