"""How much of a selection is open at once: what a host's cache of remote chunks should hold."""

from __future__ import annotations

from collections.abc import Sequence

from dinowds.data.order.plan import Plan
from dinowds.data.order.spread import BLOCK_STEPS


def open_samples(plan: Plan, shares: Sequence[float], num_hosts: int) -> float:
    """Samples of the chunks that the busiest of `num_hosts` hosts has open at once.

    Those of its windows, which may be half as long again as `window_chunks`; and with a cap on slides, of one block of
    batches: what is exchanged within it is read earlier or later than its window.

    Args:
        shares: of the draws, for each of the plan's `selections`; their sum is 1.
    """
    order = plan.order
    assert order.partitions is not None
    assert order.window_chunks is not None
    touched = most_partitions(order.partitions, num_hosts)
    if order.weights:  # the numbers of draws of cohorts differ by a few between batches, which moves the hosts' edges
        touched = min(order.partitions, touched + 1)
    part = touched / order.partitions
    found = 0.0
    for selection, share in zip(plan.selections, shares, strict=True):
        pool = max(1, round(share * order.partitions * order.window_chunks))
        if order.weights and (-(-selection.counts // order.chunk_size)).sum() <= pool:
            found += len(selection)  # one window, of which every host draws
        else:
            found += part * len(selection) / max(1, round(len(selection) / (pool * order.chunk_size)))
    if order.max_per_slide:
        found += part * order.batch_size * min(plan.steps_per_epoch, 2 * BLOCK_STEPS - 1)
    return min(found, sum(map(len, plan.selections)))


def most_partitions(partitions: int, num_hosts: int) -> int:
    """Most partitions that one host's places touch: hosts hold equal runs of a batch, and so do partitions."""
    return max(-(-(host + 1) * partitions // num_hosts) - host * partitions // num_hosts for host in range(num_hosts))
