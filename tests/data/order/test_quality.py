"""How well batches are mixed, against uniform draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Draws, EpochPlan, Order
from dinowds.data.order.quality import Expectation, log_missed, measure_quality, spread_steps
from dinowds.errors import ConfigError, DatasetError
from tests.index_only import write_index

_MANY = np.random.default_rng(0).integers(32, 101, 2000).tolist()


@pytest.fixture(scope="module")
def sorted_slides(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """132,000 samples in the order of their 2000 slides, in shards that were not shuffled."""
    slides = [("a" if i < 1500 else "b", f"s{i}", count) for i, count in enumerate(_MANY)]
    return Dataset.open(write_index(tmp_path_factory.mktemp("quality") / "sorted", slides, 4096))


@pytest.mark.parametrize("batch_size", [32, 64, 256, 500])
@pytest.mark.parametrize("weights", [{}, {"a": 1, "b": 2}])
def test_default_window__mixes_sorted_slides_like_a_uniform_draw(
    sorted_slides: Dataset, batch_size: int, weights: dict[str, float]
) -> None:
    for epoch in (0, 2):
        plan = make_plan(sorted_slides, Order(batch_size, weights=weights))
        quality = measure_quality(sorted_slides, plan, epoch)
        assert 0.98 <= quality.ratio <= 1.02
        assert min(quality.first_ratio or 0, quality.last_ratio or 0) > 0.9
        assert quality.cap_kept is None


def test_small_window__is_seen_to_mix_badly(sorted_slides: Dataset) -> None:
    plan = make_plan(sorted_slides, Order(64, window_chunks=1, partitions=1))
    quality = measure_quality(sorted_slides, plan)
    assert quality.ratio < 0.2
    assert quality.most_of_a_slide >= 16


def test_figures__are_those_of_the_batches(tmp_path: Path) -> None:
    slides = [("a", "s1", 70), ("a", None, 9), ("b", "s1", 41), ("b", None, 5), ("b", "s3", 25)]
    dataset = Dataset.open(write_index(tmp_path / "d", slides, 20))
    for weights, cap in (({}, None), ({"a": 1, "b": 1}, None), ({}, 6)):
        plan = make_plan(dataset, Order(10, 1, 4, 3, 2, cap, weights))
        quality = measure_quality(dataset, plan, 1)
        steps = range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)
        batches = [dataset.slides_of(plan.ids(step)) for step in steps]
        counts = [np.unique(batch[batch != 0], return_counts=True)[1] for batch in batches]
        assert (quality.batches, quality.steps_per_epoch) == (15, 15)
        assert quality.distinct_slides == pytest.approx(np.mean([len(count) for count in counts]))
        assert quality.most_of_a_slide == max(count.max() for count in counts)
        assert quality.cap_kept == (None if cap is None else quality.most_of_a_slide <= cap)
        assert quality.samples_without_slide == pytest.approx(np.mean([(batch == 0).sum() for batch in batches]))
        is_a = np.array(dataset.columns(["cohort"])["cohort"].to_pylist()) == "a"
        share = np.mean([np.mean(is_a[plan.ids(step)]) for step in steps])
        assert list(quality.cohorts["a"]) == pytest.approx([share, 0.5 if weights else 79 / 150])


def test_cap__that_is_not_kept_is_seen(tmp_path: Path) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", f"s{i}", 80) for i in range(40)], 200))
    kept = measure_quality(dataset, make_plan(dataset, Order(16, max_per_slide=1)))
    assert (kept.cap_kept, kept.most_of_a_slide) == (True, 1)
    order = Order(
        16, max_per_slide=1, window_chunks=1, partitions=1, chunk_size=80
    )  # slide after slide, 64 batches each
    assert measure_quality(dataset, make_plan(dataset, order)).cap_kept is False


@pytest.mark.parametrize(("total", "draws"), [(30, 1), (30, 7), (30, 29), (30, 30), (1000, 64)])
def test_expectation__is_that_of_uniform_draws(total: int, draws: int) -> None:
    sizes = np.array([1, 2, 3, total - 6, total])
    expected = [math.comb(total - size, draws) / math.comb(total, draws) for size in sizes.tolist()]
    np.testing.assert_allclose(np.exp(log_missed(sizes, total, draws)), expected, rtol=1e-12)


def test_expectation__keeps_its_digits_for_a_billion_samples() -> None:
    seen = -np.expm1(log_missed(np.array([1, 3]), 10**9, 256))
    exact = 256e-9
    np.testing.assert_allclose(seen, [exact, 1 - (1 - exact) ** 3], rtol=1e-6)
    assert seen[0] == pytest.approx(exact, rel=1e-12)


def test_expectation__of_a_batch_that_goes_on_in_the_next_pass() -> None:
    """Slides of 2 and 3 samples, and a sample without; the batch ends a pass with 4 draws and begins one with 2."""
    expectation = Expectation(np.array([2, 3, 1]), np.zeros(3, np.int64), np.array([True, True, False]))
    missed = [math.comb(6 - size, 4) / math.comb(6, 4) * math.comb(6 - size, 2) / math.comb(6, 2) for size in (2, 3)]
    assert expectation.of(np.zeros(6, np.int64), np.array([7, 7, 8, 7, 8, 7])) == pytest.approx(2 - sum(missed))


@pytest.mark.parametrize("num_steps", [1, 7, 199, 200, 201, 1000, 123457])
def test_steps__are_spread_evenly(num_steps: int) -> None:
    steps = spread_steps(num_steps)
    assert len(steps) == min(num_steps, 200)
    if num_steps <= 200:
        assert steps.tolist() == list(range(num_steps))
    edges = np.concatenate([[-1 - int(steps[0])], steps, [2 * num_steps - 1 - int(steps[-1])]])
    assert np.diff(edges).max() - np.diff(edges).min() <= 2
    assert 0 <= steps[0] <= steps[-1] < num_steps


def test_quality__needs_slides_and_an_epoch(tmp_path: Path, sorted_slides: Dataset) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", None, 30)]))
    with pytest.raises(DatasetError, match="the slide of no sample that is drawn is known"):
        measure_quality(dataset, make_plan(dataset, Order(10)))
    signed = Dataset("https://me:secret@lab.org/d?key=secret", dataset.manifest)
    signed.index_path = dataset.index_path
    with pytest.raises(DatasetError, match=r"^https://lab\.org/d: the slide of no sample"):
        measure_quality(signed, make_plan(dataset, Order(10)))
    with pytest.raises(ConfigError, match="--epoch is -1, expected 0 or more"):
        measure_quality(sorted_slides, make_plan(sorted_slides, Order(10)), -1)


def test_quality__of_slides_in_cohorts_that_are_not_drawn(tmp_path: Path) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", None, 30), ("b", "s", 30), ("c", "t", 5)]))
    with pytest.raises(DatasetError, match="the slide of no sample that is drawn is known"):
        measure_quality(dataset, make_plan(dataset, Order(10, weights={"a": 1, "b": 0, "c": 0})))
    found = measure_quality(dataset, make_plan(dataset, Order(10, weights={"a": 1, "b": 0, "c": 1})))
    assert found.ratio == 1
    assert found.cohorts["b"] == (0, 0)


class EdgesAreSorted(EpochPlan):
    """Batches at an epoch's edges are of neighbours, of one slide each; the others are spread over all slides."""

    def draws(self, steps: Sequence[int], start: int = 0, stop: int | None = None) -> Draws:
        found = np.array(steps)[:, None] % self.steps_per_epoch
        batch, last = self.order.batch_size, self.steps_per_epoch
        ids = found + np.arange(batch) * last
        at_edge = (found < 3) | (found >= last - 3)
        ids = np.where(at_edge, found * batch + np.arange(batch), ids)[:, start:stop]
        return Draws(ids, np.zeros_like(ids), np.zeros_like(ids), ids, np.ones_like(ids))


def test_quality__batches_at_an_epoch_s_edges_are_looked_at(tmp_path: Path) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", f"s{i}", 1000) for i in range(20)], 4000))
    plan = EdgesAreSorted(dataset.selection, Order(10, max_per_slide=3))
    for epoch in (0, 3):
        found = measure_quality(dataset, plan, epoch)
        assert found.steps_per_epoch == 2000
        assert (found.batches, found.is_whole) == (214, False)
        assert found.ratio > 1  # of 200 that are evenly spread, none is sorted
        expected = found.expected_slides
        assert found.first_ratio == pytest.approx((3 * 1 + 5 * 10) / 8 / expected)
        assert found.last_ratio == pytest.approx((3 * 1 + 5 * 10) / 8 / expected)
        assert (found.most_of_a_slide, found.cap_kept) == (10, False)


def test_quality__of_all_batches_counts_none_twice(tmp_path: Path) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", f"s{i}", 10) for i in range(20)]))
    for batch_size, first in ((50, 4), (20, 8), (200, 1)):
        plan = make_plan(dataset, Order(batch_size))
        found = measure_quality(dataset, plan)
        assert (found.batches, found.is_whole) == (200 // batch_size, True)
        distinct = [len(np.unique(dataset.slides_of(plan.ids(step)))) for step in range(first)]
        assert found.first_ratio == pytest.approx(np.mean(distinct) / found.expected_slides)
