"""The reference renderer: Pillow and torchvision's functions on Pillow images, as DINO's own recipe uses them. Slow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dinowds.crops.recipe import Jitter, View


def render(image: npt.NDArray[np.uint8], view: View, out: npt.NDArray[np.uint8]) -> None:
    """Write one view of `image`, uint8 [H, W, 3], RGB, into `out`, uint8 [size, size, 3]."""
    size = [view.size, view.size]
    picture = Image.fromarray(image)
    picture = F.resized_crop(
        picture, view.top, view.left, view.height, view.width, size, interpolation=InterpolationMode.BICUBIC
    )
    if view.flip:
        picture = F.hflip(picture)
    if view.jitter is not None:
        picture = _apply_jitter(picture, view.jitter)
    if view.grey:
        picture = F.to_grayscale(picture, num_output_channels=3)
    if view.blur is not None:
        picture = picture.filter(ImageFilter.GaussianBlur(radius=view.blur))
    if view.solarize is not None:
        picture = ImageOps.solarize(picture, view.solarize)
    np.copyto(out, np.asarray(picture))


def _apply_jitter(picture: Image.Image, jitter: Jitter) -> Image.Image:
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    factors = jitter[:4]
    for index in jitter.order:
        picture = steps[index](picture, factors[index])
    return picture
