from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dinowds.crops import pil
from dinowds.crops.recipe import Jitter, View

MakeImage: TypeAlias = Callable[[str, int, int, int], npt.NDArray[np.uint8]]


def test_render__is_what_pillow_makes(make_image: MakeImage) -> None:
    image = make_image("photo", 120, 150, 0)
    view = View(10, 20, 60, 80, 48, True, Jitter(1.2, 0.8, 1.1, 0.05, (2, 0, 3, 1)), False, 1.5, 128)
    out = np.empty((48, 48, 3), np.uint8)
    pil.render(image, view, out)

    box = Image.fromarray(image).crop((20, 10, 100, 70)).resize((48, 48), Image.Resampling.BICUBIC)
    box = box.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    box = ImageEnhance.Brightness(ImageEnhance.Color(box).enhance(1.1)).enhance(1.2)
    hue, saturation, value = box.convert("HSV").split()
    box = Image.merge("HSV", (hue.point([(h + 12) % 256 for h in range(256)]), saturation, value)).convert("RGB")
    box = ImageEnhance.Contrast(box).enhance(0.8).filter(ImageFilter.GaussianBlur(1.5))
    np.testing.assert_array_equal(out, np.asarray(ImageOps.solarize(box, 128)))


def test_render__grey_has_equal_channels(make_image: MakeImage) -> None:
    out = np.empty((32, 32, 3), np.uint8)
    pil.render(make_image("noise", 50, 50, 0), View(0, 0, 50, 50, 32, False, None, True, None, None), out)
    assert np.all(out == out[..., :1])
    assert out.std() > 5
