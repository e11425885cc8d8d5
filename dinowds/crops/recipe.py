"""What views of an image are made, and the numbers that say how each one is made.

A `Recipe` comes from the configuration. `sample_views` draws a `View`, a plain record of numbers, for every view of one
image; a renderer turns image and record into pixels. Nothing else is random, so the same (seed, epoch, sample) gives
the same crops in any process, order or batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np

from dinowds.config import CropsConfig
from dinowds.errors import ConfigError

RENDERERS = ("cpu", "pil")
"""Values of `crops.renderer`."""

BOX_ATTEMPTS = 10
"""Boxes that are tried before the largest central one is taken; torchvision's RandomResizedCrop does the same."""


@dataclass(frozen=True)
class ViewGroup:
    """Views that are drawn alike. Probabilities are of each view on its own."""

    name: str
    """Unique in its recipe."""
    output: str
    """Name of the tensor that the views go to; groups with the same output lie side by side in it."""
    count: int
    """Views of each image."""
    size: int
    """Side of a view, px."""
    scale: tuple[float, float]
    """Share of the image's area that a view shows: least, most."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width ÷ height of the box that is cut out: least, most; uniform in its logarithm."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Brightness factor is uniform in 1 ± this, and not below 0."""
    contrast: float = 0.4
    """Contrast factor is uniform in 1 ± this, and not below 0."""
    saturation: float = 0.2
    """Saturation factor is uniform in 1 ± this, and not below 0."""
    hue: float = 0.1
    """Hue shift is uniform in ± this, in turns of the colour circle."""
    grey: float = 0.2
    """Probability of taking all colour out."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, px of the view: least, most."""
    solarize: float = 0.0
    """Probability of inverting the bright values."""
    solarize_threshold: int = 128
    """Values from this one on are inverted, 0 to 256."""


@dataclass(frozen=True)
class Output:
    """One tensor of views: `count` of them a sample, each `size` × `size` px."""

    name: str
    count: int
    size: int


@dataclass(frozen=True)
class Recipe:
    """All views of one image, in order. Groups of the same output are neighbours and have the same size."""

    groups: tuple[ViewGroup, ...]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The tensors that the views fill, in the order of the views."""
        outputs: dict[str, Output] = {}
        for group in self.groups:
            before = outputs[group.output].count if group.output in outputs else 0
            outputs[group.output] = Output(group.output, before + group.count, group.size)
        return tuple(outputs.values())

    @property
    def num_views(self) -> int:
        """Views of one image."""
        return sum(group.count for group in self.groups)


class Jitter(NamedTuple):
    """Colour jitter of one view."""

    brightness: float
    """Factor; 1 changes nothing."""
    contrast: float
    """Factor; 1 changes nothing."""
    saturation: float
    """Factor; 1 changes nothing."""
    hue: float
    """Shift in turns of the colour circle, -0.5 to 0.5."""
    order: tuple[int, int, int, int]
    """The order in which they are applied: 0 brightness, 1 contrast, 2 saturation, 3 hue."""


class View(NamedTuple):
    """Everything that decides the pixels of one view. Applied in the order of the fields."""

    top: int
    """First row of the box, px of the image."""
    left: int
    """First column of the box, px of the image."""
    height: int
    """Rows of the box."""
    width: int
    """Columns of the box."""
    size: int
    """Side of the square that the box is resized to, px."""
    flip: bool
    """Mirror left and right."""
    jitter: Jitter | None
    """Colour jitter."""
    grey: bool
    """Take all colour out."""
    blur: float | None
    """Standard deviation of a Gaussian blur, px."""
    solarize: int | None
    """Values from this one on are inverted."""


def patch_recipe(crops: CropsConfig) -> Recipe:
    """The multi-crop of DINO (Caron et al. 2021, appendix) with the sizes, scales and number of `crops`.

    Raises:
        ConfigError: a value cannot work; the message names `crops.<key>`.
    """
    _check_crops(crops)
    wide, small = _pair(crops.global_crops_scale), _pair(crops.local_crops_scale)
    size = crops.global_crops_size
    groups = [
        ViewGroup("global_1", "global", 1, size, wide, blur=1.0),
        ViewGroup("global_2", "global", 1, size, wide, blur=0.1, solarize=0.2),
    ]
    if crops.local_crops_number:
        groups.append(ViewGroup("local", "local", crops.local_crops_number, crops.local_crops_size, small))
    return Recipe(tuple(groups))


def _pair(values: Sequence[float]) -> tuple[float, float]:
    least, most = values
    return float(least), float(most)


def _check_crops(crops: CropsConfig) -> None:
    for key, least in (("global_crops_size", 1), ("local_crops_size", 1), ("local_crops_number", 0)):
        value = getattr(crops, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"crops.{key}: found {value!r}, expected a whole number of at least {least}")
    for key, example in (("global_crops_scale", "[0.4, 1.0]"), ("local_crops_scale", "[0.05, 0.4]")):
        value = list(getattr(crops, key))
        if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
            raise ConfigError(
                f"crops.{key}: found {value!r}, expected two shares of the area, 0 < least <= most <= 1, like {example}"
            )
    if crops.renderer not in RENDERERS:
        raise ConfigError(f"crops.renderer: found {crops.renderer!r}, expected one of {', '.join(RENDERERS)}")


def sample_generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The generator of one sample's crops: Philox, keyed by all three numbers (each at least 0)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, sample))))


# Rows of the block of uniform numbers that `sample_views` draws, one column a view. New kinds of number get new rows
# at the end: what is there stays where it is, and so do the crops of runs that do not use them.
_ASPECT = BOX_ATTEMPTS  # rows 0 to 9 are the area of each attempt, 10 to 19 its aspect
_TOP, _LEFT, _FLIP, _JITTER = 20, 21, 22, 23
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = 24, 25, 26, 27, 28
_GREY, _BLUR, _RADIUS, _SOLARIZE = 29, 30, 31, 32
_ROWS = 33

_ORDERS: tuple[tuple[int, int, int, int], ...] = tuple((a, b, c, d) for a, b, c, d in permutations(range(4)))


def sample_views(rng: np.random.Generator, recipe: Recipe, height: int, width: int) -> tuple[View, ...]:
    """Draw the numbers of every view of one image of `height` × `width` px.

    The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and
    RandomGrayscale, and of DINO's blur and solarization. Always takes the same amount from `rng`.

    Returns:
        One record a view, in the order of the recipe's groups.
    """
    columns = rng.random((_ROWS, recipe.num_views)).T.tolist()
    groups = (group for group in recipe.groups for _ in range(group.count))
    return tuple(_view(group, column, height, width) for group, column in zip(groups, columns, strict=True))


def _view(group: ViewGroup, uniform: list[float], height: int, width: int) -> View:
    box_height, box_width, central = _box_size(group, uniform, height, width)
    spare_rows, spare_columns = height - box_height, width - box_width
    least, most = group.blur_radius
    return View(
        top=spare_rows // 2 if central else int(uniform[_TOP] * (spare_rows + 1)),
        left=spare_columns // 2 if central else int(uniform[_LEFT] * (spare_columns + 1)),
        height=box_height,
        width=box_width,
        size=group.size,
        flip=uniform[_FLIP] < group.flip,
        jitter=_jitter(group, uniform) if uniform[_JITTER] < group.jitter else None,
        grey=uniform[_GREY] < group.grey,
        blur=least + (most - least) * uniform[_RADIUS] if uniform[_BLUR] < group.blur else None,
        solarize=group.solarize_threshold if uniform[_SOLARIZE] < group.solarize else None,
    )


def _box_size(group: ViewGroup, uniform: list[float], height: int, width: int) -> tuple[int, int, bool]:
    """Rows and columns of the box, and whether it is the central one that stands in when no attempt fits."""
    area = height * width
    least, most = group.scale
    log_least, log_most = math.log(group.aspect[0]), math.log(group.aspect[1])
    for attempt in range(BOX_ATTEMPTS):
        target = area * (least + (most - least) * uniform[attempt])
        aspect = math.exp(log_least + (log_most - log_least) * uniform[_ASPECT + attempt])
        box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return box_height, box_width, False
    if width < height * group.aspect[0]:
        return max(1, min(height, round(width / group.aspect[0]))), width, True
    if width > height * group.aspect[1]:
        return height, max(1, min(width, round(height * group.aspect[1]))), True
    return height, width, True


def _jitter(group: ViewGroup, uniform: list[float]) -> Jitter:
    return Jitter(
        brightness=_factor(group.brightness, uniform[_BRIGHTNESS]),
        contrast=_factor(group.contrast, uniform[_CONTRAST]),
        saturation=_factor(group.saturation, uniform[_SATURATION]),
        hue=group.hue * (2 * uniform[_HUE] - 1),
        order=_ORDERS[int(uniform[_ORDER] * len(_ORDERS))],
    )


def _factor(strength: float, uniform: float) -> float:
    least = max(0.0, 1 - strength)
    return least + (1 + strength - least) * uniform
