"""A tiny dataset of regions and a run on it that takes seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dinowds.shard.build import ShardOptions, build_dataset

SIDE, CHANNELS = 6, 8
TINY_REGION_RUN = (
    "student.embed_dim=64", "student.depth=2", "student.out_dim=64",
    "crops.global.size=4", "crops.local.size=2", "crops.local.count=3",
    "train.batch_size=12", "train.save_every_steps=4", "train.log_every=1", "train.save_every=100",
    "optim.epochs=3", "optim.warmup_epochs=1", "optim.max_steps=15", "speed.num_workers=0", "speed.precision=fp32",
    "data.chunk_size=4", "data.window_chunks=3", "data.partitions=4",
)  # fmt: skip


def make_region(seed: int, side: int = SIDE, channels: int = CHANNELS, missing: float = 0.2) -> Tensor:
    """float32 [side, side, channels], missing cells NaN."""
    generator = torch.Generator().manual_seed(seed)
    region = torch.randn(side, side, channels, generator=generator)
    region[torch.rand(side, side, generator=generator) < missing] = torch.nan
    return region


def make_regions(folder: Path, regions: list[Tensor]) -> Path:
    """A dataset of these regions."""
    source = folder / "source"
    source.mkdir(parents=True)
    for index, region in enumerate(regions):
        torch.save(region, source / f"slide{index // 10}_{index}_{2 * index}.pt")
    build_dataset([source], folder / "dataset", ShardOptions(max_count=25))
    return folder / "dataset"
