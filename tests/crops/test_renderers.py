"""The renderers against the reference, over photographs and tissue: what docs/crops.md promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dinowds.config import CropsConfig, LocalCropsConfig
from dinowds.crops import cpu, pil
from dinowds.crops.device import DeviceRenderer
from dinowds.crops.recipe import Views, patch_recipe, sample_batch

Pixels: TypeAlias = npt.NDArray[np.uint8]
MakeImage: TypeAlias = Callable[[str, int, int, int], Pixels]

IMAGES = 50  # of 10 views: 500 records
SIZES = ((256, 256), (224, 300), (300, 384), (100, 130), (97, 61))
RECIPES = {
    "default": CropsConfig(),
    "all options": CropsConfig(
        local=LocalCropsConfig(inside_global=True, solarize=[0.3]), vertical_flip=0.5, quarter_turns=True, stain=0.8,
        stain_strength=0.2, blur_radius=[0.1, 5.0], solarize_threshold=100,
    ),
}  # fmt: skip


def by_cpu(images: list[Pixels], records: Views, outs: list[list[Pixels]]) -> None:
    for image, views, places in zip(images, records, outs, strict=True):
        cpu.render(image, views, places)


def by_device(images: list[Pixels], records: Views, outs: list[list[Pixels]], recipe: CropsConfig) -> None:
    render = DeviceRenderer(patch_recipe(recipe), torch.device("cpu"))
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
    rendered = render(pixels, [image.shape[:2] for image in images], records, [1] * len(images))
    views = [view for group in rendered.values() for view in group.numpy()]  # [view] of [B, 3, size, size]
    for place, places in enumerate(outs):
        for view, out in zip(views, places, strict=True):
            np.copyto(out, view[place])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_renderers__differ_from_pil_by_one_grey_level_at_most(recipe: CropsConfig, make_image: MakeImage) -> None:
    sizes = [SIZES[i % len(SIZES)] for i in range(IMAGES)]
    images = [make_image("photo", *size, seed) for seed, size in enumerate(sizes)]
    heights, widths = zip(*sizes, strict=True)
    records = sample_batch(0, [0] * IMAGES, range(IMAGES), patch_recipe(recipe), heights, widths)
    outs = {
        name: [[np.full((3, size, size), 77, np.uint8) for size in views["size"]] for views in records]
        for name in ("pil", "cpu", "device")
    }
    for image, views, places in zip(images, records, outs["pil"], strict=True):
        pil.render(image, views, places)
    by_cpu(images, records, outs["cpu"])
    by_device(images, records, outs["device"], recipe)
    expected = [out.astype(int) for places in outs["pil"] for out in places]
    for name in ("cpu", "device"):
        found = [out for places in outs[name] for out in places]
        differences = [np.abs(one - other).mean() for one, other in zip(found, expected, strict=True)]
        assert len(differences) == 500
        assert np.mean(differences) <= 0.2
        assert np.max(differences) <= 1
