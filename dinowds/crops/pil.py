"""The reference renderer: Pillow and torchvision's functions on Pillow images, as DINO's own recipe uses them. Slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dinowds.crops.recipe import NEVER_SOLARIZED, Views
from dinowds.crops.stain import stained


def render(
    image: npt.NDArray[np.uint8], views: Views, outs: Sequence[npt.NDArray[np.uint8]], reduction: int = 1
) -> None:
    """Write each of `views`, [V] records, of `image`, uint8 [H, W, 3], RGB, into its place of `outs`,
    uint8 [3, size, size]. Raises ValueError for a reduced image: the reference is made of full ones alone."""
    if reduction != 1:
        raise ValueError(f"reduction is {reduction}, expected 1: the reference renders full images")
    picture = Image.fromarray(image)
    for view, out in zip(views, outs, strict=True):
        np.copyto(out, np.asarray(_rendered(picture, view)).transpose(2, 0, 1))


def _rendered(picture: Image.Image, view: Any) -> Image.Image:
    top, left, height, width, size = (int(view[name]) for name in ("top", "left", "height", "width", "size"))
    picture = F.resized_crop(picture, top, left, height, width, [size, size], interpolation=InterpolationMode.BICUBIC)
    if view["flip"]:
        picture = F.hflip(picture)
    if view["vertical_flip"]:
        picture = F.vflip(picture)
    if view["turns"]:
        picture = picture.rotate(90 * int(view["turns"]))
    if view["stain"]:
        picture = Image.fromarray(stained(np.asarray(picture), view["stain_map"]))
    if view["jitter"]:
        picture = _apply_jitter(picture, view)
    if view["grey"]:
        picture = F.to_grayscale(picture, num_output_channels=3)
    if view["blur"] > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(radius=float(view["blur"])))
    if view["solarize"] < NEVER_SOLARIZED:
        picture = ImageOps.solarize(picture, int(view["solarize"]))
    return picture


def _apply_jitter(picture: Image.Image, view: Any) -> Image.Image:
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    factors = [float(view[name]) for name in ("brightness", "contrast", "saturation", "hue")]
    for index in view["order"].tolist():
        picture = steps[index](picture, factors[index])
    return picture
