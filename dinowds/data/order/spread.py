"""A cap on the samples of one slide in a global batch, kept by moving samples between near batches.

The batches of an epoch are taken in blocks of 64 or more. While a batch has too many samples of a slide, it is paired
with the batch of its block that has fewest of it, and the samples of the two are dealt anew so that each has half of
every slide, and half of every partition's samples. This ends with no slide above the cap wherever the block has at most
cap · batches of it; where it has more, no batch has more than the block's mean, rounded up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dinowds.data.order.plan import Draws, Ids, Plan, Seen

BLOCK_STEPS = 64

Slides = NDArray[np.uint64]


class CappedPlan(Plan):
    """Another plan whose batches have at most `order.max_per_slide` samples of a slide."""

    def __init__(self, plan: Plan, slides_of: Callable[[Ids], Slides]) -> None:
        """`slides_of`: sample ids, int64 [n] → a number for the slide of each, uint64 [n]; 0 where it is unknown."""
        assert plan.order.max_per_slide is not None
        self._plan, self._slides_of, self._cap = plan, slides_of, plan.order.max_per_slide
        self.order, self.steps_per_epoch = plan.order, plan.steps_per_epoch
        self.selections, self.layouts = plan.selections, plan.layouts
        self._blocks: OrderedDict[tuple[int, int], Draws] = OrderedDict()

    def draws(self, steps: Sequence[int], start: int = 0, stop: int | None = None) -> Draws:
        found = []
        for step in steps:
            begin, end = self._block_of(step)
            found.append([array[step - begin, start:stop] for array in self._block(begin, end)])
        return Draws(*(np.stack(arrays) for arrays in zip(*found, strict=True)))

    def seen(self, until_step: int) -> Seen:
        # Samples move within a block: before it, as many were drawn as without a cap.
        begin, _ = self._block_of(until_step)
        passes, pieces = self._plan.seen(begin)
        steps = range(begin, until_step)
        return Seen(passes, chain(pieces, ((self.ids(step), 1) for step in steps)))

    def _block_of(self, step: int) -> tuple[int, int]:
        """First step and end of the block: the last one of an epoch takes the steps that do not fill another."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        block = min(inside // BLOCK_STEPS, max(0, self.steps_per_epoch // BLOCK_STEPS - 1))
        is_last = (block + 2) * BLOCK_STEPS > self.steps_per_epoch
        first = epoch * self.steps_per_epoch
        return first + block * BLOCK_STEPS, first + (self.steps_per_epoch if is_last else (block + 1) * BLOCK_STEPS)

    def _block(self, begin: int, end: int) -> Draws:
        if (begin, end) not in self._blocks:
            draws = self._plan.draws(range(begin, end))
            slides = self._slides_of(draws.ids.ravel()).reshape(draws.ids.shape)
            moved = spread(slides, self.order.batch_size // self.order.layout.partitions, self._cap)
            self._blocks[begin, end] = Draws(*(array.ravel()[moved] for array in draws))
            while len(self._blocks) > 2:
                self._blocks.popitem(last=False)
        return self._blocks[begin, end]


def spread(slides: Slides, slice_length: int, cap: int) -> Ids:
    """Where the samples of a block come from, so that each row has at most `cap` of a slide.

    Args:
        slides: uint64 [steps, places]; 0 is no slide and has no cap.
        slice_length: places of a partition's slice; samples stay within their slice of a row.

    Returns:
        int64 [steps, places]: positions in `slides.ravel()`.
    """
    num_steps, num_places = slides.shape
    names, codes = np.unique(slides, return_inverse=True)
    codes = codes.reshape(slides.shape)
    counts = np.zeros((len(names), num_steps), dtype=np.int64)
    np.add.at(counts, (codes, np.arange(num_steps)[:, None]), 1)
    counts[names == 0] = 0
    moved = np.arange(slides.size, dtype=np.int64).reshape(slides.shape)
    limits = np.maximum(cap, -(-counts.sum(axis=1) // num_steps))
    slices = np.tile(np.arange(num_places) // slice_length, 2)
    while len(over := np.argwhere(counts > limits[:, None])):
        slide, step = over[0]
        # The next step after this one that has fewest of the slide: none is everybody's other.
        other = (step + 1 + int(np.argmin(np.roll(counts[slide], -(step + 1))))) % num_steps
        pair = [step, other]
        is_second = halve(slices, np.concatenate(codes[pair]))
        order = np.lexsort((slices, is_second))
        codes[pair] = np.concatenate(codes[pair])[order].reshape(2, -1)
        moved[pair] = np.concatenate(moved[pair])[order].reshape(2, -1)
        for row in pair:
            counts[:, row] = np.bincount(codes[row], minlength=len(names))
        counts[names == 0] = 0
    return moved


def halve(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Split edges in two halves such that each node has half of its edges in each, give or take one.

    The edges of each node are paired, and the two of a pair go to different halves; with two kinds of nodes the pairs
    form even cycles, which can always be coloured so (Euler splitting of a bipartite graph).

    Args:
        first, second: int64 [n], n even: the nodes of each edge; an even number of edges at each node of `first`.

    Returns:
        bool [n].
    """
    by_first, by_second = _partners(first), _partners(second)
    # Two steps along a cycle lead to an edge of the same half: the least edge of the half's orbit names it.
    jump, least = by_first[by_second], np.arange(len(first))
    for _ in range(len(first).bit_length()):
        least = np.minimum(least, least[jump])
        jump = jump[jump]
    return least > least[by_second]


def _partners(nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pair the edges of each node; those left over, one of a node, are paired among themselves."""
    order = np.argsort(nodes, kind="stable")
    values = nodes[order]
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    place = np.arange(len(nodes)) - np.repeat(begins, np.diff(np.append(begins, len(nodes))))
    has_next = np.append(values[1:] == values[:-1], False)
    heads = np.flatnonzero((place % 2 == 0) & has_next)
    alone = np.flatnonzero((place % 2 == 0) & ~has_next)
    pairs = np.concatenate([np.stack([order[heads], order[heads + 1]]), order[alone].reshape(-1, 2).T], axis=1)
    partners = np.empty(len(nodes), dtype=np.int64)
    partners[pairs[0]], partners[pairs[1]] = pairs[1], pairs[0]
    return partners
