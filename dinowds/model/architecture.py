"""The shape of a backbone: with it, a state dict is a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dinowds.config import Kind
from dinowds.errors import ConfigError


class Size(NamedTuple):
    embed_dim: int
    depth: int
    num_heads: int


SIZES: dict[Kind, dict[str, Size]] = {
    "image": {
        "vit_tiny": Size(192, 12, 3),
        "vit_small": Size(384, 12, 6),
        "vit_base": Size(768, 12, 12),
        "vit_large": Size(1024, 24, 16),
        "vit_huge": Size(1280, 32, 16),
    },
    "region": {
        "hvit_xs": Size(192, 6, 6),
        "hvit_s": Size(384, 6, 6),
        "hvit_b": Size(768, 6, 12),
    },
}
"""`student.arch` by the kind of the samples. hvit_xs is HIPT's vit4k_xs (Chen et al. 2022)."""

POS_INTERPOLATIONS = ("timm", "size", "dino")
"""See `positions.resample_positions`."""


@dataclass(frozen=True)
class Architecture:
    """What a Vision Transformer is built from."""

    kind: Kind
    """`image`: tokens are squares of px. `region`: tokens are cells of a grid of features."""
    size: Size
    in_dim: int
    """Channels of a pixel, 3; or features of a cell."""
    patch_size: int
    """Side of a token's square: px, or 1 cell."""
    grid: int
    """Tokens a side of the square that `pos_embed` is made for; other grids get it interpolated."""
    pos_interpolation: str = "timm"
    """One of `POS_INTERPOLATIONS`."""
    registers: int = 0
    """Register tokens beside the class token. (Darcet et al. 2024, "Vision transformers need registers".)"""
    layer_scale: bool = False
    """A learned factor of each channel of each residual branch. (Touvron et al. 2021, "Going deeper with image
    transformers".)"""


def describe_architecture(architecture: Architecture) -> dict[str, Any]:
    """In plain JSON values, `size` taken apart."""
    return {
        "kind": architecture.kind,
        **architecture.size._asdict(),
        "in_dim": architecture.in_dim,
        "patch_size": architecture.patch_size,
        "grid": architecture.grid,
        "pos_interpolation": architecture.pos_interpolation,
        "registers": architecture.registers,
        "layer_scale": architecture.layer_scale,
    }


def size_of(kind: Kind, arch: str, embed_dim: int | None = None, depth: int | None = None) -> Size:
    """Width, depth and heads of an architecture; another width keeps the width of its heads.

    Raises:
        ConfigError: there is no such architecture, or its heads cannot share the width.
    """
    if arch not in SIZES[kind]:
        raise ConfigError(f"student.arch is {arch}, expected one of {', '.join(SIZES[kind])}")
    size = SIZES[kind][arch]
    if embed_dim is not None:
        width = size.embed_dim // size.num_heads
        num_heads, rest = divmod(embed_dim, width)
        if rest or num_heads < 1:
            raise ConfigError(f"student.embed_dim is {embed_dim}, expected a multiple of {width}, the width of a head")
        size = size._replace(embed_dim=embed_dim, num_heads=num_heads)
    return size if depth is None else size._replace(depth=depth)
