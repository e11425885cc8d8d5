"""Maps and masks of tokens drawn over images, and sheets of such panels. Pure: arrays in, pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinowds.crops.lettering import LINE, MUTED, PAPER, TEXT, font, shorten, text_width
from dinowds.errors import ConfigError

Pixels: TypeAlias = NDArray[np.uint8]
"""[H, W, 3], RGB."""
Map: TypeAlias = NDArray[np.floating]
"""[rows, columns]: a number for each token; NaN where there is none."""

Value = TypeVar("Value", bound=np.generic)

COLOUR_MAPS = ("inferno", "viridis", "magma", "plasma", "cividis")
"""Equal steps of a value look equally large in these, also in grey. (van der Walt & Smith 2015.)"""

_TOP = 0.99
_DIM = 0.25  # of the light that is left outside a mask
_MISSING = np.array((238, 238, 238), np.uint8), np.array((214, 214, 214), np.uint8)  # stripes where there is no token
_STRIPES = 48  # of a missing row of tokens as wide as the image

# px of a sheet
_TITLE, _BODY, _SMALL = 22, 14, 12  # sizes of letters
_MARGIN, _GAP, _LINE_HEIGHT, _LABEL_HEIGHT = 28, 14, 22, 20
_BAR_WIDTH, _BAR_HEIGHT = 256, 10
_LEAST_WIDTH = 480  # between the margins


def colour_map(name: str) -> Pixels:
    """uint8 [256, 3]: the colours of the values 0 … 1, from plotly's scale of this name, one of `COLOUR_MAPS`.

    Raises:
        ConfigError: there is no such map, or plotly is missing.
    """
    if name not in COLOUR_MAPS:
        raise ConfigError(f"colour map is {name!r}, expected one of {', '.join(COLOUR_MAPS)}")
    try:
        from plotly.colors import sample_colorscale
    except ImportError:
        raise ConfigError("colour maps need the package 'plotly'; pip install 'dinowds[report]'") from None
    shares = np.array(sample_colorscale(name, np.linspace(0, 1, 256).tolist(), colortype="tuple"), np.float64)
    return np.rint(255 * shares).astype(np.uint8)


def stretch(values: Map) -> Map:
    """A map so that its least value is 0, and those from the 99th percentile on are 1: a few tokens that get far more
    than all others do not take the colours of these. NaN stays. Where all are equal, 0.
    """
    if np.isnan(values).all():
        return values
    low, high = np.nanquantile(values, (0, _TOP))
    shares: Map = (values - low) / (high - low if high > low else 1)
    return shares.clip(0, 1)


def enlarge(values: NDArray[Value], height: int, width: int) -> NDArray[Value]:
    """[rows, columns, …] → [height, width, …]: each token is a rectangle of its value."""
    rows, columns = values.shape[:2]
    return values[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]


def enlarged(image: Pixels, least_px: int = 448) -> Pixels:
    """Each pixel as a square, so large that the longer side has `least_px` or more."""
    factor = -(-least_px // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def smooth(values: Map, height: int, width: int) -> Map:
    """[rows, columns] → float32 [height, width], bilinear between the middles of tokens; missing ones stay NaN."""
    missing = np.isnan(values)
    filled = Image.fromarray(np.where(missing, 0, values).astype(np.float32))
    weights = Image.fromarray((~missing).astype(np.float32))
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    sums, shares = (np.asarray(picture.resize(size, bilinear)) for picture in (filled, weights))
    there = ~enlarge(missing, height, width)
    found = np.full((height, width), np.nan, np.float32)
    np.divide(sums, shares, out=found, where=there & (shares > 0))
    return found


def colour(values: Map, colours: Pixels) -> Pixels:
    """A map of values in 0 … 1 → its colours, [rows, columns, 3]. Missing ones are grey."""
    places = np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)
    return np.where(np.isnan(values)[..., None], _MISSING[0], colours[places])


def overlay(image: Pixels, values: Map, colours: Pixels, alpha: float = 0.6, is_smooth: bool = False) -> Pixels:
    """A map in colours over an image.

    Args:
        image: uint8 [H, W, 3].
        values: float [rows, columns] of a grid over the whole image, on any scale: see `stretch`. Tokens that are NaN
            are striped.
        colours: uint8 [256, 3], see `colour_map`.
        alpha: share of the colours, 0 … 1; the rest is the image.
        is_smooth: interpolate between tokens.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    stretched = stretch(values)
    large = smooth(stretched, height, width) if is_smooth else enlarge(stretched, height, width)
    return stripe(_blend(image, colour(large, colours), alpha), np.isnan(values))


def outside_dimmed(image: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """uint8 [H, W, 3], dark and without colour outside a mask, bool [rows, columns] of a grid over it."""
    inside = enlarge(mask, *image.shape[:2])[..., None]
    grey = image.mean(axis=-1, keepdims=True)
    return np.where(inside, image, np.rint(_DIM * grey)).astype(np.uint8)


def stripe(image: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """uint8 [H, W, 3], with oblique stripes in the place of the tokens of a mask, bool [rows, columns]."""
    if not mask.any():
        return image
    height, width = image.shape[:2]
    across = max(2, max(height, width) // _STRIPES)
    is_second = (np.arange(height)[:, None] + np.arange(width)) // across % 2 == 1
    stripes = np.where(is_second[..., None], *_MISSING[::-1])
    return np.where(enlarge(mask, height, width)[..., None], stripes, image)


def _blend(image: Pixels, colours: Pixels, alpha: float) -> Pixels:
    return np.rint((1 - alpha) * image + alpha * colours.astype(np.float32)).astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """A picture of a sheet."""

    label: str
    """Below it."""
    pixels: Pixels
    name: str = ""
    """Of a file of its own, without suffix."""


@dataclass(frozen=True)
class Row:
    """Panels beside each other."""

    panels: Sequence[Panel]
    side: int = 224
    """px that the longer side of each gets."""


@dataclass(frozen=True)
class Bar:
    """A legend of colours."""

    colours: Pixels
    """uint8 [256, 3]."""
    first: str
    """What the first colour means."""
    last: str


def panel_sheet(title: str, details: Sequence[str], rows: Sequence[Row], bar: Bar | None = None) -> Image.Image:
    """Panels in rows, each with its label below.

    Args:
        title: in large letters. What is wider than the sheet gets dots in its middle, as details and labels do.
        details: lines below it.
        rows: at least one, of at least one panel each.
        bar: below the details.

    Returns:
        RGB image on white.
    """
    drawn = [[(panel.label, _fitted(panel.pixels, row.side)) for panel in row.panels] for row in rows]
    inner = max(_LEAST_WIDTH, *(sum(picture.width + _GAP for _, picture in row) - _GAP for row in drawn))
    head_height = _MARGIN + _TITLE + (len(details) + bool(bar)) * _LINE_HEIGHT + _GAP + 4
    row_heights = [max(picture.height for _, picture in row) + _LABEL_HEIGHT + _GAP for row in drawn]
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, head_height + sum(row_heights) + _MARGIN - _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), shorten(title, inner, _TITLE), TEXT, font(_TITLE))
    top = _MARGIN + _TITLE + 10
    for line in details:
        draw.text((_MARGIN, top), shorten(line, inner, _BODY), MUTED, font(_BODY))
        top += _LINE_HEIGHT
    if bar:
        _draw_bar(sheet, bar, top)
    top = head_height
    for row, height in zip(drawn, row_heights, strict=True):
        left = _MARGIN
        for label, picture in row:
            sheet.paste(picture, (left, top))
            draw.rectangle((left - 1, top - 1, left + picture.width, top + picture.height), outline=LINE)
            text = shorten(label, picture.width, _SMALL)
            draw.text((left, top + picture.height + 4), text, TEXT, font(_SMALL))
            left += picture.width + _GAP
        top += height
    return sheet


def _draw_bar(sheet: Image.Image, bar: Bar, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    left, middle = _MARGIN + text_width(bar.first, _BODY) + 8, top + _LINE_HEIGHT // 2 - 2
    draw.text((_MARGIN, middle), bar.first, MUTED, font(_BODY), anchor="lm")
    pixels = enlarge(bar.colours[None], _BAR_HEIGHT, _BAR_WIDTH)
    sheet.paste(Image.fromarray(pixels), (left, middle - _BAR_HEIGHT // 2))
    draw.text((left + _BAR_WIDTH + 8, middle), bar.last, MUTED, font(_BODY), anchor="lm")


def _fitted(pixels: Pixels, side: int) -> Image.Image:
    """Enlarged, each pixel stays a square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
