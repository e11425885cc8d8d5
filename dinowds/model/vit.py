"""Backbones: timm's VisionTransformer, with DINO's initialisation, for images and for grids of features."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dinowds.model.architecture import Architecture
from dinowds.model.positions import resample_positions

_INIT_STD = 0.02


class ImageViT(VisionTransformer):  # type: ignore[misc]
    """float [N, 3, H, W] → class token [N, D], for any H and W that the patch size divides.

    Weights have the names and shapes of the original DINO files. `forward_features` gives all tokens,
    [N, 1 + rows · columns, D], the class token first, the others row by row.
    """

    def __init__(self, architecture: Architecture, drop_path_rate: float, **options: Any) -> None:
        super().__init__(
            img_size=architecture.grid * architecture.patch_size,
            patch_size=architecture.patch_size,
            in_chans=architecture.in_dim,
            embed_dim=architecture.size.embed_dim,
            depth=architecture.size.depth,
            num_heads=architecture.size.num_heads,
            num_classes=0,
            global_pool="token",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            drop_path_rate=drop_path_rate,
            dynamic_img_size=True,
            weight_init="skip",
            **options,
        )
        self.pos_interpolation = architecture.pos_interpolation

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Tokens [N, rows, columns, D] → [N, 1 + rows · columns, D], with class token and positions."""
        positions = resample_positions(self.pos_embed, x.shape[1], x.shape[2], self.pos_interpolation)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(1, 2)], dim=1) + positions


class RegionViT(ImageViT):
    """float [N, rows, columns, C] → class token [N, D]: cells of a region are its tokens. (HIPT, arXiv:2206.02647.)

    Cells that are missing are NaN; no token attends to them. `phi` has the name and shape of HIPT's.
    """

    def __init__(self, architecture: Architecture, drop_path_rate: float) -> None:
        super().__init__(architecture, drop_path_rate, embed_layer=_Cells)
        self.phi = nn.Sequential(nn.Linear(architecture.in_dim, architecture.size.embed_dim), nn.GELU())

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[N, rows, columns, C] → [N, 1 + rows · columns, D]. Tokens of missing cells mean nothing."""
        if attn_mask is not None or is_causal:
            raise ValueError("a region's mask is made from its missing cells")
        exists = ~x[..., 0].isnan()
        cells = x.nan_to_num(0.0).to(self.pos_embed.dtype)
        tokens = self._pos_embed(self.phi(cells))
        # [N, 1, 1, keys], for all heads and queries
        mask = torch.cat([exists.new_ones(len(x), 1), exists.flatten(1)], dim=1)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=mask)
        return cast(Tensor, self.norm(tokens))


class _Cells(nn.Module):
    """In the place of timm's patch embedding: has no weights; the cells are embedded by `RegionViT.phi`."""

    def __init__(self, img_size: int, **_: Any) -> None:
        super().__init__()
        self.grid_size = (img_size, img_size)
        self.num_patches = img_size**2


def build_backbone(architecture: Architecture, drop_path_rate: float = 0.0) -> ImageViT:
    """A ViT, initialised as in DINO: truncated normal of 0.02 for Linear weights, `pos_embed` and `cls_token`, zero
    biases, LayerNorm at identity, the patch embedding at torch's default.
    """
    build = ImageViT if architecture.kind == "image" else RegionViT
    backbone = build(architecture, drop_path_rate)
    initialise(backbone)
    return backbone


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
