"""From the plan to views on the device, in the order of steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dinowds.config import RunConfig
from dinowds.crops.batches import Batch
from dinowds.data.blocks import Blocks
from dinowds.data.dataset import Dataset
from dinowds.data.loader import load
from dinowds.data.order.plan import Plan
from dinowds.data.source import PlanSource, stream
from dinowds.data.store.cache import CacheOptions
from dinowds.errors import TrainingError
from dinowds.train.devices import choose_num_workers
from dinowds.train.kinds import ViewMaker
from dinowds.world import World


@dataclass(frozen=True)
class Fed:
    """What a step gets."""

    batch: Batch
    views: dict[str, Tensor]
    """On the device, as `ViewMaker.views` gives them."""
    waited: float
    """Seconds from asking for the batch until it was there."""


def cache_options(config: RunConfig) -> CacheOptions:
    """Where chunks of remote shards are kept, and how many."""
    folder = config.data.cache_dir
    return CacheOptions(Path(folder) if folder else None, int(config.data.cache_gib * 2**30))


def feed(
    dataset: Dataset,
    plan: Plan,
    config: RunConfig,
    maker: ViewMaker,
    world: World,
    device: torch.device,
    start: int,
    end: int,
) -> Generator[Fed, None, None]:
    """This rank's share of global batches `start` … `end` − 1.

    On a GPU, batches are copied there, and rendered there if they are to be, on a stream of their own: beside the step
    that is being computed, not after it.
    """
    source = PlanSource(
        dataset,
        plan,
        world,
        start,
        end,
        verify_digests=config.data.verify_digests,
        read_ahead=config.data.read_ahead,
        cache=cache_options(config),
    )
    num_workers = choose_num_workers(config.speed.num_workers, world, device)
    blocks = Blocks(num_workers, config.speed.prefetch_factor)
    pipeline = stream(source, maker.stage(source, blocks))
    upload = _Upload(maker, device)
    pin_memory = device.type == "cuda"
    with closing(load(pipeline, num_workers, config.speed.prefetch_factor, pin_memory=pin_memory)) as batches:
        for step in range(start, end):
            asked_at = time.perf_counter()
            batch: Batch = next(batches)
            waited = time.perf_counter() - asked_at
            if batch.step != step:
                raise TrainingError(f"the loader gave step {batch.step}, expected {step}: please report this")
            yield Fed(batch, upload(batch), waited)
            del batch  # so that its place is free as soon as the step lets it go


class _Upload:
    """Views of a batch, on the device."""

    def __init__(self, maker: ViewMaker, device: torch.device) -> None:
        self._maker, self._device = maker, device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if self._side is None:
            return self._maker.views(batch)
        with torch.cuda.stream(self._side):
            # One transfer of contiguous pinned memory each; slices of it would go through pageable memory.
            made = self._maker.views(batch).items()
            views = {name: view.to(self._device, non_blocking=True) for name, view in made}
        main = torch.cuda.current_stream(self._device)
        main.wait_stream(self._side)
        for view in views.values():
            view.record_stream(main)  # freed by the main stream's work, not by its own stream's
        return views
