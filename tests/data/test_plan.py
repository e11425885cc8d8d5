"""The order of an epoch: its guarantees, over grids of sizes."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest

from dinowds.data.plan import Chunks, EpochPlan, Order, choose_partitions, steps_per_epoch
from dinowds.errors import ConfigError

GRID = [
    (counts, Order(batch, seed, chunk, window, partitions))
    for counts, (batch, partitions), (chunk, window), seed in itertools.product(
        ([100], [7, 1, 64, 33, 5], [50] * 9 + [3], [1] * 40),
        ((8, 1), (8, 2), (12, 4), (1, 1), (40, 8)),
        ((1, 1), (4, 3), (16, 2), (64, 1024)),
        (0, 5),
    )
]


def make_plan(counts: list[int], order: Order, epoch: int = 0) -> EpochPlan:
    return EpochPlan(Chunks(counts, order.chunk_size), order, epoch)


def all_batches(plan: EpochPlan) -> list[list[int]]:
    return [plan.batch(step).tolist() for step in range(plan.num_steps)]


@pytest.mark.parametrize(("counts", "order"), GRID)
def test_epoch__every_sample_at_most_once_and_less_than_a_batch_left_out(counts: list[int], order: Order) -> None:
    for epoch in (0, 3):
        batches = all_batches(make_plan(counts, order, epoch))
        seen = np.concatenate(batches)
        assert all(len(batch) == order.batch_size for batch in batches)
        assert len(np.unique(seen)) == len(seen)
        assert seen.min() >= 0
        assert seen.max() < sum(counts)
        assert sum(counts) - len(seen) < order.batch_size


@pytest.mark.parametrize(("counts", "order"), GRID[::7])
def test_batch__slices_join_to_the_whole_in_any_order_of_reading(counts: list[int], order: Order) -> None:
    expected = all_batches(make_plan(counts, order))
    plan = make_plan(counts, order)
    for ranks in (n for n in (1, 2, 4) if order.batch_size % n == 0):
        share = order.batch_size // ranks
        for step in reversed(range(plan.num_steps)):
            parts = [plan.batch(step, rank * share, (rank + 1) * share) for rank in range(ranks)]
            assert np.concatenate(parts).tolist() == expected[step]


def test_epoch__same_numbers_same_order_other_numbers_other_order() -> None:
    counts, order = [300, 211, 5], Order(16, seed=3, chunk_size=8, window_chunks=4, partitions=4)
    reference = all_batches(make_plan(counts, order, epoch=1))
    assert all_batches(make_plan(counts, order, epoch=1)) == reference
    assert all_batches(make_plan(counts, order, epoch=2)) != reference
    for change in ({"seed": 4}, {"chunk_size": 16}, {"window_chunks": 5}, {"partitions": 2}, {"batch_size": 32}):
        assert all_batches(make_plan(counts, dataclasses.replace(order, **change), epoch=1)) != reference


def test_epoch_zero__depends_on_the_seed() -> None:
    orders = {tuple(make_plan([50], Order(10, seed)).batch(0)) for seed in range(20)}
    assert len(orders) == 20


def test_epoch__other_samples_are_left_out_each_time() -> None:
    order = Order(32, seed=0, chunk_size=4, window_chunks=8, partitions=2)
    left_out = [set(range(50)) - set(np.concatenate(all_batches(make_plan([50], order, e)))) for e in range(6)]
    assert all(len(samples) == 18 for samples in left_out)
    assert len({frozenset(samples) for samples in left_out}) == 6


def test_epoch__each_sample_changes_its_rank() -> None:
    order = Order(16, seed=0, chunk_size=4, window_chunks=2, partitions=8)
    ranks = np.full((8, 512), -1)
    for epoch in range(8):
        plan = make_plan([512], order, epoch)
        for step, rank in itertools.product(range(plan.num_steps), range(4)):
            ranks[epoch, plan.batch(step, rank * 4, rank * 4 + 4)] = rank
    assert all(len(set(column)) > 1 for column in ranks.T)


def test_one_window__is_a_uniform_shuffle() -> None:
    """With everything in one window each pair of samples shares a batch as often as by chance."""
    num, size, epochs = 24, 6, 2000
    together = np.zeros((num, num))
    for epoch in range(epochs):
        for batch in all_batches(make_plan([num], Order(size, seed=1, chunk_size=5, window_chunks=99), epoch)):
            together[np.ix_(batch, batch)] += 1
    rates = together[~np.eye(num, dtype=bool)] / epochs
    expected = (size - 1) / (num - 1)
    assert abs(rates.mean() - expected) < 1e-9
    assert np.abs(rates - expected).max() < 5 * np.sqrt(expected * (1 - expected) / epochs)


def test_partition__reads_at_most_one_window_at_a_time() -> None:
    order = Order(8, seed=0, chunk_size=4, window_chunks=5, partitions=2)
    plan = make_plan([40] * 20, order)
    for start, stop in ((0, 4), (4, 8)):
        stream = np.concatenate([plan.batch(step, start, stop) for step in range(plan.num_steps)])
        spans = {c: np.flatnonzero(stream // 4 == c) for c in set((stream // 4).tolist())}
        length = order.chunk_size * order.window_chunks
        assert max(places.max() - places.min() for places in spans.values()) < length


def test_substitute__is_fixed_and_spreads() -> None:
    plan = make_plan([1000], Order(10, seed=0), epoch=2)
    drawn = [plan.substitute(7, attempt) for attempt in range(50)]
    assert drawn == [make_plan([1000], Order(10, seed=0), epoch=2).substitute(7, attempt) for attempt in range(50)]
    assert len(set(drawn)) > 40
    assert all(0 <= sample < 1000 for sample in drawn)


def test_choose_partitions__one_for_what_fits_a_window_more_for_more() -> None:
    assert choose_partitions(60_000, 256, 64, 1024) == 1
    assert choose_partitions(1_700_000, 256, 64, 1024) == 16
    assert choose_partitions(10**9, 256, 64, 1024) == 64
    assert choose_partitions(10**9, 96, 64, 1024) == 32
    assert choose_partitions(10**9, 7, 64, 1024) == 1


def test_chunks__never_cross_a_shard() -> None:
    counts = [10, 1, 8, 17]
    first, sizes = Chunks(counts, 4).spans(np.arange(len(Chunks(counts, 4))))
    assert sizes.tolist() == [4, 4, 2, 1, 4, 4, 4, 4, 4, 4, 1]
    assert first.tolist() == [0, 4, 8, 10, 11, 15, 19, 23, 27, 31, 35]


def test_memory__follows_chunks_not_samples() -> None:
    tracemalloc.start()
    plan = make_plan([100_000] * 1000, Order(256, seed=0, partitions=64))
    plan.batch(plan.num_steps // 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # 10⁸ samples in 1.6 million chunks; one number a sample would be 800 MB


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"chunk_size": 0}, {"window_chunks": 0}, {"partitions": 3}])
def test_order__bad_value_is_named(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(Order(8, 0), **change)


def test_steps_per_epoch__dataset_smaller_than_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size is 256.*only 100 samples"):
        steps_per_epoch(100, 256)


def test_batch__step_outside_the_epoch() -> None:
    with pytest.raises(IndexError):
        make_plan([20], Order(10, 0)).batch(2)
