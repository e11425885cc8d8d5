"""How much is open at once, against what the batches of plans touch."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from dinowds.data.order.mixture import WeightedPlan
from dinowds.data.order.plan import EpochPlan, Order, Plan
from dinowds.data.order.pool import most_partitions, open_samples
from dinowds.data.order.spread import CappedPlan
from dinowds.data.subsets.selection import Selection, pack_mask


@pytest.mark.parametrize(
    ("partitions", "hosts", "most"),
    [(1, 1, 1), (1, 8, 1), (2, 3, 2), (2, 2, 1), (2, 4, 1), (64, 3, 22), (64, 64, 1), (12, 8, 2), (3, 2, 2), (5, 4, 2)],
)
def test_partitions__that_one_host_touches(partitions: int, hosts: int, most: int) -> None:
    assert most_partitions(partitions, hosts) == most
    batch = partitions * hosts * 2
    of_places = np.arange(batch) * partitions // batch
    assert most == max(len(np.unique(part)) for part in np.split(of_places, hosts))


def spans(plan: Plan, hosts: int) -> int:
    """Most samples of chunks that a host is in the midst of: drawn from before a step, and drawn from after it."""
    draws = plan.draws(range(plan.steps_per_epoch))
    batch, open_at_most = plan.order.batch_size, 0
    for host in range(hosts):
        part = slice(host * batch // hosts, (host + 1) * batch // hosts)
        _, visits, groups, firsts, counts = (array[:, part] for array in draws)
        _, chunks = np.unique(np.stack([visits, groups, firsts]).reshape(3, -1), axis=1, return_inverse=True)
        chunks = chunks.reshape(firsts.shape)
        change = np.zeros(plan.steps_per_epoch + 1, dtype=np.int64)
        for chunk in range(chunks.max() + 1):
            steps = np.nonzero(chunks == chunk)[0]
            change[steps.min()] += counts[chunks == chunk][0]
            change[steps.max() + 1] -= counts[chunks == chunk][0]
        open_at_most = max(open_at_most, int(np.cumsum(change).max()))
    return open_at_most


@pytest.mark.parametrize("cap", [None, 1])
@pytest.mark.parametrize(("partitions", "hosts"), [(1, 1), (1, 2), (2, 1), (2, 3), (4, 2), (4, 3), (6, 4)])
@pytest.mark.parametrize("samples", [2000, 3500, 12000])
def test_pool__holds_what_is_open(samples: int, partitions: int, hosts: int, cap: int | None) -> None:
    plan: Plan = EpochPlan(Selection([100] * (samples // 100)), Order(12, 0, 8, 96 // partitions, partitions, cap))
    if cap:
        slides = np.arange(samples, dtype=np.uint64) // np.uint64(40) + np.uint64(1)
        plan = CappedPlan(plan, lambda ids: slides[ids])
    found, needed = open_samples(plan, hosts), spans(plan, hosts)
    assert needed <= 1.02 * found  # a few chunks of the next window are open before the last of this one are done
    assert cap or found <= 1.7 * needed
    assert found <= samples


@pytest.mark.parametrize("cohorts", [1, 3, 20])
@pytest.mark.parametrize(("partitions", "hosts"), [(1, 1), (1, 2), (4, 1), (4, 2), (8, 4)])
def test_pool__of_weighted_cohorts_holds_what_is_open(partitions: int, hosts: int, cohorts: int) -> None:
    """A cohort whose share of the pool is less than a chunk of each partition has that much open all the same."""
    cohort_of = np.arange(6000) % cohorts
    selections = {str(i): Selection([600] * 10, pack_mask(cohort_of == i)) for i in range(cohorts)}
    weights = dict.fromkeys(selections, 1.0)
    plan = WeightedPlan(selections, Order(16, 0, 4, 64 // partitions, partitions, weights=weights))
    found, needed = open_samples(plan, hosts), spans(plan, hosts)
    assert needed <= 1.1 * found
    assert found <= 2.5 * needed


@pytest.mark.parametrize("windows", [Fraction(14, 10), Fraction(16, 10), Fraction(24, 10), Fraction(5)])
def test_pool__windows_are_longer_where_partitions_are_not_whole_numbers_of_them(windows: Fraction) -> None:
    samples = int(windows * 16 * 32)
    plan = EpochPlan(Selection([samples]), Order(8, 0, 16, 32, 1))
    count = round(windows)
    assert floor(samples / count) <= open_samples(plan, 1) <= ceil(samples / count)
