"""What a trained model is to be better than: features that nothing was learned for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinowds.config import Kind
from dinowds.eval.extract import Inputs, Model
from dinowds.model.architecture import Architecture
from dinowds.model.vit import ImageViT, build_backbone

RANDOM = "random"
_PIXELS, _CELLS = 16, 4
"""Sides that images and regions are averaged down to."""


def baselines(architecture: Architecture, inputs: Inputs, device: torch.device, seed: int = 0) -> dict[str, Model]:
    """By the names that they are shown by. Of images and of regions, whose colours are the features of cells."""
    own: dict[Kind, dict[str, Model]] = {
        "image": {"mean RGB": MeanColour(), "raw pixels": RawPixels()},
        "region": {"mean of cells": MeanCell(inputs.channels), "raw cells": RawCells(inputs.channels)},
    }
    return {RANDOM: untrained(architecture, seed).to(device), **own[architecture.kind]}


def untrained(architecture: Architecture, seed: int) -> ImageViT:
    """The model with the weights that training begins with, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: ImageViT = build_backbone(architecture)
    backbone.eval().requires_grad_(False)
    return backbone


class MeanColour(nn.Module):
    """[N, 3, H, W] → [N, 3]."""

    embed_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class RawPixels(nn.Module):
    """[N, 3, H, W] → [N, 768]: the image averaged down to 16 × 16 px."""

    embed_dim = 3 * _PIXELS**2

    def forward(self, images: Tensor) -> Tensor:
        return flat_pixels(images, _PIXELS)


class MeanCell(nn.Module):
    """[N, n, n, C] → [N, C]: the mean feature of the cells that exist."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed_dim = channels

    def forward(self, regions: Tensor) -> Tensor:
        return mean_of_cells(regions)


class RawCells(nn.Module):
    """[N, n, n, C] → [N, 16 · C]: the region averaged down to 4 × 4 cells; 0 where none exists."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed_dim = channels * _CELLS**2

    def forward(self, regions: Tensor) -> Tensor:
        exists = (~regions[..., :1].isnan()).to(regions.dtype).permute(0, 3, 1, 2)
        cells = regions.nan_to_num(0.0).permute(0, 3, 1, 2)
        shares = nn.functional.adaptive_avg_pool2d(exists, _CELLS)
        means = nn.functional.adaptive_avg_pool2d(cells, _CELLS) / shares
        return means.nan_to_num(0.0).flatten(1)


def flat_pixels(images: Tensor, side: int) -> Tensor:
    """float [N, C, H, W] → [N, C · side²]: averaged down to `side` × `side` px."""
    return nn.functional.adaptive_avg_pool2d(images, side).flatten(1)


def mean_of_cells(regions: Tensor) -> Tensor:
    """[N, n, n, C] → float32 [N, C]: the mean feature of the cells that exist."""
    return regions.float().flatten(1, 2).nanmean(1)
