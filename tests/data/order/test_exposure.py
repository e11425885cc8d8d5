"""What a run has seen, counted by arithmetic, against going through its batches one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import read_manifest, write_manifest
from dinowds.data.order.exposure import Slide, Views, check_cap, count_exposure, count_slides, count_views
from dinowds.data.order.make import make_plan
from dinowds.data.order.mixture import WeightedPlan
from dinowds.data.order.plan import EpochPlan, Order, Plan
from dinowds.data.order.spread import BLOCK_STEPS, CappedPlan
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.selection import Selection, pack_mask
from dinowds.data.subsets.subset import write_subset
from dinowds.errors import ConfigError
from dinowds.remote.files import RemoteFiles
from tests.index_only import write_index

SHARDS = [[1] * 40, [7, 1, 64, 33, 5, 0, 3], [0, 0, 12, 0], [50] * 9 + [3], [100]]
LAYOUTS = [(1, 1), (8, 2), (12, 4), (7, None)]
CHUNKS = [(1, 1), (4, 3), (16, 2), (64, None)]
GRID = list(zip(LAYOUTS, CHUNKS, strict=True))
MORE = list(zip(LAYOUTS, reversed(CHUNKS), strict=True))


def check_steps(plan: Plan, num_samples: int, steps: Sequence[int]) -> None:
    """Every batch is gone through."""
    drawn = plan.draws(range(max(steps))).ids
    for step in steps:
        expected = np.bincount(drawn[:step].ravel(), minlength=num_samples)
        assert np.array_equal(count_views(plan, num_samples, step), expected), step


def some_steps(plan: Plan) -> list[int]:
    per_epoch = plan.steps_per_epoch
    return sorted({0, 1, per_epoch // 2, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch + 1})


@pytest.mark.parametrize("chosen", [None, 0.6])
@pytest.mark.parametrize("counts", SHARDS)
def test_views__of_an_epoch_plan_are_those_of_its_batches(counts: list[int], chosen: float | None) -> None:
    mask = None if chosen is None else pack_mask(np.random.default_rng(1).random(sum(counts)) < chosen)
    selection = Selection(counts, mask)
    for (batch, partitions), (chunk, window) in GRID + MORE:
        if len(selection) >= batch:
            plan = EpochPlan(selection, Order(batch, 3, chunk, window, partitions))
            check_steps(plan, sum(counts), some_steps(plan))


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 1}, {"a": 0.7, "b": 0, "c": 0.3}, {"a": 1, "b": 20, "c": 3}])
@pytest.mark.parametrize(("layout", "chunks"), GRID)
def test_views__of_a_weighted_plan_are_those_of_its_batches(
    weights: dict[str, float], layout: tuple[int, int | None], chunks: tuple[int, int | None]
) -> None:
    counts = [60, 1, 0, 45, 30]
    cohort = np.random.default_rng(2).choice(3, sum(counts), p=[0.8, 0.05, 0.15])
    groups = {name: Selection(counts, pack_mask(cohort == i)) for i, name in enumerate(weights)}
    (batch, partitions), (chunk, window) = layout, chunks
    plan = WeightedPlan(groups, Order(batch, 3, chunk, window, partitions, weights=weights))
    check_steps(plan, sum(counts), some_steps(plan))


@pytest.mark.parametrize("weights", [{}, {"a": 1, "b": 1}])
def test_views__of_a_capped_plan_are_those_of_its_batches(weights: dict[str, float]) -> None:
    counts = [100] * 11
    slides = np.arange(1100, dtype=np.uint64) // np.uint64(50) + np.uint64(1)
    order = Order(8, 3, 8, 4, 4, max_per_slide=1, weights=weights)
    is_b = np.arange(1100) % 20 == 0  # half of all draws are of 55 samples: some are drawn several times in a block
    inner: Plan = EpochPlan(Selection(counts), order)
    if weights:
        inner = WeightedPlan({"a": Selection(counts, pack_mask(~is_b)), "b": Selection(counts, pack_mask(is_b))}, order)
    plan = CappedPlan(inner, lambda ids: slides[ids])
    in_a_block = [1, BLOCK_STEPS, BLOCK_STEPS + 5, plan.steps_per_epoch + 5]
    assert not np.array_equal(plan.draws(in_a_block).ids, inner.draws(in_a_block).ids)
    check_steps(plan, 1100, [0, *in_a_block])


def test_views__a_negative_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="--until-step is -1, expected 0 or more"):
        count_views(EpochPlan(Selection([9]), Order(2)), 9, -1)


def test_views__of_a_very_long_run_do_not_overflow() -> None:
    """A cohort of one sample that is in half of all places."""
    order = Order(64, weights={"a": 1, "b": 1})
    masks = (np.arange(501) == 0, np.arange(501) > 0)
    plan = WeightedPlan(
        {name: Selection([501], pack_mask(mask)) for name, mask in zip("ab", masks, strict=True)}, order
    )
    views = count_views(plan, 501, 100_000)
    assert views[0] == 3_200_000
    assert views[1:].sum() == 3_200_000
    assert views[1:].max() - views[1:].min() <= 1


SLIDES = [
    ("a", "s1", 70),
    ("a", None, 9),
    ("a", "s2", 1),
    ("b", "s1", 40),
    ("b", None, 5),
    ("b", "s3", 25),
    ("c", "s4", 0),
]


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    """Three cohorts, of which two have a slide of the same name and samples without one; the third has no sample."""
    path = write_index(tmp_path / "index", SLIDES, 13)
    manifest = read_manifest(str(path), RemoteFiles())
    write_manifest(path, replace(manifest, cohorts={**manifest.cohorts, "c": 0}))
    return path


def subset_of(path: Path) -> Dataset:
    """A random two thirds."""
    dataset = Dataset.open(path)
    subset, mask, _ = choose_subset(dataset, "some", SubsetOptions(fraction=2 / 3))
    write_subset(str(path), subset, mask, dataset.files)
    return Dataset.open(f"{path}:some")


@pytest.mark.parametrize("weights", [{}, {"a": 1, "b": 3, "c": 0}])
@pytest.mark.parametrize("of_subset", [False, True])
def test_exposure__counts_slides_and_cohorts(index_path: Path, weights: dict[str, float], of_subset: bool) -> None:
    dataset = subset_of(index_path) if of_subset else Dataset.open(index_path)
    plan = make_plan(dataset, Order(12, 1, 4, 3, 4, weights=weights))
    slide_of = [Slide(cohort, name) for cohort, name, count in SLIDES for _ in range(count)]
    selected = dataset.selection.all_ids().tolist()
    for until_step in (0, 1, plan.steps_per_epoch + 2):
        found = count_exposure(dataset, plan, until_step)
        draws = Counter(sample for step in range(until_step) for sample in plan.ids(step).tolist())
        for slide in set(slide_of):
            own = [sample for sample in selected if slide_of[sample] == slide]
            views = Views(len(own), sum(draws[i] for i in own), sum(not draws[i] for i in own))
            assert found.slides.get(slide, Views(0, 0, 0)) == views
        for cohort in "abc":
            parts = [views for slide, views in found.slides.items() if slide.cohort == cohort]
            assert found.cohorts[cohort].draws == sum(part.draws for part in parts)
        per_sample = sorted(draws[sample] for sample in selected)
        assert found.views_per_sample == (per_sample[0], float(np.median(per_sample)), per_sample[-1])
        assert (found.total.samples, found.total.draws) == (len(dataset), until_step * 12)
        assert found.num_slides == len({slide_of[i] for i in selected if slide_of[i].name is not None})
        assert found.samples_without_slide == sum(slide_of[i].name is None for i in selected)
        seen = {slide_of[i] for i in draws if slide_of[i].name is not None}
        assert found.slides_not_seen == found.num_slides - len(seen)


def test_exposure__says_how_far_it_is(index_path: Path) -> None:
    dataset = Dataset.open(index_path)
    plan = make_plan(dataset, Order(12, 1, 4, 3, 4))
    reports: list[tuple[int, int]] = []
    count_exposure(dataset, plan, 20, lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports)
    assert reports[-1] == (102, 102)  # 6 that the first epoch leaves out, and 8 batches of the second


def test_exposure__the_bar_moves_with_the_epochs(index_path: Path) -> None:
    """Each epoch of a run has its own few samples that are left out: that is what takes the time."""
    dataset = Dataset.open(index_path)
    plan = make_plan(dataset, Order(12, 1, 4, 3, 4))
    reports: list[tuple[int, int]] = []
    count_exposure(dataset, plan, 50 * plan.steps_per_epoch, lambda done, total: reports.append((done, total)))
    assert [done for done, _ in reports[:50]] == list(range(6, 301, 6))
    assert {total for _, total in reports} == {300}


@pytest.mark.parametrize("batch_size", [10, 25, 150])
def test_exposure__of_whole_epochs_that_leave_nothing_out_is_arithmetic(
    index_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    dataset = Dataset.open(index_path)
    plan = make_plan(dataset, Order(batch_size, 1, 4, 3))
    made: list[int] = []
    epoch_of = EpochPlan.epoch
    monkeypatch.setattr(EpochPlan, "epoch", lambda self, epoch: made.append(epoch) or epoch_of(self, epoch))  # type: ignore[func-returns-value]
    found = count_exposure(dataset, plan, 10**6 * plan.steps_per_epoch)
    assert set(made) <= {10**6}
    assert found.total.draws == 10**6 * 150
    assert found.views_per_sample == (10**6, 10**6, 10**6)


@pytest.mark.parametrize(
    ("cap", "weights", "smallest"),
    [(4, {}, 5), (1, {}, 5), (5, {}, None), (2, {"a": 1, "b": 1}, 3), (3, {"a": 1, "b": 1}, None)],
)
def test_cap__that_cannot_be_kept_is_named(
    tmp_path: Path, cap: int, weights: dict[str, float], smallest: int | None
) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", "big", 45), ("a", "s", 35), ("b", None, 20)]))
    plan = make_plan(dataset, Order(10, max_per_slide=cap, weights=weights))
    if smallest is None:
        check_cap(dataset, plan)
        return
    message = (
        rf"is {cap}, but slide 'big' of cohort 'a' has 45 samples, [\d.]+ in the mean batch; .* least {smallest}, or"
    )
    with pytest.raises(ConfigError, match=message):
        check_cap(dataset, plan)


def test_cap__looks_at_cohorts_that_are_drawn_alone(tmp_path: Path) -> None:
    slides = [("a", "big", 45), ("a", "s", 35), ("b", None, 20), ("c", "s", 30)]
    dataset = Dataset.open(write_index(tmp_path / "d", slides))
    order = Order(10, max_per_slide=1, weights={"a": 0, "b": 1, "c": 0})
    with pytest.raises(ConfigError, match=r"knows the slide of no sample that is drawn; leave it out"):
        check_cap(dataset, make_plan(dataset, order))
    order = Order(10, max_per_slide=4, weights={"a": 0, "b": 2, "c": 1})  # 'big' would not be kept
    check_cap(dataset, make_plan(dataset, order))
    with pytest.raises(ConfigError, match=r"slide 's' of cohort 'c' has 30 samples, 3\.333 in the mean batch"):
        check_cap(dataset, make_plan(dataset, replace(order, max_per_slide=3)))


def test_cap__the_smallest_that_is_offered_can_be_kept(tmp_path: Path) -> None:
    dataset = Dataset.open(write_index(tmp_path / "d", [("a", "big", 450), *(("a", f"s{i}", 5) for i in range(110))]))
    with pytest.raises(ConfigError, match="at least 5, or"):
        check_cap(dataset, make_plan(dataset, Order(10, max_per_slide=4)))
    order = Order(10, max_per_slide=5)
    plan = make_plan(dataset, order)
    check_cap(dataset, plan)
    slides = [dataset.slides_of(plan.ids(step)) for step in range(plan.steps_per_epoch)]
    assert max(Counter(row.tolist()).most_common(1)[0][1] for row in slides) == 5


def test_cap__without_slides_is_refused_and_no_cap_reads_nothing(tmp_path: Path) -> None:
    path = write_index(tmp_path / "d", [("a", None, 50)])
    dataset = Dataset.open(path)
    with pytest.raises(
        ConfigError, match=r"max_per_slide is 2, but .* knows the slide of no sample that is drawn; leave"
    ):
        check_cap(dataset, make_plan(dataset, Order(10, max_per_slide=2)))
    signed = Dataset("https://me:secret@lab.org/d?key=secret", dataset.manifest)
    signed.index_path = dataset.index_path
    with pytest.raises(ConfigError, match=r"but https://lab\.org/d knows the slide of no sample"):
        check_cap(signed, make_plan(dataset, Order(10, max_per_slide=2)))
    plan = make_plan(dataset, Order(10))
    (path / "samples.parquet").unlink()
    check_cap(dataset, plan)


def test_slides__are_counted_in_one_pass(index_path: Path) -> None:
    expected = {Slide(cohort, name): count for cohort, name, count in SLIDES if count}
    assert count_slides(Dataset.open(index_path)) == expected
