"""The order of an epoch: its guarantees, over grids of sizes."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from dinowds.data.order.passes import Chunks, Layout, Pass
from dinowds.data.order.plan import POOL, EpochPlan, Ids, Order, largest_divisor, steps_per_epoch
from dinowds.data.subsets.selection import Selection, pack_mask
from dinowds.errors import ConfigError

SHARDS: list[list[int]] = [
    [1],
    [100],
    [1] * 40,
    [7, 1, 64, 33, 5, 0, 3],
    [0, 0, 12, 0],
    [50] * 9 + [3],
    np.random.default_rng(0).integers(1, 101, 12).tolist(),
]
ORDERS = [
    Order(batch, seed, chunk, window, partitions)
    for (batch, partitions), (chunk, window), seed in itertools.product(
        ((1, 1), (8, 1), (8, 2), (12, 4), (40, 8), (7, None)),
        ((1, 1), (4, 3), (16, 2), (64, None)),
        (0, 5),
    )
]
GRID = [(counts, order) for counts in SHARDS for order in ORDERS if sum(counts) >= order.batch_size]


def make_plan(counts: list[int], order: Order, chosen: float | None = None) -> EpochPlan:
    """Of all samples, or of a random subset of about this share."""
    mask = None
    if chosen is not None:
        mask = pack_mask(np.random.default_rng(1).random(sum(counts)) < chosen)
    return EpochPlan(Selection(counts, mask), order)


def epoch_ids(plan: EpochPlan, epoch: int = 0) -> Ids:
    """int64 [steps, B]."""
    return plan.draws(range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)).ids


@pytest.mark.parametrize("chosen", [None, 0.7])
@pytest.mark.parametrize(("counts", "order"), GRID)
def test_epoch__every_sample_at_most_once_and_less_than_a_batch_left_out(
    counts: list[int], order: Order, chosen: float | None
) -> None:
    selected = Selection(counts) if chosen is None else make_plan(counts, Order(1), chosen).selections[0]
    if len(selected) < order.batch_size:
        return
    plan = make_plan(counts, order, chosen)
    for epoch in (0, 3):
        ids = epoch_ids(plan, epoch)
        assert ids.shape == (len(selected) // order.batch_size, order.batch_size)
        assert len(np.unique(ids)) == ids.size
        assert np.isin(ids, selected.all_ids()).all()
        assert len(selected) - ids.size < order.batch_size


@pytest.mark.parametrize(("counts", "order"), GRID[::5])
def test_draws__slices_join_to_the_whole_in_any_order_of_asking(counts: list[int], order: Order) -> None:
    expected = epoch_ids(make_plan(counts, order))
    plan = make_plan(counts, order)
    for ranks in (n for n in (1, 2, 3, 4) if order.batch_size % n == 0):
        share = order.batch_size // ranks
        for step in reversed(range(0, plan.steps_per_epoch, 1 + plan.steps_per_epoch // 20)):
            parts = [plan.ids(step, rank * share, (rank + 1) * share) for rank in range(ranks)]
            assert np.concatenate(parts).tolist() == expected[step].tolist()


def test_draws__any_steps_in_any_order_over_epochs() -> None:
    plan = make_plan([300, 211, 5], Order(16, 3, 8, 4, 4))
    whole = plan.draws(range(4 * plan.steps_per_epoch))
    steps = np.random.default_rng(0).permutation(4 * plan.steps_per_epoch)[:50].tolist()
    some = make_plan([300, 211, 5], Order(16, 3, 8, 4, 4)).draws(steps)
    for all_of, part in zip(whole, some, strict=True):
        assert np.array_equal(all_of[steps], part)
    assert np.array_equal(whole.visits[:, 0], np.arange(4 * plan.steps_per_epoch) // plan.steps_per_epoch)


def test_draws__name_the_chunk_of_each_sample() -> None:
    counts = [10, 1, 8, 17]
    for chosen in (None, 0.6):
        plan = make_plan(counts, Order(4, 0, 4, 2, 2), chosen)
        draws = plan.draws(range(plan.steps_per_epoch))
        shard_of = np.repeat(np.arange(4), counts)
        for sample, first, count in zip(*(array.ravel() for array in (draws[0], *draws[3:])), strict=True):
            chunk = plan.chunk_ids(0, int(first), int(count))
            assert sample in chunk
            assert len(chunk) <= 4
            assert len(set(shard_of[chunk])) == 1


def test_epoch__same_numbers_same_order_other_numbers_other_order() -> None:
    counts, order = [300, 211, 5], Order(16, seed=3, chunk_size=8, window_chunks=4, partitions=4)
    reference = epoch_ids(make_plan(counts, order), 1).tolist()
    assert epoch_ids(make_plan(counts, order), 1).tolist() == reference
    assert epoch_ids(make_plan(counts, order), 2).tolist() != reference
    for change in ({"seed": 4}, {"chunk_size": 16}, {"window_chunks": 5}, {"partitions": 2}, {"batch_size": 32}):
        assert epoch_ids(make_plan(counts, dataclasses.replace(order, **change)), 1).tolist() != reference  # type: ignore[arg-type]


def test_epoch_zero__depends_on_the_seed() -> None:
    assert len({tuple(make_plan([50], Order(10, seed)).ids(0)) for seed in range(20)}) == 20


def test_epoch__order_is_fixed_for_ever() -> None:
    """A run that was begun must go on with its order under any version of numpy or dinowds."""
    plan = make_plan([30, 21, 5], Order(8, seed=3, chunk_size=4, window_chunks=2, partitions=2))
    assert plan.ids(5).tolist() == FIXED_BATCH
    assert plan.substitute(7, 0, 1, 2) == FIXED_SUBSTITUTE


FIXED_BATCH = [25, 3, 27, 2, 29, 13, 37, 15]
FIXED_SUBSTITUTE = 38


def test_epoch__other_samples_are_left_out_each_time() -> None:
    plan = make_plan([50], Order(32, 0, 4, 8, 2))
    left_out = [set(range(50)) - set(epoch_ids(plan, epoch).ravel().tolist()) for epoch in range(6)]
    assert all(len(samples) == 18 for samples in left_out)
    assert len({frozenset(samples) for samples in left_out}) == 6


def test_epoch__each_sample_changes_its_rank_and_its_neighbours() -> None:
    plan = make_plan([512], Order(16, 0, 4, 2, 8))
    ranks = np.full((8, 512), -1)
    for epoch in range(8):
        ids = epoch_ids(plan, epoch)
        ranks[epoch, ids] = np.arange(16)[None] // 4
    assert all(len(set(column)) > 1 for column in ranks.T)


def test_epoch__leaves_out_samples_of_many_chunks() -> None:
    """Those of one chunk would be of one slide, which the batches of the epoch would then have too few of."""
    plan = make_plan([500] * 5 + [20], Order(256))
    for epoch in range(5):
        left_out = np.setdiff1d(np.arange(2520), epoch_ids(plan, epoch))
        assert len(left_out) == 216
        assert len(set((left_out // 32).tolist())) > 50  # of 79 chunks; a uniform draw of 216 has 74


def test_one_window__is_a_uniform_shuffle() -> None:
    """With everything in one window each pair of samples shares a batch as often as by chance."""
    num, size, epochs = 24, 6, 800
    together = np.zeros((num, num))
    plan = make_plan([num], Order(size, 1, 5, 99, 1))
    for epoch in range(epochs):
        for batch in epoch_ids(plan, epoch):
            together[np.ix_(batch, batch)] += 1
    rates = together[~np.eye(num, dtype=bool)] / epochs
    expected = (size - 1) / (num - 1)
    assert abs(rates.mean() - expected) < 1e-9
    assert np.abs(rates - expected).max() < 5 * np.sqrt(expected * (1 - expected) / epochs)


@pytest.mark.parametrize("partitions", [1, 2, 8])
def test_partition__has_one_window_of_chunks_open_at_a_time(partitions: int) -> None:
    order = Order(8, 0, 4, 5, partitions)
    plan = make_plan([40, 39, 3] * 20, order)
    ids = epoch_ids(plan)
    draws = plan.draws(range(plan.steps_per_epoch))
    assert np.array_equal(draws.ids, ids)
    width = order.batch_size // partitions
    for start in range(0, order.batch_size, width):
        chunks = draws.chunk_first[:, start : start + width].ravel()
        places = {chunk: np.flatnonzero(chunks == chunk) for chunk in np.unique(chunks)}
        begin, end = (np.array([edge(p) for p in places.values()]) for edge in (np.min, np.max))
        open_at = [int(((begin <= i) & (end >= i)).sum()) for i in range(len(chunks))]
        assert max(open_at) <= 1.5 * 5 + 2  # a window has up to 1.5 × 5 chunks, and two of them in part
        assert max(end - begin) < 4 * (1.5 * 5 + 2)


@pytest.mark.parametrize(("partitions", "batch"), [(1, 256), (64, 256), (60, 960), (None, 256)])
def test_batches__of_slide_sorted_shards_have_as_many_slides_as_a_uniform_draw(
    partitions: int | None, batch: int
) -> None:
    """Slides as long as a chunk are the worst case: every two samples of a chunk are of one slide."""
    plan = make_plan([3200] * 400, Order(batch, 0, partitions=partitions))  # 40,000 slides of one chunk
    last = plan.steps_per_epoch
    steps = np.random.default_rng(0).choice(last, 60, replace=False).tolist()
    expected = 40_000 * (1 - (1 - 1 / 40_000) ** batch)
    for some in (steps, *(range(epoch * last, epoch * last + 20) for epoch in range(3)), range(last - 20, last)):
        slides = plan.draws(some).ids // 32
        found = np.mean([len(set(row)) for row in slides.tolist()])
        assert abs(found / expected - 1) < 0.02


def test_batches__of_slide_sorted_shards_are_poor_in_a_small_window() -> None:
    plan = make_plan([3200] * 400, Order(256, 0, window_chunks=128, partitions=1))
    slides = plan.draws(range(0, plan.steps_per_epoch, 100)).ids // 32
    assert np.mean([len(set(row)) for row in slides.tolist()]) < 0.6 * 256


@pytest.mark.parametrize("num_chunks", [0, 1, POOL * 256, POOL * 256 + 1, 10**7])
@pytest.mark.parametrize(("batch", "partitions"), [(256, 64), (1024, 64), (96, 48), (60, 60), (7, 7), (67, 1), (1, 1)])
def test_resolved__one_window_for_what_fits_the_pool_else_many_partitions_of_the_same_pool(
    num_chunks: int, batch: int, partitions: int
) -> None:
    order = Order(batch).resolved(num_chunks)
    fits = num_chunks <= POOL * batch
    assert order.partitions == (1 if fits else partitions)
    assert order.partitions is not None
    assert order.window_chunks is not None
    assert POOL * batch <= order.partitions * order.window_chunks < POOL * batch + partitions
    assert order.resolved(num_chunks) == order
    assert Order(batch, window_chunks=3, partitions=1).resolved(num_chunks).window_chunks == 3
    assert Order(batch, window_chunks=3).resolved(num_chunks).window_chunks == 3
    assert Order(batch, partitions=1).resolved(num_chunks).window_chunks == POOL * batch


def test_largest_divisor() -> None:
    assert [largest_divisor(n, 64) for n in (1, 64, 65, 67, 128, 120)] == [1, 64, 13, 1, 64, 60]


def test_substitute__is_fixed_spreads_and_stays_in_the_subset() -> None:
    plan = make_plan([1000], Order(10), 0.3)
    drawn = [plan.substitute(7, 0, 2, attempt) for attempt in range(60)]
    assert drawn == [make_plan([1000], Order(10), 0.3).substitute(7, 0, 2, attempt) for attempt in range(60)]
    assert len(set(drawn)) > 45
    assert np.isin(drawn, plan.selections[0].all_ids()).all()
    assert plan.substitute(7, 0, 3, 0) != drawn[0]
    assert all(make_plan([3], Order(1)).substitute(1, 0, 0, attempt) != 1 for attempt in range(40))


def test_chunks__never_cross_a_shard() -> None:
    chunks = Chunks(np.array([10, 1, 0, 8, 17]), 4)
    first, sizes = chunks.spans(np.arange(len(chunks)))
    assert sizes.tolist() == [4, 4, 2, 1, 4, 4, 4, 4, 4, 4, 1]
    assert first.tolist() == [0, 4, 8, 10, 11, 15, 19, 23, 27, 31, 35]
    assert chunks.short.tolist() == [2, 3, 10]
    assert chunks.missing.tolist() == [2, 3, 3]


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("width", [1, 3, 7, 1000])
def test_pass__windows_are_equal_parts_of_the_stream_of_chunks(width: int, partitions: int) -> None:
    chunks = Chunks(np.array([10, 1, 0, 8, 17, 64, 3]), 4)
    num, length = chunks.num_samples, chunks.num_samples - 5
    this = Pass(chunks, length, Layout(partitions, width), 5)
    stream = np.concatenate([*this.stream(0, num)])
    assert np.array_equal(np.sort(stream), np.arange(num))
    firsts, counts = chunks.of(stream)
    for first, run in itertools.groupby(range(num), key=firsts.tolist().__getitem__):
        places = list(run)
        assert stream[places].tolist() == list(range(first, first + counts[places[0]]))
    windows = this._windows
    assert windows[0] == 0
    assert windows[-1] == num
    assert set(this.edges[:-1].tolist()) <= set(windows.tolist())
    own = np.searchsorted(this.edges[:-1], windows[:-1], side="right") - 1
    for partition in range(partitions):
        sizes = np.diff(windows)[own == partition]
        assert np.ptp(sizes) <= 1
        assert sizes.max() <= 1.5 * width * 4 + 5
    for start, stop in itertools.pairwise(windows.tolist()):
        spots = this.at(np.arange(start, stop))
        assert np.array_equal(np.sort(spots.places), np.sort(stream[start:stop]))
        assert np.all(spots.chunk_first <= spots.places)
        assert np.all(spots.places < spots.chunk_first + spots.chunk_count)
        # What is read together for a window is the window, and no more.
        together = {*zip(spots.chunk_first.tolist(), spots.chunk_count.tolist(), strict=True)}
        assert sum(count for _, count in together) == stop - start


def test_plan__forgets_what_is_over() -> None:
    plan = make_plan([64] * 64, Order(16, 0, 4, 2, 4))
    for epoch in range(4):
        this = plan.epoch(epoch)
        for step in range(plan.steps_per_epoch):
            plan.ids(epoch * plan.steps_per_epoch + step)
        assert len(this._window_keys) <= 2 * 4
        assert len(this._open_cells) <= 4 * 4
    assert len(plan._passes) <= 2


PLAN_OF_A_BILLION = """
import sys
from pathlib import Path
import numpy as np
from dinowds.data.order.plan import EpochPlan, Order
from dinowds.data.subsets.selection import Selection
assert "torch" not in sys.modules
counts = np.random.default_rng(0).integers(8000, 12001, 100_000)
plan = EpochPlan(Selection(counts), Order(256))
for step in (0, plan.steps_per_epoch // 2, plan.steps_per_epoch - 1):
    ids = plan.ids(step)
    assert len(set(ids.tolist())) == 256 and ids.max() < counts.sum()
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_plan__of_a_billion_samples_takes_little_memory() -> None:
    """The whole process, Python and numpy included."""
    done = subprocess.run([sys.executable, "-c", PLAN_OF_A_BILLION], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000  # KiB


def test_plan__of_a_billion_samples_is_located_without_walking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the chunks of the open windows are looked up, whatever the size of the epoch."""
    asked: list[int] = []
    spans = Chunks.spans
    monkeypatch.setattr(Chunks, "spans", lambda self, chunks: asked.append(len(chunks)) or spans(self, chunks))  # type: ignore[func-returns-value]
    plan = make_plan([10_000] * 100_000, Order(256))
    assert sum(asked) == 0
    plan.ids(3_000_000)
    assert 0 < sum(asked) <= 3 * POOL * 256


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"chunk_size": 0}, {"window_chunks": 0}, {"partitions": 3}, {"max_per_slide": 0}, {"seed": -1}],
)
def test_order__bad_value_is_named(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(Order(8), **change)  # type: ignore[arg-type]


def test_rank_batch__is_an_equal_share() -> None:
    assert [Order(12).rank_batch(ranks) for ranks in (1, 3, 12)] == [12, 4, 1]
    with pytest.raises(ConfigError, match=r"train\.batch_size is 12, expected a multiple of the 24 processes"):
        Order(12).rank_batch(24)


def test_steps_per_epoch__dataset_smaller_than_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size is 64, but the dataset has only 50 samples"):
        steps_per_epoch(50, 64)
