"""The reference renderer against what Pillow, torchvision and numpy make of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dinowds.crops import pil
from dinowds.crops.recipe import plain_view
from dinowds.crops.stain import stain_maps, stained
from tests.crops.conftest import MakeImage, Pixels

BOX = (10, 20, 60, 80)
"""Top, left, height, width."""
SIDE = 48


@pytest.fixture(scope="module")
def photo(make_image: MakeImage) -> Pixels:
    return make_image("photo", 120, 150, 0)


@pytest.fixture(scope="module")
def box(photo: Pixels) -> Image.Image:
    """What every operation but the first begins with."""
    return Image.fromarray(photo).crop((20, 10, 100, 70)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def rendered(image: Pixels, view: Any) -> Pixels:
    """uint8 [size, size, 3], through memory that holds something else."""
    out = np.full((3, int(view["size"]), int(view["size"])), 7, np.uint8)
    pil.render(image, np.array([view]), [out])
    pixels: Pixels = out.transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "size"), [(*BOX, SIDE), (0, 0, 120, 150, 16), (7, 9, 1, 3, 8)]
)
def test_render__crops_and_resizes_as_torchvision(
    photo: Pixels, top: int, left: int, height: int, width: int, size: int
) -> None:
    expected = F.resized_crop(
        Image.fromarray(photo), top, left, height, width, [size, size], interpolation=InterpolationMode.BICUBIC
    )
    np.testing.assert_array_equal(rendered(photo, plain_view(top, left, height, width, size)), np.asarray(expected))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("vertical", [0, 1])
def test_render__flips_then_turns_as_numpy(
    photo: Pixels, box: Image.Image, flip: int, vertical: int, turns: int
) -> None:
    view = plain_view(*BOX, SIDE, flip=flip, vertical_flip=vertical, turns=turns)
    expected = np.asarray(box)
    expected = expected[:, ::-1] if flip else expected
    expected = expected[::-1] if vertical else expected
    np.testing.assert_array_equal(rendered(photo, view), np.rot90(expected, turns))


def test_render__stain(photo: Pixels, box: Image.Image) -> None:
    maps = stain_maps(np.array([1.2, 0.8, 1.1]), np.array([0.1, -0.05, 0.0]))
    found = rendered(photo, plain_view(*BOX, SIDE, stain=1, stain_map=maps))
    np.testing.assert_array_equal(found, stained(np.asarray(box), maps.astype(np.float32)))
    assert np.abs(found - np.asarray(box, float)).mean() > 2
    untouched = rendered(photo, plain_view(*BOX, SIDE, stain=0, stain_map=maps))
    np.testing.assert_array_equal(untouched, np.asarray(box))


@pytest.mark.parametrize(
    ("name", "factor", "apply"),
    [
        ("brightness", 1.3, lambda image: ImageEnhance.Brightness(image).enhance(1.3)),
        ("contrast", 0.6, lambda image: ImageEnhance.Contrast(image).enhance(0.6)),
        ("saturation", 1.7, lambda image: ImageEnhance.Color(image).enhance(1.7)),
        ("hue", -0.1, lambda image: F.adjust_hue(image, -0.1)),
    ],
)
def test_render__each_colour_factor(photo: Pixels, box: Image.Image, name: str, factor: float, apply: Any) -> None:
    factors: dict[str, Any] = {name: factor}
    # Jitter always passes through HSV, of which not every colour comes back.
    expected = apply(box) if name == "hue" else F.adjust_hue(apply(box), 0.0)
    np.testing.assert_array_equal(rendered(photo, plain_view(*BOX, SIDE, **factors)), np.asarray(expected))
    assert np.abs(np.asarray(expected, float) - np.asarray(box)).mean() > 2


def test_render__grey(photo: Pixels, box: Image.Image) -> None:
    found = rendered(photo, plain_view(*BOX, SIDE, grey=1))
    expected = np.asarray(box, float) @ [0.299, 0.587, 0.114]
    assert np.all(found == found[..., :1])
    assert np.abs(found[..., 0] - expected).max() <= 0.51


def test_render__blur_is_gaussian(photo: Pixels, box: Image.Image) -> None:
    sigma = 1.5
    found = rendered(photo, plain_view(*BOX, SIDE, blur=sigma))
    offsets = np.arange(-8, 9)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(np.asarray(box, float), ((8, 8), (8, 8), (0, 0)), mode="edge")
    rows = sum(weight * padded[8 + k : 8 + k + SIDE] for k, weight in zip(offsets, kernel, strict=True))
    expected = sum(weight * rows[:, 8 + k : 8 + k + SIDE] for k, weight in zip(offsets, kernel, strict=True))
    assert np.abs(found - expected).mean() < 1.0  # three box filters are not quite a Gaussian
    assert np.abs(np.asarray(box) - expected).mean() > 4


@pytest.mark.parametrize("threshold", [0, 128, 255])
def test_render__solarize(photo: Pixels, box: Image.Image, threshold: int) -> None:
    found = rendered(photo, plain_view(*BOX, SIDE, solarize=threshold))
    pixels = np.asarray(box)
    np.testing.assert_array_equal(found, np.where(pixels < threshold, pixels, 255 - pixels))


def test_render__everything_in_its_order(photo: Pixels, box: Image.Image) -> None:
    maps = stain_maps(np.array([1.1, 0.9, 1.0]), np.array([0.05, 0.0, -0.05]))
    view = plain_view(
        *BOX, SIDE, flip=1, vertical_flip=1, turns=1, stain=1, stain_map=maps, brightness=1.2, contrast=0.8,
        saturation=1.1, hue=0.05, order=(2, 0, 3, 1), blur=1.5, solarize=128,
    )  # fmt: skip
    turned = np.rot90(np.asarray(box)[::-1, ::-1])
    image = Image.fromarray(stained(turned, maps.astype(np.float32)))
    image = ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(np.float32(1.1))).enhance(np.float32(1.2))
    hue, saturation, value = image.convert("HSV").split()
    image = Image.merge("HSV", (hue.point([(h + 12) % 256 for h in range(256)]), saturation, value)).convert("RGB")
    image = ImageEnhance.Contrast(image).enhance(np.float32(0.8))
    image = ImageOps.solarize(image.filter(ImageFilter.GaussianBlur(1.5)), 128)
    np.testing.assert_array_equal(rendered(photo, view), np.asarray(image))


def test_render__grey_before_blur_and_after_jitter(photo: Pixels, box: Image.Image) -> None:
    view = plain_view(*BOX, SIDE, saturation=1.8, order=(0, 1, 2, 3), grey=1, blur=1.0)
    image = F.adjust_hue(ImageEnhance.Color(box).enhance(np.float32(1.8)), 0.0)
    image = F.to_grayscale(image, 3).filter(ImageFilter.GaussianBlur(1.0))
    np.testing.assert_array_equal(rendered(photo, view), np.asarray(image))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_render__jitter_in_the_order_of_the_record(photo: Pixels, box: Image.Image, order: tuple[int, ...]) -> None:
    factors: dict[str, Any] = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.8, "hue": 0.1}
    view = plain_view(*BOX, SIDE, order=order, **factors)
    steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    image = box
    for index in order:
        image = steps[index](image, float(np.float32(list(factors.values())[index])))
    np.testing.assert_array_equal(rendered(photo, view), np.asarray(image))


def test_render__fills_a_batch_that_lies_channels_first(photo: Pixels) -> None:
    batch = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    views = np.array([plain_view(0, 0, 50, 60, 16), plain_view(30, 40, 50, 60, 16, flip=1)])
    pil.render(photo, views, list(batch.numpy()))
    for view, out in zip(views, batch.numpy(), strict=True):
        np.testing.assert_array_equal(out.transpose(1, 2, 0), rendered(photo, view))
    with pytest.raises(ValueError, match="shorter"):
        pil.render(photo, views, list(batch.numpy()[:1]))


def test_render__refuses_a_reduced_image(photo: Pixels) -> None:
    with pytest.raises(ValueError, match="reduction is 2, expected 1"):
        pil.render(photo, np.array([plain_view(0, 0, 8, 8, 8)]), [np.zeros((3, 8, 8), np.uint8)], 2)
