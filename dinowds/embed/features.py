"""Class-token features of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinowds.train.step import normalise


@torch.inference_mode()
def image_features(backbone: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Features of uint8 [N, S, S, 3] images: float32 [N, D], on the CPU.

    The backbone is put into evaluation mode for the call and back afterwards.
    """
    device, was_training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    try:
        channels_first = torch.split(images.permute(0, 3, 1, 2), batch_size)
        parts = [backbone(normalise(part[None].to(device))).float().cpu() for part in channels_first]
    finally:
        backbone.train(was_training)
    return torch.cat(parts)
