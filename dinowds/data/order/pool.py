"""How much of a selection is open at once: what a host's cache of remote chunks should hold."""

from __future__ import annotations

from dinowds.data.order.plan import Plan
from dinowds.data.order.spread import BLOCK_STEPS


def open_samples(plan: Plan, num_hosts: int) -> float:
    """Samples of the chunks that the busiest of `num_hosts` hosts has open at once.

    Those of its windows, which may be half as long again as `window_chunks`; and with a cap on slides, of one block of
    batches: what is exchanged within it is read earlier or later than its window.
    """
    order = plan.order
    found = 0.0
    for selection, layout in zip(plan.selections, plan.layouts, strict=True):
        windows = layout.num_windows(len(selection), order.chunk_size)
        found += _share(plan, layout.partitions, num_hosts) * len(selection) / windows
    if order.max_per_slide:
        steps = min(plan.steps_per_epoch, 2 * BLOCK_STEPS - 1)
        found += _share(plan, order.layout.partitions, num_hosts) * order.batch_size * steps
    return min(found, sum(map(len, plan.selections)))


def _share(plan: Plan, partitions: int, num_hosts: int) -> float:
    """Of a selection with so many partitions, what the busiest host reads."""
    touched = most_partitions(partitions, num_hosts)
    if plan.order.weights:  # numbers of draws of cohorts differ by a few between batches, which moves the hosts' edges
        touched = min(partitions, touched + 1)
    return touched / partitions


def most_partitions(partitions: int, num_hosts: int) -> int:
    """Most partitions that one host's places touch: hosts hold equal runs of a batch, and so do partitions."""
    return max(-(-(host + 1) * partitions // num_hosts) - host * partitions // num_hosts for host in range(num_hosts))
