"""Images of three kinds that the renderers are compared on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
MakeImage: TypeAlias = Callable[[str, int, int, int], Pixels]

PHOTOS = ("astronaut", "chelsea", "coffee", "immunohistochemistry", "retina")


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """(kind, height, width, seed) → uint8 [height, width, 3]; kind is photo, smooth or noise."""
    photos: list[Pixels] = [np.ascontiguousarray(getattr(skimage.data, name)()) for name in PHOTOS]

    def make(kind: str, height: int, width: int, seed: int) -> Pixels:
        random = np.random.default_rng(seed)
        if kind == "noise":
            return np.asarray(random.integers(0, 256, (height, width, 3), np.uint8))
        if kind == "smooth":
            few = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            return np.array(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))
        photo = photos[seed % len(photos)]
        top, left = (int(random.integers(photo.shape[axis] - side + 1)) for axis, side in ((0, height), (1, width)))
        return np.array(photo[top : top + height, left : left + width], np.uint8)

    return make
