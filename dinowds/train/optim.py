"""What changes weights: AdamW and its groups, clipping, the teacher's moving average.

Nothing here waits for a GPU: whether a step is applied is decided by its kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dinowds.model.dino import DinoModel

_CLIP_EPS = 1e-6


def build_optimizer(model: DinoModel, layer_decay: float = 1.0) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999; 1e-8), without weight decay on biases and other 1-D tensors.

    `pos_embed`, `cls_token` and `last_layer.weight_g` are decayed, as in DINO. Rates are set each step. Groups say
    whether they are `decayed`, and by which `lr_scale` their learning rate is multiplied (`lr_scale_of`).
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    depth = len(model.backbone.blocks)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in sorted(trainable, key=lambda item: item[1].ndim <= 1):  # the decayed ones first
        key = (lr_scale_of(name, depth, layer_decay), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "decayed": decayed, "lr_scale": lr_scale}
            for (lr_scale, decayed), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def lr_scale_of(name: str, depth: int, layer_decay: float) -> float:
    """layer_decay^(depth + 1 − l), l being 0 for what makes tokens, i + 1 for block i (from 0), and depth + 1 for the
    last norm and the head, whose rate is not scaled. (ELECTRA, Clark et al. 2020, appendix A; as in DINOv2.)

    Args:
        name: of a parameter of a `DinoModel`.
        depth: blocks of the backbone.
    """
    room, _, rest = name.partition(".")
    part, _, number = rest.partition(".")
    if room == "head" or part == "norm":
        layer = depth + 1
    else:
        layer = int(number.partition(".")[0]) + 1 if part == "blocks" else 0
    return float(layer_decay ** (depth + 1 - layer))


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # groups of older checkpoints have none
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


@torch.no_grad()
def clip(
    gradients: list[Tensor], max_norm: float, how: str, reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """g ← g · min(1, max_norm / (norm + 1e-6)), in place. Returns the L2 norm of each tensor before, float32 [n].

    Args:
        gradients: n ≥ 1 tensors on one device.
        max_norm: ≥ 0; 0 to measure only.
        how: `tensor`: each tensor by its own norm, as in DINO; `global`: all by the norm of all together.
        reduce: where each rank holds a share of each tensor: sums the squares of the norms, float32 [n], over ranks.
    """
    norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float32))
    if reduce is not None:
        norms = reduce(norms.square()).sqrt()
    if max_norm > 0 and how == "tensor":
        _scale_each(gradients, _factors(norms, max_norm))
    elif max_norm > 0:
        torch._foreach_mul_(gradients, _factors(torch.linalg.vector_norm(norms), max_norm))
    return norms


def _factors(norms: Tensor, max_norm: float) -> Tensor:
    return (max_norm / (norms + _CLIP_EPS)).clamp_max_(1.0)


def _scale_each(tensors: list[Tensor], factors: Tensor) -> None:
    if factors.device.type == "cpu":  # where looking costs less than multiplying by 1
        scaled = [(tensor, factor) for tensor, factor in zip(tensors, factors.tolist(), strict=True) if factor != 1.0]
        for tensor, factor in scaled:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factors.unbind())


def apply(optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """`optimizer.step()`, unless `is_bad`: then parameters and state stay as they are, steps counted included.

    Args:
        optimizer: fused; its kernels look at `is_bad` themselves, so nothing waits for it.
        is_bad: 0-d float32 on the parameters' device, 1 or 0.
    """
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]  # what torch's GradScaler tells fused kernels
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


@torch.no_grad()
def update_teacher(teacher: list[Tensor], student: list[Tensor], momentum: float, is_bad: Tensor) -> None:
    """θ_t ← m θ_t + (1 − m) θ_s, in place, unless `is_bad` (0-d float32 on their device, 1 or 0)."""
    if is_bad.device.type == "cpu":
        if not is_bad:
            torch._foreach_lerp_(teacher, student, 1 - momentum)
        return
    changes = torch._foreach_sub(student, teacher)
    torch._foreach_mul_(changes, (1 - momentum) * (1 - is_bad))
    torch._foreach_add_(teacher, changes)
