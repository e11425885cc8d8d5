"""Backbones: timm's VisionTransformer, with DINO's sizes and initialisation."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dinowds.config import StudentConfig
from dinowds.errors import ConfigError


class Size(NamedTuple):
    embed_dim: int
    depth: int
    num_heads: int


SIZES = {
    "vit_tiny": Size(192, 12, 3),
    "vit_small": Size(384, 12, 6),
    "vit_base": Size(768, 12, 12),
    "vit_large": Size(1024, 24, 16),
    "vit_huge": Size(1280, 32, 16),
}
_HEAD_DIM = 64  # of a width that is not an architecture's own
_INIT_STD = 0.02


def size_of(student: StudentConfig) -> Size:
    """Width, depth and heads that the configuration asks for."""
    size = SIZES[student.arch]
    if student.embed_dim is not None and student.embed_dim != size.embed_dim:
        num_heads, rest = divmod(student.embed_dim, _HEAD_DIM)
        if rest or num_heads < 1:
            raise ConfigError(f"student.embed_dim is {student.embed_dim}, expected a multiple of {_HEAD_DIM}")
        size = size._replace(embed_dim=student.embed_dim, num_heads=num_heads)
    return size if student.depth is None else size._replace(depth=student.depth)


def build_vit(student: StudentConfig, image_size: int, drop_path_rate: float) -> nn.Module:
    """A ViT that maps float [B, 3, H, W] to its class token [B, D], for any H and W that `patch_size` divides.

    Weights have the names and shapes of the original DINO files. `image_size` (px) sets the grid of `pos_embed`; other
    sizes get it interpolated. Initialised as in DINO: truncated normal of 0.02 for Linear weights, `pos_embed` and
    `cls_token`, zero biases, LayerNorm at identity, the patch embedding at torch's default.
    """
    size = size_of(student)
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=student.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        num_classes=0,
        global_pool="token",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        drop_path_rate=drop_path_rate,
        dynamic_img_size=True,
        weight_init="skip",
    )
    initialise(vit)
    return cast(nn.Module, vit)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """DINO's initialisation, in place, of every parameter of a backbone."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=_INIT_STD)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm | nn.Conv2d):
            child.reset_parameters()
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("pos_embed", "cls_token"):
            nn.init.trunc_normal_(parameter, std=_INIT_STD)
