"""A transformer block that computes only the samples whose path is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

_PARTS = 1_000_000


class SkippingBlock(Block):  # type: ignore[misc]
    """timm's block with the batched stochastic depth of DINOv2 (Oquab et al. 2024, §5, "Efficient stochastic depth").

    In training each of the two branches works on a random subset of the samples, ⌈B · (1 − p)⌉ of them, and
    adds what comes out, times B / ⌈B · (1 − p)⌉, so the expectation is that of plain stochastic depth. With p = 0
    and in eval mode it is timm's block. The subset comes from torch's generator of the device.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, T, D], and a mask [B, heads or 1, T or 1, T] → [B, T, D]."""
        rate = getattr(self.drop_path1, "drop_prob", 0.0)
        if not self.training or rate == 0:
            return super().forward(x, attn_mask, is_causal)  # type: ignore[no-any-return]

        def attend(kept: Tensor, ids: Tensor) -> Tensor:
            mask = None if attn_mask is None else attn_mask.index_select(0, ids)
            return self.ls1(self.attn(self.norm1(kept), attn_mask=mask, is_causal=is_causal))  # type: ignore[no-any-return]

        def think(kept: Tensor, _: Tensor) -> Tensor:
            return self.ls2(self.mlp(self.norm2(kept)))  # type: ignore[no-any-return]

        return _add_to_some(_add_to_some(x, attend, rate), think, rate)


def _add_to_some(x: Tensor, branch: Callable[[Tensor, Tensor], Tensor], drop_rate: float) -> Tensor:
    """[B, T, D] → x + B / kept · branch(x of the kept, their ids [kept]) for a random subset, x for the others."""
    # ⌈B · (1 − p)⌉ in whole numbers: for batches of any size, inductor fails where a float decides a shape
    num_kept = (len(x) * round(_PARTS * (1 - drop_rate)) + _PARTS - 1) // _PARTS
    ids = torch.randperm(len(x), device=x.device)[:num_kept]
    added = branch(x.index_select(0, ids), ids)
    return x.index_add(0, ids, added.to(x.dtype), alpha=len(x) / num_kept)
