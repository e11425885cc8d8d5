"""Weights of cohorts: proportions, and each sample of a cohort before any comes again."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.order.make import make_plan
from dinowds.data.order.mixture import WeightedPlan, apportion, checked_weights, far_apart, interleave
from dinowds.data.order.plan import Ids, Order
from dinowds.data.subsets.selection import Selection, pack_mask
from dinowds.errors import ConfigError

COUNTS = [97, 3, 250, 1, 0, 249] * 5
NUM = sum(COUNTS)
COHORT_OF = np.random.default_rng(0).choice(3, NUM, p=[0.7, 0.25, 0.05])
COHORTS = {name: Selection(COUNTS, pack_mask(np.equal(COHORT_OF, i))) for i, name in enumerate("abc")}
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0}
ORDERS = [
    Order(batch, 1, chunk, window, partitions, weights=WEIGHTS)
    for (batch, partitions), (chunk, window) in itertools.product(
        ((64, None), (32, 8), (7, 1), (24, 6)), ((32, None), (4, 3), (16, 2))
    )
]


def run_of(plan: WeightedPlan, epochs: int = 3) -> tuple[Ids, Ids]:
    """ids and visits, int64 [steps, B]."""
    draws = plan.draws(range(epochs * plan.steps_per_epoch))
    return draws.ids, draws.visits


@pytest.mark.parametrize("order", ORDERS)
def test_epoch__draws_cohorts_in_proportion(order: Order) -> None:
    plan = WeightedPlan(COHORTS, order)
    assert plan.steps_per_epoch == NUM // order.batch_size
    ids, _ = run_of(plan)
    for share, i in ((0.25, 0), (0.25, 1), (0.5, 2)):
        each = (COHORT_OF[ids] == i).sum(axis=1)
        assert abs(each - share * order.batch_size).max() <= 2  # every batch, not only the epoch
        assert abs(each.sum() - share * ids.size) <= 2


@pytest.mark.parametrize("order", ORDERS)
def test_run__each_sample_of_a_cohort_is_seen_before_any_is_seen_twice(order: Order) -> None:
    ids, visits = run_of(WeightedPlan(COHORTS, order))
    steps = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    for i, selection in enumerate(COHORTS.values()):
        mine = COHORT_OF[ids] == i
        for visit in range(int(visits[mine].max()) + 1):
            now = mine & (visits == visit)
            seen = ids[now]
            assert len(np.unique(seen)) == len(seen)
            if (mine & (visits > visit)).any():
                assert np.array_equal(np.sort(seen), selection.all_ids())
                assert steps[now].max() <= steps[mine & (visits > visit)].min()


@pytest.mark.parametrize("order", ORDERS[::2])
def test_draws__slices_join_to_the_whole_in_any_order_of_asking(order: Order) -> None:
    ids, visits = run_of(WeightedPlan(COHORTS, order), epochs=1)
    plan = WeightedPlan(COHORTS, order)
    for step in reversed(range(0, len(ids), 1 + len(ids) // 12)):
        for ranks in (n for n in (1, 2, 3, 4, 7) if order.batch_size % n == 0):
            share = order.batch_size // ranks
            parts = [plan.draws([step], rank * share, (rank + 1) * share) for rank in range(ranks)]
            assert np.array_equal(np.concatenate([part.ids for part in parts], axis=1)[0], ids[step])
            assert np.array_equal(np.concatenate([part.visits for part in parts], axis=1)[0], visits[step])


@pytest.mark.parametrize(
    ("cohorts", "hosts", "most"), [(1, 2, 1.01), (3, 2, 1.06), (10, 2, 1.1), (1, 4, 1.02), (10, 4, 1.25)]
)
def test_hosts__read_mostly_their_own_partitions(cohorts: int, hosts: int, most: float) -> None:
    counts = [3200] * 100
    cohort_of = np.random.default_rng(0).choice(cohorts, sum(counts))
    selections = {str(i): Selection(counts, pack_mask(np.equal(cohort_of, i))) for i in range(cohorts)}
    plan = WeightedPlan(selections, Order(256, 0, 8, 8, 64, weights=dict.fromkeys(selections, 1.0)))
    draws = plan.draws(range(plan.steps_per_epoch // 3))
    width = 256 // hosts
    fetched = [
        {*zip(*(x[:, host * width : (host + 1) * width].ravel().tolist() for x in draws[1:4]), strict=True)}
        for host in range(hosts)
    ]
    assert sum(map(len, fetched)) <= most * len(set().union(*fetched))


@pytest.mark.parametrize(("heavy", "light"), [(60, 60), (20, 20), (1, 7), (1000, 3), (0, 30)])
@pytest.mark.parametrize("batch", [64, 256, 7])
def test_batches__have_their_share_of_every_cohort(heavy: int, light: int, batch: int) -> None:
    counts = [40] * 200
    weights = {str(i): 1.0 for i in range(light)} | ({"heavy": float(heavy)} if heavy else {})
    cohort_of = np.random.default_rng(0).choice(len(weights), sum(counts))
    selections = {name: Selection(counts, pack_mask(np.equal(cohort_of, i))) for i, name in enumerate(weights)}
    plan = WeightedPlan(selections, Order(batch, weights=weights))
    groups = plan.draws(range(plan.steps_per_epoch)).groups
    for group, weight in enumerate(weights.values()):
        share = weight / sum(weights.values()) * batch
        assert abs((groups == group).sum(axis=1) - share).max() <= 2.5


@pytest.mark.parametrize("size", [1, 2, 7])
def test_tiny_cohort__is_drawn_many_times_a_batch(size: int) -> None:
    counts = [1000]
    cohorts = {
        "tiny": Selection(counts, pack_mask(np.arange(1000) < size)),
        "rest": Selection(counts, pack_mask(np.arange(1000) >= size)),
    }
    plan = WeightedPlan(cohorts, Order(64, weights={"tiny": 1, "rest": 1}))
    draws = plan.draws(range(200))
    tiny = draws.groups == 0
    assert tiny.sum() == 6400
    order = np.argsort(draws.visits[tiny], kind="stable")
    ids, visits = draws.ids[tiny][order], draws.visits[tiny][order]
    for visit in range(6400 // size):
        assert sorted(ids[visits == visit].tolist()) == list(range(size))


def test_run__is_fixed_for_ever() -> None:
    """A run that was begun must go on with its order under any version of numpy or dinowds."""
    assert WeightedPlan(COHORTS, ORDERS[4]).ids(30).tolist() == FIXED_BATCH


FIXED_BATCH = [
    1397,
    1582,
    194,
    1525,
    1848,
    556,
    1812,
    1562,
    1690,
    202,
    2202,
    2158,
    412,
    2023,
    2533,
    327,
    1524,
    209,
    2103,
    1519,
    2034,
    2692,
    670,
    660,
    2283,
    2290,
    2255,
    868,
    349,
    1809,
    791,
    77,
]


def test_passes__that_are_over_are_forgotten() -> None:
    plan = WeightedPlan(COHORTS, Order(32, 1, 4, 2, 4, weights=WEIGHTS))
    for step in range(0, 20 * plan.steps_per_epoch, 3):
        plan.draws([step])
    assert 0 < len(plan._passes) <= 2 * len(COHORTS)


def test_cohorts__have_orders_of_their_own() -> None:
    same = {name: Selection([64]) for name in "ab"}
    draws = WeightedPlan(same, Order(128, weights={"a": 1, "b": 1})).draws([0])
    assert draws.ids[draws.groups == 0].tolist() != draws.ids[draws.groups == 1].tolist()
    assert sorted(draws.ids[draws.groups == 0].tolist()) == list(range(64))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 48, 64])
def test_far_apart__every_run_of_turns_is_spread(count: int) -> None:
    turns = far_apart(count)
    assert sorted(turns.tolist()) == list(range(count))
    for start in range(0, count - 7, 5):
        assert np.diff(np.sort(turns[start : start + 8]) / count).max() < 0.3


def test_draws__name_group_and_chunk() -> None:
    plan = WeightedPlan(COHORTS, ORDERS[3])
    draws = plan.draws(range(20))
    for sample, _, group, first, count in zip(*(array.ravel().tolist() for array in draws), strict=True):
        assert COHORT_OF[sample] == group
        assert sample in plan.chunk_ids(group, first, count)
        assert COHORT_OF[plan.substitute(sample, group, 0, 1)] == group


def test_zero_weight__leaves_a_cohort_out() -> None:
    plan = WeightedPlan(COHORTS, Order(32, weights={"a": 3, "b": 0, "c": 1}))
    ids, _ = run_of(plan)
    assert plan.steps_per_epoch == (len(COHORTS["a"]) + len(COHORTS["c"])) // 32
    assert (COHORT_OF[ids] == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert not (COHORT_OF[ids] == 1).any()


def test_epoch__new_order_in_each_pass() -> None:
    ids, visits = run_of(WeightedPlan(COHORTS, ORDERS[0]), epochs=6)
    passes = [ids[(COHORT_OF[ids] == 2) & (visits == visit)].tolist() for visit in range(3)]
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "b": 1, "d": 1}, "no cohort 'd'"),
        ({"a": 1, "b": 1}, "cohort 'c' has none"),
        ({"a": 1, "b": -1, "c": 1}, "b is -1, expected a finite number, 0 or more"),
        ({"a": 0, "b": 0, "c": 0}, "all are 0"),
        ({"a": 1, "b": float("nan"), "c": 1}, "b is nan, expected a finite number, 0 or more"),
        ({"a": 1, "b": float("inf"), "c": 1}, "b is inf, expected a finite number, 0 or more"),
        ({"a": 1, "b": 1e-9, "c": 1}, "b is 1e-09, less than 1 in"),
    ],
)
def test_weights__that_cannot_be_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightedPlan(COHORTS, Order(8, weights=weights))


def test_weights__of_a_cohort_without_samples_are_refused() -> None:
    cohorts = {**COHORTS, "d": Selection(COUNTS, pack_mask(np.zeros(NUM, dtype=bool)))}
    with pytest.raises(ConfigError, match="no sample of cohort 'd' is selected"):
        WeightedPlan(cohorts, Order(8, weights={**WEIGHTS, "d": 1}))
    assert WeightedPlan(cohorts, Order(8, weights={**WEIGHTS, "d": 0})).draws([0]).ids.shape == (1, 8)


def test_weights__near_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tcga'"):
        checked_weights(["tcga", "gtex"], {"tgca": 1})


def test_apportion__adds_up_and_is_within_one() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        shares = random.dirichlet(np.ones(random.integers(1, 30)))
        counts = apportion(shares, 16_384)
        assert counts.sum() == 16_384
        assert abs(counts - shares * 16_384).max() < 1


def test_interleave__is_even_in_every_part() -> None:
    counts = np.array([1000, 300, 7, 1])
    groups = interleave(counts)
    assert np.array_equal(np.bincount(groups), counts)
    for group, count in enumerate(counts):
        ahead = np.cumsum(groups == group) - np.arange(1, len(groups) + 1) * count / counts.sum()
        assert abs(ahead).max() <= 2


def test_plan_of_a_dataset__carries_no_masks_to_loader_processes(dataset: Dataset) -> None:
    plan = make_plan(dataset, Order(12, weights={"alpha": 1.0, "beta": 3.0}))
    assert all(isinstance(selection.mask, np.memmap) for selection in plan.selections)
    there = pickle.loads(pickle.dumps(plan))  # noqa: S301
    assert np.array_equal(there.draws(range(9)).ids, plan.draws(range(9)).ids)
    for selection in plan.selections:
        assert isinstance(selection.mask, np.memmap)
        path = Path(str(selection.mask.filename))
        path.unlink()
        path.write_bytes(bytes(140))  # as a power cut may leave it
    again = make_plan(dataset, Order(12, weights={"alpha": 1.0, "beta": 3.0}))
    assert np.array_equal(again.draws(range(9)).ids, there.draws(range(9)).ids)
