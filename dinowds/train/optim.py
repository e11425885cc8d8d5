"""What changes weights: AdamW's groups, per-tensor clipping, the teacher's moving average."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build_optimizer(student: nn.Module) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999; 1e-8), without weight decay on biases and other 1-D tensors.

    `pos_embed`, `cls_token` and `last_layer.weight_g` are decayed, as in DINO. Rates are set each step.
    """
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trainable if p.ndim > 1], "decayed": True},
            {"params": [p for p in trainable if p.ndim <= 1], "decayed": False},
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_per_tensor(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """g ← g · min(1, max_norm / (‖g‖₂ + 1e-6)) for each tensor by itself, in place. Returns the norms before."""
    norms = list(torch._foreach_norm(gradients))
    scales = list(torch._foreach_add(norms, 1e-6))
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, max_norm)
    torch._foreach_clamp_max_(scales, 1.0)
    torch._foreach_mul_(gradients, scales)
    return norms


@torch.no_grad()
def update_teacher(teacher: list[Tensor], student: list[Tensor], momentum: float) -> None:
    """θ_t ← m θ_t + (1 − m) θ_s, in place."""
    torch._foreach_mul_(teacher, momentum)
    torch._foreach_add_(teacher, student, alpha=1 - momentum)
