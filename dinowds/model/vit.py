"""Backbones: timm's VisionTransformer, with DINO's initialisation, for images and for grids of features."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinowds.model.architecture import Architecture
from dinowds.model.blocks import ClassBlock, SkippingBlock
from dinowds.model.positions import resample_positions

INITIAL_SCALE = 1e-5
"""Of LayerScale, as in DINOv2."""
_INIT_STD = 0.02


class ImageViT(VisionTransformer):  # type: ignore[misc]
    """float [N, 3, H, W] → class token [N, D], for any H and W that the patch size divides. The last block computes it
    alone.

    Weights have the names and shapes of the original DINO files. `forward_features` gives the class token, first, and
    those of the patches row by row, [N, 1 + rows · columns, D]. Registers lie between them in the blocks (Darcet et al.
    2024); they have no position, and are left out of what comes out.
    """

    def __init__(
        self,
        architecture: Architecture,
        drop_path_rate: float,
        drop_path_skips: bool,
        initial_scale: float,
        **options: Any,
    ) -> None:
        """See `build_backbone`."""
        size = architecture.size
        super().__init__(
            img_size=architecture.grid * architecture.patch_size,
            patch_size=architecture.patch_size,
            in_chans=architecture.in_dim,
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
            num_classes=0,
            global_pool="token",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            reg_tokens=architecture.registers,
            init_values=initial_scale if architecture.layer_scale else None,
            drop_path_rate=drop_path_rate,
            block_fn=SkippingBlock if drop_path_skips else ClassBlock,
            dynamic_img_size=True,
            weight_init="skip",
            **options,
        )
        # timm's has places for registers too
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + architecture.grid**2, size.embed_dim))
        self.pos_interpolation = architecture.pos_interpolation

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, D]."""
        return self.forward_head(self._encode(x, class_only=True))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, 1 + rows · columns, D]."""
        tokens = self._encode(x, class_only=False)
        if not self.num_reg_tokens:
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, self.num_prefix_tokens :]], dim=1)

    def _encode(self, x: Tensor, class_only: bool) -> Tensor:
        """All tokens that the blocks have, after the last norm; or the class token, [N, 1, D]."""
        tokens, mask = self._embed(x)
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if self.grad_checkpointing else block
            tokens = run(tokens, attn_mask=mask, class_only=class_only and block is self.blocks[-1])
        return self.norm(tokens)  # type: ignore[no-any-return]

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [N, T, D] of the first block, and which of them are seen: bool [N, 1, 1, T], None for all."""
        return self._pos_embed(self.patch_embed(x)), None

    def _pos_embed(self, x: Tensor) -> Tensor:
        """[N, rows, columns, D] → [N, 1 + registers + rows · columns, D], with class token, registers and positions."""
        positions = resample_positions(self.pos_embed, x.shape[1], x.shape[2], self.pos_interpolation)
        prefix = [self.cls_token + positions[:, :1], *([self.reg_token] if self.num_reg_tokens else [])]
        patches = x.flatten(1, 2) + positions[:, 1:]
        return torch.cat([*(tokens.expand(len(x), -1, -1) for tokens in prefix), patches], dim=1)


class RegionViT(ImageViT):
    """float [N, rows, columns, C] → class token [N, D]: cells of a region are its tokens. (HIPT, arXiv:2206.02647.)

    Cells that are missing are NaN; no token attends to them, and what comes out for them means nothing. `phi` has the
    name and shape of HIPT's.
    """

    def __init__(self, architecture: Architecture, *args: Any) -> None:
        super().__init__(architecture, *args, embed_layer=_Cells)
        self.phi = nn.Sequential(nn.Linear(architecture.in_dim, architecture.size.embed_dim), nn.GELU())

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of [N, rows, columns, C]."""
        exists = ~x[..., 0].isnan()
        cells = x.nan_to_num(0.0).to(self.pos_embed.dtype)
        # For all heads and queries
        seen = torch.cat([exists.new_ones(len(x), self.num_prefix_tokens), exists.flatten(1)], dim=1)[:, None, None]
        return self._pos_embed(self.phi(cells)), seen


class _Cells(nn.Module):
    """In the place of timm's patch embedding: has no weights; the cells are embedded by `RegionViT.phi`."""

    def __init__(self, img_size: int, **_: Any) -> None:
        super().__init__()
        self.grid_size = (img_size, img_size)
        self.num_patches = img_size**2


def build_backbone(
    architecture: Architecture,
    drop_path_rate: float = 0.0,
    *,
    drop_path_skips: bool = False,
    initial_scale: float = INITIAL_SCALE,
) -> ImageViT:
    """A ViT, initialised as in DINO: truncated normal of 0.02 for Linear weights, `pos_embed`, `cls_token` and
    `reg_token`, zero biases, LayerNorm at identity, the patch embedding at torch's default.

    Args:
        drop_path_rate: of the last block; linear over depth.
        drop_path_skips: see `SkippingBlock`.
        initial_scale: of LayerScale's factors, above 0; where the architecture has them.
    """
    build = ImageViT if architecture.kind == "image" else RegionViT
    backbone = build(architecture, drop_path_rate, drop_path_skips, initial_scale)
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
        elif isinstance(child, nn.LayerNorm | nn.Conv2d | LayerScale):
            child.reset_parameters()
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("pos_embed", "cls_token", "reg_token"):
            nn.init.trunc_normal_(parameter, std=_INIT_STD)
