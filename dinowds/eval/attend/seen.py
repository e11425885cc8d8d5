"""What models saw in an image or a region. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dinowds.eval.attention import Components, foreground, joined_attention, tiled
from dinowds.eval.pictures import Pixels


@dataclass(frozen=True)
class Level:
    """What one model saw: an image, a region, or the patches of a region in their places. On the CPU."""

    attention: Tensor
    """float32 [heads, rows, columns]."""
    tokens: Tensor
    """float32 [rows, columns, D]."""
    exists: Tensor
    """bool [rows, columns]: False for missing cells and what is in them."""

    @property
    def mean(self) -> Tensor:
        """float32 [rows, columns]: of the heads."""
        return self.attention.mean(0)


@dataclass
class Seen:
    """In an image or a region."""

    canvas: Pixels | None
    """What is drawn on; None for a region of which there is no image."""
    levels: dict[str, Level]
    """`image`; or `region`, with `cells` (features that the region's model was given, with the attention to them);
    and `patches` where there is an image of it."""
    joined: Level | None = None
    """Of `region` and `patches`, with one head."""
    details: list[str] = field(default_factory=list)
    """Sizes, and what was done to them."""

    @property
    def main(self) -> Level:
        """The level whose mean attention is the answer."""
        return self.joined or self.levels.get("image") or self.levels["region"]


def colours_of(levels: Sequence[Level], only_foreground: bool) -> list[Pixels]:
    """Tokens as colours, by the principal components of all these levels together.

    Args:
        levels: of one model.
        only_foreground: components of `attention.foreground` alone; the background is black.

    Returns:
        [n] of uint8 [rows, columns, 3]; black where there is no token.
    """
    chosen = [level.exists for level in levels]
    if only_foreground:
        tokens = torch.cat([level.tokens[level.exists] for level in levels])
        weights = torch.cat([level.mean[level.exists] for level in levels])
        parts = torch.split(foreground(tokens, weights), [int(level.exists.sum()) for level in levels])
        chosen = [_scattered(part, level.exists) for part, level in zip(parts, levels, strict=True)]
    components = Components.of(torch.cat([level.tokens[some] for level, some in zip(levels, chosen, strict=True)]))
    return [
        np.where(some.numpy()[..., None], (255 * components.colours(level.tokens)).round().byte().numpy(), np.uint8(0))
        for level, some in zip(levels, chosen, strict=True)
    ]


def joined_level(region: Level, patches: Tensor, tokens: Tensor) -> tuple[Level, Level]:
    """The patches of a region as one level, and its attention joined with the region's.

    Args:
        region: [heads, rows, columns], …
        patches: of each cell, row by row, float32 [rows · columns, patch heads, r, c].
        tokens: float32 [rows · columns, r, c, D].

    Returns:
        Two levels of [rows · r, columns · c]: the patches' own attention by their heads; and, with one head, the
        `joined_attention` of the means of both.
    """
    rows, columns = region.exists.shape
    own = patches.view(rows, columns, *patches.shape[1:]) * region.exists[..., None, None, None]
    exists = tiled(region.exists[..., None, None].expand(*own.shape[:2], *own.shape[-2:]))
    places = tiled(tokens.view(rows, columns, *tokens.shape[1:]).movedim(-1, 0)).movedim(0, -1)
    joined = joined_attention(region.mean, own.mean(2))
    return Level(tiled(own.movedim(2, 0)), places, exists), Level(joined[None], places, exists)


def _scattered(values: Tensor, places: Tensor) -> Tensor:
    """bool [k] → bool [rows, columns]: at the k places that are True, in their order."""
    found = torch.zeros_like(places)
    found[places] = values
    return found
