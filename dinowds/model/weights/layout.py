"""Positions beside registers: ours, and timm's, where class token and registers have no place (`no_embed_class`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_REGISTERS, _CLASS, _POSITIONS = "reg_token", "cls_token", "pos_embed"


def with_position_in_class_token(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same features, to the last bit: the class token's position is added to it and becomes 0.

    What one cannot tell apart is one; and timm keeps it so. Without registers: the same tensors.
    """
    if _REGISTERS not in backbone:
        return dict(backbone)
    positions = backbone[_POSITIONS].clone()
    token = backbone[_CLASS] + positions[:, :1]
    positions[:, 0] = 0
    return {**backbone, _CLASS: token, _POSITIONS: positions}


def to_timm(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`pos_embed` [1, 1 + n², D] → [1, n², D] where there are registers."""
    if _REGISTERS not in backbone:
        return dict(backbone)
    kept = with_position_in_class_token(backbone)
    return {**kept, _POSITIONS: kept[_POSITIONS][:, 1:].contiguous()}


def from_timm(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`pos_embed` [1, n², D] → [1, 1 + n², D], 0 for the class token, where there are registers; all else as it is."""
    positions = backbone.get(_POSITIONS)
    if _REGISTERS not in backbone or positions is None or not _is_square(positions):
        return dict(backbone)
    return {**backbone, _POSITIONS: torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}


def _is_square(positions: Tensor) -> bool:
    return positions.ndim == 3 and positions.shape[1] == math.isqrt(positions.shape[1]) ** 2
