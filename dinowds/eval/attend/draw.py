"""What was seen → panels. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinowds.eval.attend.seen import Level, Seen
from dinowds.eval.attention import mass_mask
from dinowds.eval.pictures import Map, Panel, Pixels, Row, enlarge, enlarged, outside_dimmed, overlay, stripe

_LARGE, _SMALL = 360, 235  # px of panels on a sheet
_LARGE_ACROSS, _SMALL_ACROSS = 4, 6  # in a row: both make about the same width


@dataclass(frozen=True)
class Style:
    """How maps are drawn."""

    colours: Pixels
    """uint8 [256, 3]."""
    alpha: float
    """Share of the colours over an image, 0 … 1."""
    is_smooth: bool
    """Interpolate between tokens."""
    mass: float
    """Of the mask: share of the attention that it holds."""
    only_foreground: bool
    """Tokens have colours of the foreground alone."""

    def colours_label(self, what: str) -> str:
        """Below tokens in colours."""
        return f"{what}, PCA of the foreground" if self.only_foreground else f"{what}, PCA"


def rows_of(seen: Seen, colours: Mapping[str, Pixels], style: Style) -> list[Row]:
    """All panels of an image or a region. `colours`: of the tokens of each level, as `seen.colours_of`."""
    if seen.joined is not None:
        return _rows_of_both(seen, seen.joined, colours, style)
    if seen.canvas is not None:
        level, tokens = seen.levels["image"], colours["image"]
        first, canvas = Panel("image", seen.canvas, "image"), seen.canvas
    else:  # a region without an image: the maps stand by themselves
        level, tokens, cells = seen.levels["region"], colours["region"], seen.levels["cells"]
        canvas = _in_colours(enlarged(colours["cells"]), colours["cells"], cells)
        first, style = Panel(style.colours_label("features of the cells"), canvas, "cells"), replace(style, alpha=1.0)
    large = [
        first,
        _mean(canvas, level, style, "attention", "mean"),
        _mask(canvas, level, style, "mask"),
        Panel(style.colours_label("tokens"), _in_colours(canvas, tokens, level), "pca"),
    ]
    return [Row(large, _LARGE), *_in_rows(_heads(canvas, level, style, "", ""))]


def _rows_of_both(seen: Seen, joined: Level, colours: Mapping[str, Pixels], style: Style) -> list[Row]:
    """Of a region and its patches."""
    canvas, region, patches = seen.canvas, seen.levels["region"], seen.levels["patches"]
    assert canvas is not None
    large = [
        Panel("region", canvas, "image"),
        _mean(canvas, joined, style, "region x patches", "joined"),
        _mask(canvas, joined, style, "joined-mask"),
        Panel(style.colours_label("patch tokens"), _in_colours(canvas, colours["patches"], patches), "patches-pca"),
    ]
    small = [
        _mean(canvas, region, style, "region", "region-mean"),
        _mask(canvas, region, style, "region-mask"),
        Panel(style.colours_label("region's tokens"), _in_colours(canvas, colours["region"], region), "region-pca"),
        Panel(style.colours_label("features of the patches"), _in_colours(canvas, colours["cells"], region), "cells"),
        _mean(canvas, patches, style, "patches", "patches-mean"),
    ]
    return [
        Row(large, _LARGE),
        *_in_rows(small),
        *_in_rows(_heads(canvas, region, style, "region, ", "region-")),
        *_in_rows(_heads(canvas, patches, style, "patches, ", "patches-")),
    ]


def _mean(canvas: Pixels, level: Level, style: Style, what: str, name: str) -> Panel:
    heads = len(level.attention)
    label = f"{what}, mean of {heads} heads" if heads > 1 else what
    return Panel(label, _over(canvas, level.mean, level, style), name)


def _mask(canvas: Pixels, level: Level, style: Style, name: str) -> Panel:
    """The tokens that hold the style's mass of the mean attention."""
    mask = mass_mask(level.mean, style.mass)
    label = f"{100 * style.mass:g} % of it: {int(mask.sum()):,} of {int(level.exists.sum()):,} tokens"
    return Panel(label, stripe(outside_dimmed(canvas, mask.numpy()), (~level.exists).numpy()), name)


def _heads(canvas: Pixels, level: Level, style: Style, what: str, prefix: str) -> list[Panel]:
    """Each head by itself."""
    return [
        Panel(f"{what}head {number}", _over(canvas, of_head, level, style), f"{prefix}head-{number}")
        for number, of_head in enumerate(level.attention, 1)
    ]


def _over(canvas: Pixels, values: Tensor, level: Level, style: Style) -> Pixels:
    """A map of a level's grid over an image."""
    known: Map = values.masked_fill(~level.exists, torch.nan).numpy()
    return overlay(canvas, known, style.colours, style.alpha, style.is_smooth)


def _in_colours(canvas: Pixels, colours: Pixels, level: Level) -> Pixels:
    """Colours of tokens, as large as an image."""
    return stripe(enlarge(colours, *canvas.shape[:2]), (~level.exists).numpy())


def _in_rows(panels: Sequence[Panel]) -> list[Row]:
    """Rows of them; small where they are many."""
    if len(panels) <= _LARGE_ACROSS:
        return [Row(panels, _LARGE)] if panels else []
    return [Row(panels[first : first + _SMALL_ACROSS], _SMALL) for first in range(0, len(panels), _SMALL_ACROSS)]
