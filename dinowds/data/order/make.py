"""The plan of a dataset, as a configuration or a caller asks for it."""

from __future__ import annotations

from dinowds.config import PatchConfig
from dinowds.data.dataset import Dataset
from dinowds.data.order.mixture import WeightedPlan
from dinowds.data.order.plan import EpochPlan, Order, Plan
from dinowds.data.order.spread import CappedPlan


def make_plan(dataset: Dataset, order: Order) -> Plan:
    """The plan of a dataset, or of the subset that it was opened with.

    Raises:
        ConfigError: an order that cannot work for this dataset.
    """
    plan: Plan
    if order.weights:
        masks = dataset.cohort_masks()
        plan = WeightedPlan({name: dataset.selection & mask for name, mask in masks.items()}, order)
    else:
        plan = EpochPlan(dataset.selection, order)
    return CappedPlan(plan, dataset.slides_of) if order.max_per_slide else plan


def order_of(config: PatchConfig) -> Order:
    """The order of the data that a configuration asks for."""
    data = config.data
    return Order(
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        chunk_size=data.chunk_size,
        window_chunks=data.window_chunks,
        partitions=data.partitions,
        max_per_slide=data.max_per_slide,
        weights=data.weights,
    )
