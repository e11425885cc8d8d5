"""The cap on samples of one slide in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from dinowds.data.order.plan import EpochPlan, Ids, Order
from dinowds.data.order.spread import BLOCK_STEPS, CappedPlan, halve, spread
from dinowds.data.subsets.selection import Selection

COUNTS = [500] * 20
SLIDES = np.repeat(np.arange(1, 201, dtype=np.uint64), 50)  # sorted by slide, 50 samples each


def make_plan(slides: np.ndarray, order: Order) -> CappedPlan:
    return CappedPlan(EpochPlan(Selection(COUNTS), order), lambda ids: slides[ids])


def most_of_a_slide(slides: np.ndarray, ids: Ids) -> int:
    return max(int(np.bincount(row[row > 0].astype(np.int64)).max()) for row in slides[ids])


@pytest.mark.parametrize(
    ("batch", "partitions", "cap"),
    [(64, 8, 1), (64, 1, 1), (64, 64, 2), (60, 6, 1), (8, 2, 1), (100, 1, 2), (700, 7, 6)],
)
def test_cap__holds_in_every_batch_and_nothing_is_lost(batch: int, partitions: int, cap: int) -> None:
    order = Order(batch, 2, 8, 64, partitions, max_per_slide=cap)
    plain = EpochPlan(Selection(COUNTS), order)
    plan = make_plan(SLIDES, order)
    steps = range(2 * plan.steps_per_epoch)
    before, after = plain.draws(steps), plan.draws(steps)
    assert most_of_a_slide(SLIDES, before.ids) > cap
    assert most_of_a_slide(SLIDES, after.ids) <= cap
    width = batch // partitions
    for start in range(0, batch, width):  # exactly once, and each partition keeps its own samples
        own = slice(start, start + width)
        for epoch in range(2):
            rows = slice(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
            assert np.array_equal(np.sort(before.ids[rows, own], axis=None), np.sort(after.ids[rows, own], axis=None))
    origin = {
        int(sample): rest
        for sample, *rest in zip(*(array[: len(steps) // 2].ravel().tolist() for array in before), strict=True)
    }
    for sample, *rest in zip(*(array[: len(steps) // 2].ravel().tolist() for array in after), strict=True):
        assert origin[sample] == rest


def test_cap__does_not_depend_on_who_asks_for_what() -> None:
    order = Order(60, 2, 8, 64, 6, max_per_slide=1)
    expected = make_plan(SLIDES, order).draws(range(300)).ids
    plan = make_plan(SLIDES, order)
    for step in np.random.default_rng(0).permutation(300).tolist()[:60]:
        parts = [plan.ids(step, rank * 20, rank * 20 + 20) for rank in range(3)]
        assert np.array_equal(np.concatenate(parts), expected[step])


def test_cap__leaves_batches_alone_that_keep_it() -> None:
    order = Order(64, 2, 8, 64, 8, max_per_slide=64)
    assert np.array_equal(
        make_plan(SLIDES, order).draws(range(50)).ids, EpochPlan(Selection(COUNTS), order).draws(range(50)).ids
    )


def test_cap__slide_with_more_than_it_allows_is_spread_evenly() -> None:
    slides = SLIDES.copy()
    slides[:4000] = 1  # 40 % of all: about 26 of 64
    plan = make_plan(slides, Order(64, 0, 8, 512, 1, max_per_slide=3))
    ids = plan.draws(range(plan.steps_per_epoch)).ids
    of_largest = (slides[ids] == 1).sum(axis=1)
    for begin in (0, BLOCK_STEPS):
        block = of_largest[begin : begin + BLOCK_STEPS if begin == 0 else None]
        assert block.max() <= -(-block.sum() // len(block))
    assert most_of_a_slide(np.where(slides == 1, 0, slides), ids) <= 3


def test_cap__samples_without_slide_have_none() -> None:
    slides = SLIDES.copy()
    slides[::2] = 0
    ids = make_plan(slides, Order(64, 0, 8, 64, 8, max_per_slide=1)).draws(range(100)).ids
    assert most_of_a_slide(slides, ids) == 1
    assert (slides[ids] == 0).sum(axis=1).min() > 10


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 63, 64, 65, 127, 128, 200])
def test_blocks__cover_an_epoch_without_a_short_one(steps_per_epoch: int) -> None:
    plan = make_plan(SLIDES, Order(64, max_per_slide=1))
    plan.steps_per_epoch = steps_per_epoch
    blocks = [plan._block_of(step) for step in range(3 * steps_per_epoch)]
    for step, (begin, end) in enumerate(blocks):
        assert begin <= step < end
        assert begin // steps_per_epoch == (end - 1) // steps_per_epoch
        assert min(BLOCK_STEPS, steps_per_epoch) <= end - begin < 2 * BLOCK_STEPS
        assert blocks[begin] == (begin, end)


def test_halve__gives_every_node_half_of_its_edges() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        num = int(random.integers(1, 60)) * 2
        degrees = random.multinomial(num // 2, np.ones(5) / 5) * 2  # even
        first = random.permutation(np.repeat(np.arange(5), degrees))
        second = random.integers(0, int(random.integers(1, 40)), num)
        half = halve(first, second)
        assert np.array_equal(np.bincount(first[half], minlength=5) * 2, degrees)
        balance = np.bincount(second, weights=np.where(half, 1, -1))
        assert abs(balance).max() <= 1


def test_spread__random_blocks() -> None:
    random = np.random.default_rng(4)
    for _ in range(40):
        steps, slices, width = (int(random.integers(1, 12)) for _ in range(3))
        slides = random.integers(0, 12, (steps, slices * width)).astype(np.uint64)
        cap = int(random.integers(1, 6))
        moved = spread(slides, width, cap)
        assert np.array_equal(np.sort(moved, axis=None), np.arange(slides.size))
        assert np.array_equal(
            moved % (slices * width) // width, np.tile(np.arange(slices * width) // width, (steps, 1))
        )
        after = slides.ravel()[moved]
        for slide in range(1, 12):
            mean = -(-int((slides == slide).sum()) // steps)
            assert (after == slide).sum(axis=1).max() <= max(cap, mean)


def test_cap__is_fixed_for_ever() -> None:
    """A run that was begun must go on with its order under any version of numpy or dinowds."""
    plan = make_plan(SLIDES, Order(8, 5, 8, 64, 2, max_per_slide=1))
    assert plan.ids(70).tolist() == FIXED_BATCH


FIXED_BATCH = [2096, 7506, 3355, 5993, 9269, 140, 6857, 8591]


def test_blocks__that_are_over_are_forgotten() -> None:
    plan = make_plan(SLIDES, Order(100, max_per_slide=2))
    for step in range(0, 10 * plan.steps_per_epoch, 7):
        plan.ids(step)
    assert 0 < len(plan._blocks) <= 2
