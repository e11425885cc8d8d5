"""What a backbone looks at: attention of the class token, and colours for patch tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinowds.model.vit import ImageViT, RegionViT

_EDGES = (0.01, 0.99)
"""Quantiles of a component that become 0 and 1: a few outliers do not take the colours of all others."""
_LEAST_WIDTH = 1e-5
"""Of the largest spread: what is below is rounding, and no component."""
_BINS = 256


class Look(NamedTuple):
    """Of one forward pass."""

    attention: Tensor
    """As `class_attention`."""
    tokens: Tensor
    """As `patch_tokens`."""
    features: Tensor
    """Class tokens, float32 [N, D]."""


def class_attention(backbone: ImageViT, images: Tensor) -> Tensor:
    """How the class token of the last block attends to the patch tokens: softmax(q · k / √d), of each head.

    (Caron et al. 2021, §4.2.2.) Computed in float32 from the block's own queries and keys; the forward pass is what it
    is without. The backbone is put into evaluation mode for the call and back afterwards.

    Args:
        images: as the backbone takes them, on its device: float [N, 3, H, W], normalised; or regions, [N, rows,
            columns, C], whose missing cells are NaN.

    Returns:
        float32 [N, heads, rows, columns]. Those of an image and a head sum to at most 1: the rest is the class token's
        own and the registers'. Missing cells have 0.

    Raises:
        ValueError: sides that the patch size does not divide.
    """
    return look(backbone, images).attention


def patch_tokens(backbone: ImageViT, images: Tensor) -> Tensor:
    """Patch tokens of the last layer, after its norm; input and errors as `class_attention`.

    Returns:
        float32 [N, rows, columns, D]. Those of missing cells mean nothing.
    """
    return look(backbone, images).tokens


@torch.no_grad()
def look(backbone: ImageViT, images: Tensor) -> Look:
    """`class_attention` and `patch_tokens` at once."""
    rows, columns = grid_of(backbone, images)
    attention = backbone.blocks[-1].attn
    caught: list[Tensor] = []

    def catch(module: Any, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        caught.append(_of_class_token(module, arguments[0], options.get("attn_mask")))

    hook = attention.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with _evaluating(backbone):
            tokens = backbone.forward_features(images).float()
    finally:
        hook.remove()
    (of_tokens,) = caught
    return Look(
        of_tokens[..., backbone.num_prefix_tokens :].reshape(len(tokens), -1, rows, columns),
        tokens[:, 1:].reshape(len(tokens), rows, columns, -1),
        tokens[:, 0],
    )


def grid_of(backbone: ImageViT, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patch tokens. ValueError where the patch size does not divide the sides."""
    if isinstance(backbone, RegionViT):
        return images.shape[1], images.shape[2]
    height, width = images.shape[2:]
    down, across = backbone.patch_embed.patch_size
    if height % down or width % across:
        raise ValueError(f"images of {width}×{height} px, expected multiples of {across}×{down}, the patch size")
    return height // down, width // across


@dataclass(frozen=True)
class Components:
    """The first three principal components of some tokens, and what becomes of them in colours."""

    mean: Tensor
    """float64 [D]."""
    axes: Tensor
    """float64 [D, 3], orthonormal, by decreasing variance; columns of zeros where D or the tokens have fewer."""
    low: Tensor
    high: Tensor
    """float64 [3]: values along the axes that become 0 and 1."""

    @classmethod
    def of(cls, tokens: Tensor) -> Components:
        """Of float [M, D]; M may be 0. The sign of an axis is such that its largest entry is positive."""
        rows = tokens.double()
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        centred = rows - mean
        axes = rows.new_zeros(rows.shape[1], 3)
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :3]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        axes[:, : vectors.shape[1]] = vectors * largest.sign()
        values = centred @ axes
        if not len(values):
            return cls(mean, axes, mean.new_zeros(3), mean.new_zeros(3))
        # Sorted, as torch.quantile takes no more than 2²⁴ values.
        ordered = values.sort(dim=0).values
        low, high = (ordered[round(edge * (len(ordered) - 1))] for edge in _EDGES)
        return cls(mean, axes, low, high)

    def values(self, tokens: Tensor) -> Tensor:
        """[..., D] → float64 [..., 3]: along the axes, 0 at the mean."""
        return (tokens.double() - self.mean) @ self.axes

    def colours(self, tokens: Tensor) -> Tensor:
        """[..., D] → float32 [..., 3] in 0 … 1: red, green and blue are the first, second and third component."""
        width = self.high - self.low
        is_there = width > _LEAST_WIDTH * width.max()
        shares = (self.values(tokens) - self.low) / width.where(is_there, torch.ones_like(width))
        return shares.where(is_there, torch.full_like(shares, 0.5)).clamp(0, 1).float()


def principal_colours(tokens: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Patch tokens as colours: alike where tokens are alike. (Oquab et al. 2024, §7.4.)

    The components are those of all images together, so that a colour means the same in each.

    Args:
        tokens: float [N, rows, columns, D].
        chosen: bool [N, rows, columns]: those whose components they are, such as the cells that exist or `foreground`;
            None for all.

    Returns:
        float32 [N, rows, columns, 3] in 0 … 1; 0 where not chosen.
    """
    if chosen is None:
        return Components.of(tokens.flatten(0, -2)).colours(tokens)
    colours = tokens.new_zeros(*tokens.shape[:-1], 3, dtype=torch.float32)
    of_chosen = tokens[chosen]
    colours[chosen] = Components.of(of_chosen).colours(of_chosen)
    return colours


def foreground(tokens: Tensor, attention: Tensor) -> Tensor:
    """Which tokens lie on the more attended side of the first principal component.

    (Oquab et al. 2024, §7.4, who choose threshold and side by hand.) The threshold is Otsu's (1979), which makes the
    two sides differ most; the side is that whose tokens have more attention on average.

    Args:
        tokens: float [..., D].
        attention: float [...], such as the mean of `class_attention` over heads.

    Returns:
        bool [...].
    """
    along = Components.of(tokens.flatten(0, -2)).values(tokens)[..., 0]
    upper = along > _otsu(along.flatten())
    weight = attention.double()
    counts, sums = upper.sum(), (weight * upper).sum()
    of_upper = sums / counts.clamp(min=1)
    of_lower = (weight.sum() - sums) / (upper.numel() - counts).clamp(min=1)
    return upper if of_upper >= of_lower else ~upper


def joined_attention(of_region: Tensor, of_patches: Tensor) -> Tensor:
    """A region's attention down to the tokens of its patches: the weight of a cell times the attention inside it.

    It is what the class token of the region gets from a token by way of the patch's class token. (HIPT, Chen et al.
    2022, figure 3, shows both levels together.)

    Args:
        of_region: float [..., rows, columns], of the region's class token.
        of_patches: float [..., rows, columns, r, c], of each patch's.

    Returns:
        float [..., rows · r, columns · c].
    """
    return tiled(of_region[..., None, None] * of_patches)


def tiled(of_patches: Tensor) -> Tensor:
    """[..., rows, columns, r, c] → [..., rows · r, columns · c]: maps of patches, each in its place in the region."""
    return of_patches.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


def mass_mask(maps: Tensor, share: float) -> Tensor:
    """The fewest tokens of each map that hold a share of its mass: where a model looks for the most part.

    (Caron et al. 2021, figure 3, with 60 %.)

    Args:
        maps: float [..., rows, columns], at least 0; NaN counts as 0.
        share: of the map's own sum, 0 … 1.

    Returns:
        bool [..., rows, columns]; of equal tokens the first are taken. None where a map is 0 everywhere.

    Raises:
        ValueError: another share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1")
    flat = maps.double().nan_to_num(0.0).flatten(-2)
    ordered, places = flat.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    # a little less, so that sums that are equal but for rounding take no token more
    taken = (before < flat.sum(-1, keepdim=True) * share * (1 - 1e-12)) & (ordered > 0)
    return torch.zeros_like(taken).scatter(-1, places, taken).view(maps.shape)


def _of_class_token(attention: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Input of an attention layer, [N, T, D], and its mask → float32 [N, heads, T] of the first token; sums to 1."""
    with torch.autocast(tokens.device.type, enabled=False):
        qkv: Tensor = attention.qkv(tokens.to(attention.qkv.weight.dtype))
        heads = qkv.view(*tokens.shape[:2], 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        queries: Tensor = attention.q_norm(heads[0][:, :, :1])
        keys: Tensor = attention.k_norm(heads[1])
        scores: Tensor = (queries.float() * attention.scale @ keys.float().transpose(-2, -1))[:, :, 0]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, 0], -torch.inf)
    return scores.softmax(-1)


@contextmanager
def _evaluating(backbone: ImageViT) -> Iterator[None]:
    was_training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was_training)


def _otsu(values: Tensor) -> Tensor:
    """The threshold that makes the variance between those above it and the others largest. float64 [M] → []."""
    low, high = values.min(), values.max()
    counts = torch.histc(values, _BINS, min=low.item(), max=high.item())
    middles = low + (torch.arange(_BINS, device=values.device) + 0.5) * (high - low) / _BINS
    below, sums = counts.cumsum(0), (counts * middles).cumsum(0)
    above = len(values) - below
    difference = sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)
    best = (below * above * difference.square()).argmax()
    return low + (best + 1) * (high - low) / _BINS
