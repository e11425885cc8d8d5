"""Class-token features of a backbone at hand; `encoder` is for weights on disk and many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinowds.model.pixels import normalise


@torch.inference_mode()
def backbone_features(backbone: nn.Module, samples: Tensor, batch_size: int = 256) -> Tensor:
    """float32 [N, D], on the CPU.

    The backbone is put into evaluation mode for the call and back afterwards.

    Args:
        samples: images, uint8 [N, S, S, 3], which are normalised as ImageNet's; or regions, float [N, n, n, C].
    """
    device, was_training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    try:
        parts = [backbone(_input(part.to(device))).float().cpu() for part in torch.split(samples, batch_size)]
    finally:
        backbone.train(was_training)
    return torch.cat(parts)


def _input(samples: Tensor) -> Tensor:
    return normalise(samples.permute(0, 3, 1, 2)) if samples.dtype == torch.uint8 else samples.float()
