"""The reduction of a JPEG while it is decoded: as far as its views allow, and not seen in them."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dinowds.config import CropsConfig
from dinowds.crops.recipe import VIEW, patch_recipe, plain_view, sample_batch
from dinowds.crops.reduction import MARGIN, REDUCTIONS, best_reduction
from dinowds.data.decode import decode_reduced

from .conftest import MakeImage


def resized(image: Image.Image, view: Any, reduction: int) -> npt.NDArray[np.int64]:
    """The view's box of an image that is reduced already; pixels beyond the box are not read."""
    left, top, width, height = (int(view[name]) / reduction for name in ("left", "top", "width", "height"))
    box = np.array([left, top, left + width, top + height])
    first = math.floor(left), math.floor(top)
    crop = image.crop((*first, math.ceil(left + width), math.ceil(top + height)))
    size = int(view["size"])
    inner = tuple((box - [*first, *first]).tolist())
    return np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC, box=inner), np.int64)


@pytest.mark.parametrize(
    ("height", "width", "reduction"),
    [(96, 96, 1), (383, 400, 1), (384, 384, 2), (767, 767, 2), (768, 4000, 4), (4000, 1535, 4), (1536, 1536, 8)],
)
def test_reduction__is_the_largest_that_leaves_the_margin(height: int, width: int, reduction: int) -> None:
    assert best_reduction(np.array([plain_view(0, 0, height, width, 96)])) == reduction


def test_reduction__is_that_of_the_most_demanding_view() -> None:
    views = np.array([plain_view(0, 0, 2000, 2000, 224), plain_view(9, 9, 400, 900, 96)], VIEW)
    assert best_reduction(views) == 2
    assert best_reduction(views[:1]) == 4


@pytest.mark.parametrize("side", [256, 1024, 1536, 3000, 8000])
def test_reduction__of_a_batch_is_that_of_each_image(side: int) -> None:
    views = sample_batch(0, [0] * 50, range(50), patch_recipe(CropsConfig()), [side] * 50, [side + 77] * 50)
    reductions = best_reduction(views)
    assert reductions.shape == (50,)
    for of_image, reduction in zip(views, reductions.tolist(), strict=True):
        assert best_reduction(of_image) == reduction
        shrink = min(min(view["height"], view["width"]) / view["size"] for view in of_image)
        assert reduction == max([1] + [other for other in REDUCTIONS if shrink >= other * MARGIN])


@pytest.mark.parametrize(("quality", "subsampling"), [(80, 2), (95, 0)])
def test_reduction__is_not_seen_in_views_of_photographs_and_tissue(
    quality: int, subsampling: int, make_image: MakeImage
) -> None:
    """Mirror images side by side make a large picture without seams that is as sharp as the small one. The most
    demanding view of each shrinks its reduced box by `MARGIN` or little more."""
    differences = []
    random = np.random.default_rng(quality)
    for seed in range(5):
        photo = make_image("photo", 300, 400, seed)
        half = np.concatenate([photo, photo[:, ::-1]], axis=1)
        full = np.tile(np.concatenate([half, half[::-1]]), (2, 2, 1))[:1000, :1000]
        content = io.BytesIO()
        Image.fromarray(full).save(content, "JPEG", quality=quality, subsampling=subsampling)
        whole = Image.fromarray(decode_reduced(content.getvalue(), 1)[0])
        for least, size in ((2, 96), (2, 224), (4, 96)):
            side = math.ceil(least * MARGIN * size)
            views = np.empty(6, VIEW)
            for place in range(6):
                height, width = side + int(random.integers(side // 9)), side + int(random.integers(side // 9))
                top, left = int(random.integers(1000 - height + 1)), int(random.integers(1000 - width + 1))
                views[place] = plain_view(top, left, height, width, size)
            pixels, reduction = decode_reduced(content.getvalue(), best_reduction(views))
            assert reduction == least
            reduced = Image.fromarray(pixels)
            for view in views:
                difference = np.abs(resized(whole, view, 1) - resized(reduced, view, reduction)).mean()
                differences.append(difference)
    assert np.mean(differences) < 0.6
    assert np.max(differences) <= 1
