"""Transformer blocks that leave out what nobody uses: tokens but the class token, and samples whose path is dropped."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor

_PARTS = 1_000_000


class ClassBlock(Block):  # type: ignore[misc]
    """timm's block, which can compute the class token alone: for the last one, where no other token is used.

    It is a share of 1 / T of the work, and a little for attention (`class_attention`).
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, class_only: bool = False) -> Tensor:
        """[B, T, D], and a mask [B, 1, 1, T] → [B, T, D]; with `class_only` the first token of it, [B, 1, D]."""
        x = _outputs(x, class_only) + self.drop_path1(self._attend(x, attn_mask, class_only))
        return x + self.drop_path2(self._think(x))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, attn_mask: Tensor | None, class_only: bool) -> Tensor:
        tokens = self.norm1(x)
        if class_only:
            return self.ls1(class_attention(self.attn, tokens, attn_mask))  # type: ignore[no-any-return]
        return self.ls1(self.attn(tokens, attn_mask=attn_mask))  # type: ignore[no-any-return]

    def _think(self, x: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class SkippingBlock(ClassBlock):
    """A block with the batched stochastic depth of DINOv2 (Oquab et al. 2024, §5, "Efficient stochastic depth").

    In training each of the two branches works on a random subset of the samples, ⌈B · (1 − p)⌉ of them, and
    adds what comes out, times B / ⌈B · (1 − p)⌉, so the expectation is that of plain stochastic depth. With p = 0
    and in eval mode it is timm's block. The subset comes from torch's generator of the device.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, class_only: bool = False) -> Tensor:
        """As `ClassBlock`."""
        rate = getattr(self.drop_path1, "drop_prob", 0.0)
        if not self.training or rate == 0:
            return super().forward(x, attn_mask, class_only)

        def attend(ids: Tensor) -> Tensor:
            mask = None if attn_mask is None else attn_mask.index_select(0, ids)
            return self._attend(x.index_select(0, ids), mask, class_only)

        attended = _add_to_some(_outputs(x, class_only), attend, rate)
        return _add_to_some(attended, lambda ids: self._think(attended.index_select(0, ids)), rate)


def class_attention(attention: Attention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What `attention` gives for the first of its tokens, [B, T, D] → [B, 1, D], up to the order of sums.

    No token's key or value is made. A query's product with a key, q · (W_k x_t + b_k), is (W_kᵀ q) · x_t and a number
    that all t share, which softmax ignores; a mean of values, Σ a_t (W_v x_t + b_v), is W_v Σ a_t x_t + b_v. So each
    head looks at the tokens themselves: heads · T · D products in the place of T · D², twice.

    Args:
        attention: without norms of queries and keys, and without dropout.
        mask: bool [B, 1, 1, T], the tokens that are seen.
    """
    of_queries, of_keys, of_values = attention.qkv.weight.unflatten(0, (3, attention.num_heads, -1)).unbind()
    query_bias, _, value_bias = attention.qkv.bias.chunk(3)
    queries = F.linear(x[:, 0], of_queries.flatten(0, 1), query_bias).view(len(x), *of_queries.shape[:2])
    # The heads are rows of one attention over the tokens, of width D
    rows = torch.einsum("bhd,hdc->bhc", queries, of_keys)[:, None]
    tokens = x[:, None]
    means = F.scaled_dot_product_attention(rows, tokens, tokens, attn_mask=mask, scale=attention.scale)[:, 0]
    values = torch.einsum("bhc,hdc->bhd", means, of_values).flatten(1) + value_bias
    return attention.proj(values)[:, None]  # type: ignore[no-any-return]


def _outputs(x: Tensor, class_only: bool) -> Tensor:
    """The tokens that are to come out."""
    return x[:, :1] if class_only else x


def _add_to_some(x: Tensor, branch: Callable[[Tensor], Tensor], drop_rate: float) -> Tensor:
    """[B, T, D] → x + B / kept · branch(ids of the kept) for a random subset, x for the others."""
    # ⌈B · (1 − p)⌉ in whole numbers: for batches of any size, inductor fails where a float decides a shape
    num_kept = (len(x) * round(_PARTS * (1 - drop_rate)) + _PARTS - 1) // _PARTS
    ids = torch.randperm(len(x), device=x.device)[:num_kept]
    return x.index_add(0, ids, branch(ids).to(x.dtype), alpha=len(x) / num_kept)
