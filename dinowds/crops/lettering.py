"""Text and colours of drawn sheets."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from PIL import ImageFont

Colour: TypeAlias = tuple[int, int, int]

TEXT: Colour = (28, 30, 33)
MUTED: Colour = (112, 117, 122)
LINE: Colour = (222, 224, 227)
PAPER: Colour = (255, 255, 255)


@lru_cache
def font(size: int) -> Any:
    """The one that comes with Pillow; it has the letters of ISO 8859-1. `size`: px."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """px."""
    return int(np.ceil(font(size).getlength(text)))


def shorten(text: str, width: int, size: int) -> str:
    """With dots in the middle where it is wider than `width` px in letters of `size`."""
    kept = len(text)
    short = text
    while text_width(short, size) > width and kept > 2:
        kept -= 1
        short = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return short
