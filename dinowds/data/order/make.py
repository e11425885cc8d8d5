"""The plan of a dataset, as a configuration or a caller asks for it."""

from __future__ import annotations

import xxhash

from dinowds.config import RunConfig
from dinowds.data.dataset import Dataset
from dinowds.data.order.mixture import WeightedPlan
from dinowds.data.order.plan import EpochPlan, Order, Plan
from dinowds.data.order.spread import CappedPlan
from dinowds.data.subsets.selection import Selection, open_mask
from dinowds.data.subsets.subset import mask_file
from dinowds.files import cache_folder, remove_abandoned, write_atomic


def make_plan(dataset: Dataset, order: Order) -> Plan:
    """The plan of a dataset, or of the subset that it was opened with.

    Raises:
        ConfigError: an order that cannot work for this dataset.
    """
    plan: Plan
    if order.weights:
        selections = {name: dataset.selection & mask for name, mask in dataset.cohort_masks().items()}
        plan = WeightedPlan({name: _mapped(dataset, name, chosen) for name, chosen in selections.items()}, order)
    else:
        plan = EpochPlan(dataset.selection, order)
    return CappedPlan(plan, dataset.slides_of) if order.max_per_slide else plan


def _mapped(dataset: Dataset, cohort: str, selection: Selection) -> Selection:
    """The same selection, its mask in a file that loader processes map: theirs would be one a cohort in each."""
    assert selection.mask is not None
    name = xxhash.xxh3_128_hexdigest(f"{dataset.fingerprint}\0{cohort}".encode())
    path, content = cache_folder() / "index" / f"{name}.npy", mask_file(selection.mask)
    try:
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path)
            write_atomic(path, content)
        return Selection(dataset.shard_counts, open_mask(str(path), dataset.manifest.num_samples))
    except (OSError, ValueError):  # the cache cannot be written: every process holds its own
        return selection


def order_of(config: RunConfig) -> Order:
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
