"""Cohorts drawn in given proportions, each with passes of its own.

A cohort's draws are numbered through the whole run: draw j is place j mod N of its pass ⌊j / N⌋, so that each of its N
samples is drawn before any is drawn twice. A cycle of batches has whole numbers of draws of every cohort, spread evenly
over it; which draws a batch has is arithmetic.
"""

from __future__ import annotations

import difflib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dinowds.data.order.passes import Chunks, Layout, Pass, Spots, partition_edges
from dinowds.data.order.permutation import Keys, draw_keys, permute
from dinowds.data.order.plan import PASS, Draws, Ids, Order, Plan, Seen, steps_per_epoch
from dinowds.data.subsets.selection import Selection
from dinowds.errors import ConfigError

_CYCLE_DRAWS = 1 << 14  # at least so many are in a cycle: proportions are exact to 1 in this many
_GOLDEN = (5**0.5 - 1) / 2


class WeightedPlan(Plan):
    """An epoch is as long as one that draws each sample of the weighted cohorts once."""

    def __init__(self, cohorts: Mapping[str, Selection], order: Order) -> None:
        """
        Args:
            cohorts: the selected samples of each cohort of the dataset, in the manifest's order.

        Raises:
            ConfigError: a weight that cannot be, or fewer samples than one global batch.
        """
        weights = checked_weights(cohorts, order.weights)
        names = [name for name in cohorts if name in weights]
        shares = [weights[name] for name in names]
        self.selections = [cohorts[name] for name in names]
        for name in names:
            if not len(cohorts[name]):
                raise ConfigError(f"data.weights: no sample of cohort {name!r} is selected; give it a weight of 0")
        self._numbers = [list(cohorts).index(name) for name in names]
        self._chunks = [Chunks(selection.counts, order.chunk_size) for selection in self.selections]
        self.order = order.resolved(sum(len(chunks) for chunks in self._chunks))
        self.steps_per_epoch = steps_per_epoch(sum(map(len, self.selections)), order.batch_size)
        self._lengths = np.array([len(selection) for selection in self.selections], dtype=np.int64)
        self._cycle = -(-_CYCLE_DRAWS // order.batch_size)
        self._counts = apportion(np.array(shares), self._cycle * order.batch_size)
        for name, count in zip(names, self._counts, strict=True):
            if count == 0:
                raise ConfigError(
                    f"data.weights: {name} is {order.weights[name]}, less than 1 in {_CYCLE_DRAWS} of all; "
                    "raise it, or leave the cohort out with a weight of 0"
                )
        groups = interleave(self._counts)
        ranks = np.empty_like(groups)
        for group, count in enumerate(self._counts):
            ranks[groups == group] = np.arange(count)
        self._groups, self._ranks = (array.reshape(self._cycle, order.batch_size) for array in (groups, ranks))
        self.layouts = [self._layout(len(chunks), share) for chunks, share in zip(self._chunks, shares, strict=True)]
        self._edges = [
            partition_edges(len(selection), layout.partitions)
            for selection, layout in zip(self.selections, self.layouts, strict=True)
        ]
        self._passes: OrderedDict[tuple[int, int], Pass] = OrderedDict()

    def _layout(self, num_chunks: int, share: float) -> Layout:
        """A cohort has its share of the pool, and one partition of one window where it fits into that."""
        partitions, window_chunks = self.order.layout
        pool = max(1, round(share * partitions * window_chunks))
        return Layout(1, pool) if num_chunks <= pool else Layout(partitions, -(-pool // partitions))

    def _is_one_window(self, group: int) -> bool:
        partitions, window_chunks = self.layouts[group]
        return partitions == 1 and len(self._chunks[group]) <= window_chunks

    def draws(self, steps: Sequence[int], start: int = 0, stop: int | None = None) -> Draws:
        cycles, rows = np.divmod(np.asarray(steps, dtype=np.int64), self._cycle)
        groups = self._groups[rows]
        numbers = np.asarray(self._ranks[rows] + cycles[:, None] * self._counts[groups], dtype=np.int64)
        visits, places = np.divmod(numbers, self._lengths[groups])
        keys, positions = self._dealt(groups, numbers, places)
        order = np.argsort(keys, axis=1, kind="stable")[:, start:stop]
        groups, visits, positions = (np.take_along_axis(array, order, 1) for array in (groups, visits, positions))
        draws = Draws(np.empty_like(groups), visits, groups, np.empty_like(groups), np.empty_like(groups))
        for group in np.unique(groups).tolist():
            mine = groups == group
            spots = self._at(group, visits[mine], positions[mine])
            draws.ids[mine] = self.selections[group].ids(spots.places)
            draws.chunk_first[mine], draws.chunk_count[mine] = spots.chunk_first, spots.chunk_count
        return draws

    def _at(self, group: int, visits: Ids, positions: Ids) -> Spots:
        """What the streams of the passes `visits` of a cohort have at `positions`; int64 [n]."""
        unique, which = np.unique(visits, return_inverse=True)
        if self._is_one_window(group):  # so one permutation is enough; a batch can have many of a small cohort
            moved = permute(positions, int(self._lengths[group]), self._keys_of(group, unique), which)
            return Spots(moved, *self._chunks[group].of(moved))
        spots = Spots(*(np.empty_like(positions) for _ in Spots._fields))
        for visit in unique.tolist():
            mine = visits == visit
            found = self._pass(group, visit).at(positions[mine])
            for array, part in zip(spots, found, strict=True):
                array[mine] = part
        return spots

    def _keys_of(self, group: int, visits: Ids) -> Keys:
        """uint64 [visits, ROUNDS]."""
        return np.stack([draw_keys(self.order.seed, PASS, visit, self._numbers[group]) for visit in visits.tolist()])

    def seen(self, until_step: int) -> Seen:
        cycles, row = divmod(until_step, self._cycle)
        numbers = cycles * self._counts + np.bincount(self._groups[:row].ravel(), minlength=len(self._counts))
        visits, places = np.divmod(numbers, self._lengths)
        return Seen(visits.tolist(), self._pieces(visits.tolist(), places.tolist()))

    def _pieces(self, visits: list[int], places: list[int]) -> Iterator[tuple[Ids, int]]:
        for group, (visit, drawn) in enumerate(zip(visits, places, strict=True)):
            if not drawn:
                continue
            if self._is_one_window(group):
                seen = np.arange(drawn, dtype=np.int64)
                yield self.selections[group].ids(self._at(group, np.full_like(seen, visit), seen).places), 1
                continue
            this = self._pass(group, visit)
            for piece in this.heads(_num_dealt(drawn, np.diff(this.edges))):
                yield self.selections[group].ids(piece), 1

    def _dealt(self, groups: Ids, numbers: Ids, places: Ids) -> tuple[NDArray[np.float64], Ids]:
        """By what the draws of a batch are ordered, and where in the streams of their passes they are.

        Draws of the same partition lie together, so that each host reads most of its own partitions alone. Draws of a
        cohort with one partition are spread over the batch.
        """
        keys, positions = np.asarray(numbers * _GOLDEN % 1, dtype=np.float64), places.copy()
        for group, edges in enumerate(self._edges):
            if (partitions := len(edges) - 1) > 1:
                mine = groups == group
                partition, positions[mine] = _deal(places[mine], edges)
                keys[mine] = (partition + 0.5) / partitions
        return keys, positions

    def _pass(self, group: int, visit: int) -> Pass:
        if (group, visit) not in self._passes:
            length, key = int(self._lengths[group]), (self.order.seed, PASS, visit, self._numbers[group])
            self._passes[group, visit] = Pass(self._chunks[group], length, self.layouts[group], *key)
            while len(self._passes) > 2 * len(self.selections):
                self._passes.popitem(last=False)
        self._passes.move_to_end((group, visit))
        return self._passes[group, visit]


def _deal(places: Ids, edges: Ids) -> tuple[Ids, Ids]:
    """Deal the places 0 … N − 1 of a pass to its partitions in rounds: (partition, position in the stream).

    A round goes to partitions that are far apart, so that the few draws that a batch has of a cohort fall to all hosts
    alike. Partitions differ by at most one place; the last round deals to the longer ones alone.
    """
    lengths = np.diff(edges)
    rounds, turn = np.divmod(places, len(lengths))
    is_last = rounds == lengths.min()
    partition = far_apart(len(lengths))[turn]
    partition[is_last] = _last_round(lengths)[turn[is_last]]
    return partition, edges[partition] + rounds


def _num_dealt(drawn: int, lengths: Ids) -> Ids:
    """How many of the first `drawn` places of a pass went to each partition."""
    rounds, more = divmod(drawn, len(lengths))
    dealt: Ids = np.minimum(lengths, rounds)
    turns = far_apart(len(lengths)) if rounds < lengths.min() else _last_round(lengths)
    dealt[turns[:more]] += 1
    return dealt


def _last_round(lengths: Ids) -> Ids:
    longer = np.flatnonzero(lengths > lengths.min())
    return longer[far_apart(len(longer))]


def far_apart(count: int) -> Ids:
    """A permutation of `count` in which neighbours, and neighbours of neighbours, are far apart."""
    return np.argsort(np.argsort(np.arange(count) * _GOLDEN % 1, kind="stable"), kind="stable")


def checked_weights(cohorts: Collection[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Weights above 0, scaled to a sum of 1.

    Raises:
        ConfigError: a cohort that does not exist or has no weight, a weight that is negative or not finite, or none
            above 0.
    """
    for name, weight in weights.items():
        if name not in cohorts:
            near = difflib.get_close_matches(name, cohorts, n=1)
            raise ConfigError(
                f"data.weights: the dataset has no cohort {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(cohorts)}")
            )
        if not 0 <= weight < math.inf:
            raise ConfigError(f"data.weights: {name} is {weight}, expected a finite number, 0 or more")
    if missing := [name for name in cohorts if name not in weights]:
        raise ConfigError(f"data.weights: cohort {missing[0]!r} has none; give each cohort a weight, 0 to leave it out")
    total = sum(weights.values())
    if total <= 0:
        raise ConfigError("data.weights: all are 0; give at least one cohort a weight above 0")
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def apportion(shares: NDArray[np.float64], total: int) -> Ids:
    """Whole numbers in the proportions of `shares` (of sum 1) that add up to `total`: by largest remainders."""
    counts = np.floor(shares * total).astype(np.int64)
    order = np.argsort(counts - shares * total, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def interleave(counts: Ids) -> Ids:
    """int64 [sum of counts]: each group as often as it counts, as evenly spread as can be.

    Groups of equal counts begin at different times, or they would come all at once.
    """
    groups = np.repeat(np.arange(len(counts)), counts)
    starts = np.arange(1, len(counts) + 1) * _GOLDEN % 1
    when = np.concatenate(
        [(np.arange(n) + start) / n for n, start in zip(counts.tolist(), starts.tolist(), strict=True)]
    )
    return groups[np.argsort(when, kind="stable")]
