"""From what is stored to what a backbone takes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


def normalise(
    images: Tensor, dtype: torch.dtype = torch.float32, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD
) -> Tensor:
    """uint8 [N, 3, H, W] → `dtype` [N, 3, H, W], with `mean` at 0 and `std` at 1, both as shares of 255."""
    shift, scale = _mean_and_std(images.device, mean, std)
    return images.float().sub_(shift).div_(scale).to(dtype)


@functools.cache
def _mean_and_std(device: torch.device, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    # Kept on the device: making them in each step would copy from the host and wait for it.
    shift, scale = torch.tensor([mean, std], device=device).mul_(255).view(2, 3, 1, 1)
    return shift, scale
