"""Contact sheets: the views of a few images as one picture. Pure: pixels and records in, a Pillow image out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinowds.crops.lettering import LINE, MUTED, PAPER, TEXT, Colour, font, shorten, text_width
from dinowds.crops.recipe import NEVER_SOLARIZED, Output, Views

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Rendering:
    """The views of one sample, by one renderer."""

    label: str
    """Stands above the views; '' for none."""
    views: Sequence[Pixels]
    """[V] of uint8 [3, size, size], RGB."""


@dataclass(frozen=True)
class SheetSample:
    """One sample and its renderings, a row each."""

    name: str
    image: Pixels
    """uint8 [H, W, 3], RGB."""
    records: Views
    """[V] records, in px of `image`."""
    renderings: Sequence[Rendering]


LEGEND = {
    "f": "flipped", "v": "upside down", "t": "quarter turns", "s": "stain jitter", "j": "colour jitter", "g": "grey",
    "b": "blur, px", "z": "solarized",
}  # fmt: skip
"""Letter of `what_was_done` → its meaning."""

_COLOURS: tuple[Colour, ...] = ((213, 94, 0), (0, 114, 178), (0, 158, 115))
"""Of the outputs in turn: vermilion, blue and green that colour-blind people can tell apart (Okabe & Ito 2008)."""

# px of the sheet
_TITLE, _BODY, _SMALL = 22, 14, 11  # sizes of letters
_MARGIN, _GAP, _SPACE = 28, 8, 24  # around the sheet; between views; between original and outputs
_LINE_HEIGHT, _CAPTION_HEIGHT, _NAME_HEIGHT = 22, 19, 38
_LEAST_SIDE, _MOST_SIDE = 192, 288  # of the largest views: smaller ones are enlarged, larger ones reduced


@dataclass(frozen=True)
class _Block:
    """Where the views of one output are in every row."""

    output: Output
    first: int
    """Its first view among all."""
    side: int
    """Of a view on the sheet, px."""
    left: int
    across: int
    """Views beside each other."""
    cell_width: int
    colour: Colour

    @property
    def heading(self) -> str:
        return f"{self.output.name}  {self.output.count} x {self.output.size} px"

    @property
    def width(self) -> int:
        return max(self.across * (self.cell_width + _GAP) - _GAP, text_width(self.heading, _BODY))

    def corner(self, place: int) -> tuple[int, int]:
        """Left and top of a view, from the row's top."""
        row, column = divmod(place, self.across)
        return self.left + column * (self.cell_width + _GAP), row * (self.side + _CAPTION_HEIGHT + _GAP)


def contact_sheet(
    title: str, details: Sequence[str], outputs: Sequence[Output], samples: Sequence[SheetSample]
) -> Image.Image:
    """Draw a row for each rendering of each sample: the original with its boxes, then the views of each output.

    Under a view are its number, which its box has too, and what was done to it, as `what_was_done` says.

    Args:
        title: in large letters.
        details: lines below it.
        outputs: of the recipe, in the order of the views.
        samples: at least one.

    Returns:
        RGB image on white, as wide as the views need.
    """
    outputs = [output for output in outputs if output.count]
    captions = [what_was_done(record) for sample in samples for record in sample.records]
    scale = _scale(max(output.size for output in outputs))
    row_height = max(round(output.size * scale) for output in outputs) + _CAPTION_HEIGHT
    blocks = _blocks(outputs, scale, row_height, max(text_width(caption, _SMALL) for caption in captions))
    lines = [*details, _legend(captions, scale)]
    labels = [rendering.label for sample in samples for rendering in sample.renderings]
    label_height = _LINE_HEIGHT if any(labels) else 0
    head_height = _MARGIN + _TITLE + (len(lines) + 2) * _LINE_HEIGHT
    head_width = max(text_width(title, _TITLE), *(text_width(line, _BODY) for line in lines))
    label_width = max(text_width(label, _BODY) for label in labels)
    width = max(blocks[-1].left + blocks[-1].width, blocks[0].left + label_width, _MARGIN + head_width) + _MARGIN
    height = head_height + len(labels) * (row_height + label_height + _GAP) + len(samples) * _SPACE + _GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, title, lines, blocks)
    top = head_height
    for sample in samples:
        draw.line((_MARGIN, top, width - _MARGIN, top), LINE)
        top += _SPACE // 2
        _draw_original(sheet, sample, blocks, top + label_height, row_height - _NAME_HEIGHT)
        for rendering in sample.renderings:
            draw.text((blocks[0].left, top), rendering.label, TEXT, font(_BODY))
            _draw_views(sheet, rendering.views, sample.records, blocks, top + label_height)
            top += row_height + label_height + _GAP
        top += _SPACE // 2
    return sheet


def what_was_done(record: Any) -> str:
    """A record in a few letters, such as 'f  t2  j  b1.3'; `LEGEND` has their meaning."""
    done = [
        "f" if record["flip"] else "",
        "v" if record["vertical_flip"] else "",
        f"t{record['turns']}" if record["turns"] else "",
        "s" if record["stain"] else "",
        "j" if record["jitter"] else "",
        "g" if record["grey"] else "",
        f"b{record['blur']:.1f}" if record["blur"] > 0 else "",
        "z" if record["solarize"] != NEVER_SOLARIZED else "",
    ]
    return "  ".join(filter(None, done))


def mean_difference(views: Sequence[Pixels], reference: Sequence[Pixels]) -> float:
    """Mean absolute difference from a reference, grey levels of 255; each view counts the same, whatever its size."""
    pairs = zip(views, reference, strict=True)
    return float(np.mean([np.abs(one.astype(np.int16) - other).mean() for one, other in pairs]))


def _scale(size: int) -> float:
    """Px of the sheet for a px of a view: a whole number where views are enlarged."""
    if size < _LEAST_SIDE:
        return _LEAST_SIDE // size
    return min(1.0, _MOST_SIDE / size)


def _blocks(outputs: Sequence[Output], scale: float, row_height: int, caption_width: int) -> list[_Block]:
    """Smaller views stand in several lines beside larger ones."""
    blocks: list[_Block] = []
    left = _MARGIN + row_height - _NAME_HEIGHT + _SPACE
    for output, first, colour in _parts(outputs):
        side = max(1, round(output.size * scale))
        lines = max(1, (row_height + _GAP) // (side + _CAPTION_HEIGHT + _GAP))
        cell_width = max(side, _tag_width(first + output.count) + 4 + caption_width)
        blocks.append(_Block(output, first, side, left, -(-output.count // lines), cell_width, colour))
        left += blocks[-1].width + _SPACE
    return blocks


def _legend(captions: Sequence[str], scale: float) -> str:
    """Of the letters that there are."""
    letters = {part[0] for caption in captions for part in caption.split()}
    parts = [f"{letter} = {meaning}" for letter, meaning in LEGEND.items() if letter in letters]
    size = "" if scale == 1 else f"views are drawn at {100 * scale:.0f} % of their size  ·  "
    return f"{size}below a view: {',  '.join(['its number', *parts])}"


def _draw_head(draw: ImageDraw.ImageDraw, title: str, lines: Sequence[str], blocks: Sequence[_Block]) -> None:
    draw.text((_MARGIN, _MARGIN - 4), title, TEXT, font(_TITLE))
    top = _MARGIN + _TITLE + 10
    for line in lines:
        draw.text((_MARGIN, top), line, MUTED, font(_BODY))
        top += _LINE_HEIGHT
    top += _LINE_HEIGHT - 10
    draw.text((_MARGIN, top), "original", TEXT, font(_BODY))
    for block in blocks:
        draw.text((block.left, top), block.heading, block.colour, font(_BODY))


def _draw_original(sheet: Image.Image, sample: SheetSample, blocks: Sequence[_Block], top: int, side: int) -> None:
    """The image within `side` × `side` px, its boxes, its name and its size."""
    height, width = sample.image.shape[:2]
    picture = with_boxes(sample.image, sample.records, [block.output for block in blocks], side)
    sheet.paste(picture, (_MARGIN, top))
    draw = ImageDraw.Draw(sheet)
    names = shorten(sample.name, side, _SMALL), f"{width} x {height} px"
    for line, (text, colour) in enumerate(zip(names, (TEXT, MUTED), strict=True)):
        draw.text((_MARGIN, top + picture.height + 5 + 16 * line), text, colour, font(_SMALL))


def with_boxes(image: Pixels, records: Views, outputs: Sequence[Output], side: int) -> Image.Image:
    """An image, uint8 [H, W, 3], within `side` × `side` px, with the box and the number of each of its views, [V]."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    picture = _resized(image, (max(1, round(width * scale)), max(1, round(height * scale))))
    draw = ImageDraw.Draw(picture)
    boxes = [
        (number, colour, _box(records[number], scale))
        for output, first, colour in reversed(_parts(outputs))  # the first output above the others, numbers above all
        for number in range(first, first + output.count)
    ]
    for _, colour, box in boxes:
        draw.rectangle(box, outline=colour, width=2 if colour == _COLOURS[0] else 1)
    for number, colour, box in boxes:
        _draw_tag(draw, number, colour, box[:2])
    return picture


def _box(record: Any, scale: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, both edges included."""
    first = scale * record["left"], scale * record["top"]
    last = first[0] + scale * record["width"] - 1, first[1] + scale * record["height"] - 1
    left, upper, right, lower = (round(float(edge)) for edge in (*first, *last))
    return left, upper, max(left, right), max(upper, lower)


def _parts(outputs: Sequence[Output]) -> list[tuple[Output, int, Colour]]:
    """Each output with its first view among all, and its colour."""
    firsts = accumulate((output.count for output in outputs), initial=0)
    return list(zip(outputs, firsts, cycle(_COLOURS)))


def _draw_tag(draw: ImageDraw.ImageDraw, number: int, colour: Colour, corner: tuple[int, int]) -> None:
    """The number of a view, counted from 1, in white on its colour."""
    left, top = corner
    draw.rectangle((left, top, left + _tag_width(number + 1) - 1, top + 13), fill=colour)
    draw.text((left + 4, top + 7), str(number + 1), PAPER, font(_SMALL), anchor="lm")


def _draw_views(
    sheet: Image.Image, views: Sequence[Pixels], records: Views, blocks: Sequence[_Block], row_top: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    for block in blocks:
        for place in range(block.output.count):
            number = block.first + place
            left, top = block.corner(place)
            pixels = views[number].transpose(1, 2, 0)
            sheet.paste(_resized(pixels, (block.side, block.side)), (left, row_top + top))
            below = row_top + top + block.side + 3
            _draw_tag(draw, number, block.colour, (left, below))
            caption = what_was_done(records[number])
            draw.text((left + _tag_width(number + 1) + 4, below + 7), caption, MUTED, font(_SMALL), anchor="lm")


def _resized(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Enlarged, each pixel stays a square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    larger = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _tag_width(number: int) -> int:
    return text_width(str(number), _SMALL) + 8
