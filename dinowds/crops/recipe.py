"""What views of an image are made, and the numbers that say how each one is made.

A `Recipe` comes from the configuration. `sample_batch` draws a record of numbers for every view of every image of a
batch; a renderer turns image and record into pixels. Nothing else is random, so the same (seed, visit, sample) gives
the same crops in any process, order or batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, permutations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dinowds.config import CropsConfig
from dinowds.crops.stain import stain_maps
from dinowds.errors import ConfigError

RENDERERS = ("auto", "cpu", "device", "pil")
"""Values of `crops.renderer`."""

BOX_ATTEMPTS = 10
"""Boxes that are tried before the largest central one is taken; torchvision's RandomResizedCrop does the same."""

MAX_BLUR = 32.0
"""Largest standard deviation of a blur, px."""

NEVER_SOLARIZED = 256
"""Threshold that no value reaches."""

VIEW = np.dtype(
    [
        ("top", "i4"),  # first row of the box, px of the image
        ("left", "i4"),  # first column of the box, px of the image
        ("height", "i4"),  # rows of the box
        ("width", "i4"),  # columns of the box
        ("size", "i4"),  # side of the square that the box is resized to, px
        ("flip", "i4"),  # 1: mirror left and right
        ("vertical_flip", "i4"),  # 1: mirror top and bottom
        ("turns", "i4"),  # quarter turns counter-clockwise, 0 to 3
        ("stain", "i4"),  # 1: stain jitter
        ("stain_map", "f4", (3, 4)),  # A | b: optical density d → A d + b
        ("jitter", "i4"),  # 1: colour jitter
        ("brightness", "f4"),  # factor; 1 changes nothing
        ("contrast", "f4"),  # factor; 1 changes nothing
        ("saturation", "f4"),  # factor; 1 changes nothing
        ("hue", "f4"),  # shift in turns of the colour circle, -0.5 to 0.5
        ("order", "i4", (4,)),  # in which jitter is applied: 0 brightness, 1 contrast, 2 saturation, 3 hue
        ("grey", "i4"),  # 1: take all colour out
        ("blur", "f4"),  # standard deviation of a Gaussian blur, px; 0: none
        ("solarize", "i4"),  # values from this one on are inverted; 256: none
    ]
)
"""The record of one view: everything that decides its pixels. Applied in the order of the fields. All are 4 bytes."""

Views: TypeAlias = NDArray[Any]
"""Records: an array of `VIEW`."""


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
    inside: str | None = None
    """Output whose views the boxes lie in: view i in its view i modulo their number; None for anywhere."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    vertical_flip: float = 0.0
    """Probability of a top-bottom flip."""
    quarter_turns: bool = False
    """Turn by 0, 90, 180 or 270 degrees, all equally likely."""
    stain: float = 0.0
    """Probability of jitter of haematoxylin, eosin and DAB."""
    stain_strength: float = 0.05
    """Factor of each stain is uniform in 1 ± this, and its shift in ± this, in units of optical density."""
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

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The tensors that the views fill, in the order of the views."""
        outputs: dict[str, Output] = {}
        for group in self.groups:
            before = outputs[group.output].count if group.output in outputs else 0
            outputs[group.output] = Output(group.output, before + group.count, group.size)
        return tuple(outputs.values())

    @cached_property
    def num_views(self) -> int:
        """Views of one image."""
        return sum(group.count for group in self.groups)

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """Name of a number of `ViewGroup` → its value for each view, [V] or [V, 2]."""
        names = ("size", "scale", "aspect", "flip", "vertical_flip", "quarter_turns", "stain", "stain_strength",
                 "jitter", "brightness", "contrast", "saturation", "hue", "grey", "blur", "blur_radius", "solarize",
                 "solarize_threshold")  # fmt: skip
        groups = [group for group in self.groups for _ in range(group.count)]
        return {name: np.array([getattr(group, name) for group in groups]) for name in names}

    @cached_property
    def _parents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Views that lie inside another one, and that other one of each."""
        places: dict[str, list[int]] = {}
        inside: list[tuple[int, str]] = []
        view = 0
        for group in self.groups:
            for _ in range(group.count):
                places.setdefault(group.output, []).append(view)
                if group.inside is not None:
                    inside.append((view, group.inside))
                view += 1
        parents = [places[output][position % len(places[output])] for position, (_, output) in enumerate(inside)]
        return np.array([view for view, _ in inside], np.int64), np.array(parents, np.int64)


_OF_ALL_VIEWS = ("flip", "vertical_flip", "quarter_turns", "stain", "stain_strength", "jitter", "brightness",
                 "contrast", "saturation", "hue", "grey", "solarize_threshold")  # fmt: skip
"""Keys of `crops` that all groups share, and fields of `ViewGroup`."""


def patch_recipe(crops: CropsConfig) -> Recipe:
    """The multi-crop of DINO (Caron et al. 2021, appendix) with the values of `crops`.

    Raises:
        ConfigError: a value cannot work; the message names `crops.<key>`.
    """
    _check_crops(crops)
    groups: list[ViewGroup] = []
    for output, of in (("global", crops.global_), ("local", crops.local)):
        pairs = [(_of_view(of.blur, view), _of_view(of.solarize, view)) for view in range(of.count)]
        starts = [view for view in range(of.count) if view == 0 or pairs[view] != pairs[view - 1]]
        for start, stop in pairwise([*starts, of.count]):
            groups.append(
                ViewGroup(
                    name=output if len(starts) == 1 else f"{output}_{start + 1}",
                    output=output,
                    count=stop - start,
                    size=of.size,
                    scale=_pair(of.scale),
                    aspect=_pair(of.aspect),
                    inside="global" if output == "local" and crops.local.inside_global else None,
                    blur=pairs[start][0],
                    blur_radius=_pair(crops.blur_radius),
                    solarize=pairs[start][1],
                    **{name: getattr(crops, name) for name in _OF_ALL_VIEWS},
                )
            )
    return Recipe(tuple(groups))


def _of_view(probabilities: Sequence[float], view: int) -> float:
    """The last one holds for the views after it."""
    return float(probabilities[min(view, len(probabilities) - 1)])


def _pair(values: Sequence[float]) -> tuple[float, float]:
    least, most = values
    return float(least), float(most)


def _check_crops(crops: CropsConfig) -> None:
    rules: list[tuple[str, Any, bool, str]] = []
    for name, of, fewest in (("global", crops.global_, 1), ("local", crops.local, 0)):
        scale, aspect = list(of.scale), list(of.aspect)
        rules += [
            (f"{name}.count", of.count, of.count >= fewest, f"a whole number of at least {fewest}"),
            (f"{name}.size", of.size, of.size >= 1, "a whole number of at least 1"),
            (
                f"{name}.scale",
                scale,
                len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1,
                "two shares of the area, 0 < least <= most <= 1, like [0.4, 1.0]",
            ),
            (
                f"{name}.aspect",
                aspect,
                len(aspect) == 2 and 0 < aspect[0] <= aspect[1] < np.inf,
                "two ratios of width to height, 0 < least <= most, like [0.75, 1.33]",
            ),
        ]
        for key in ("blur", "solarize"):
            values = list(getattr(of, key))
            holds = len(values) >= 1 and all(0 <= value <= 1 for value in values)
            rules.append((f"{name}.{key}", values, holds, "one or more probabilities from 0 to 1, like [1.0, 0.1]"))
    for key in ("flip", "vertical_flip", "stain", "jitter", "grey"):
        rules.append((key, getattr(crops, key), 0 <= getattr(crops, key) <= 1, "a probability from 0 to 1"))
    for key in ("stain_strength", "brightness", "contrast", "saturation"):
        rules.append((key, getattr(crops, key), 0 <= getattr(crops, key) < np.inf, "a finite number, 0 or more"))
    radius, num_views = list(crops.blur_radius), crops.global_.count + crops.local.count
    rules += [
        ("local.count", crops.local.count, num_views >= 2, "at least 1 beside a single global view"),
        ("hue", crops.hue, 0 <= crops.hue <= 0.5, "0 to 0.5"),
        (
            "blur_radius",
            radius,
            len(radius) == 2 and 0 < radius[0] <= radius[1] <= MAX_BLUR,
            f"two numbers of px, 0 < least <= most <= {MAX_BLUR}, like [0.1, 2.0]",
        ),
        ("solarize_threshold", crops.solarize_threshold, 0 <= crops.solarize_threshold <= 256, "0 to 256"),
        ("renderer", crops.renderer, crops.renderer in RENDERERS, f"one of {', '.join(RENDERERS)}"),
    ]
    for key, value, holds, expected in rules:
        if not holds:
            raise ConfigError(f"crops.{key}: found {value!r}, expected {expected}")


# Rows of the block of uniform numbers of a sample, one column a view. New kinds of number get new rows at the end: what
# is there stays where it is, and so do the crops of runs that do not use them.
_ASPECT = BOX_ATTEMPTS  # rows 0 to 9 are the area of each attempt, 10 to 19 its aspect
_TOP, _LEFT, _FLIP, _JITTER = 20, 21, 22, 23
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = 24, 25, 26, 27, 28
_GREY, _BLUR, _RADIUS, _SOLARIZE = 29, 30, 31, 32
_VERTICAL_FLIP, _TURNS, _STAIN, _STAIN_FACTORS, _STAIN_SHIFTS = 33, 34, 35, 36, 39
_ROWS = 42

_ORDERS = np.array(list(permutations(range(4))))


def sample_generator(seed: int, visit: int, sample: int) -> np.random.Generator:
    """The generator of one sample's crops: Philox (Salmon et al. 2011), keyed by all three, each at least 0."""
    return np.random.Generator(np.random.Philox(key=np.array([_stream(seed, visit), sample], np.uint64)))


@lru_cache(maxsize=1024)
def _stream(seed: int, visit: int) -> int:
    return int(np.random.SeedSequence((seed, visit)).generate_state(1, np.uint64)[0])


def sample_views(rng: np.random.Generator, recipe: Recipe, height: int, width: int) -> Views:
    """Draw the numbers of every view of one image of `height` × `width` px.

    The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and
    RandomGrayscale, and of DINO's blur and solarization. Always takes the same amount from `rng`.

    Returns:
        [V] records, in the order of the recipe's groups.
    """
    uniform = rng.random((1, _ROWS, recipe.num_views))
    views: Views = _views(uniform, recipe, np.array([height]), np.array([width]))[0]
    return views


def sample_batch(
    seed: int,
    visits: Sequence[int],
    samples: Sequence[int],
    recipe: Recipe,
    heights: Sequence[int],
    widths: Sequence[int],
) -> Views:
    """`sample_views` of many images at once, each with its own `sample_generator`, which takes a tenth of the time.

    Visits, samples, heights and widths are one of each an image.

    Returns:
        [B, V] records.
    """
    uniform = uniform_numbers(seed, visits, samples, (_ROWS, recipe.num_views))
    return _views(uniform, recipe, np.asarray(heights), np.asarray(widths))


def uniform_numbers(
    seed: int, visits: Sequence[int], samples: Sequence[int], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """[B, *shape] uniform numbers in [0, 1): for each sample those that its own `sample_generator` begins with."""
    uniform = np.empty((len(samples), *shape))
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    key: Any = state["state"]["key"]
    for place, (visit, sample) in enumerate(zip(visits, samples, strict=True)):
        key[:] = (_stream(seed, visit), sample)
        philox.state = state  # the counter is that of a new one
        generator.random(out=uniform[place])
    return uniform


def _views(uniform: NDArray[np.float64], recipe: Recipe, heights: NDArray[Any], widths: NDArray[Any]) -> Views:
    """Uniform numbers [B, rows, V] and sizes [B] → [B, V] records."""
    of = recipe._columns
    views = np.zeros((len(uniform), recipe.num_views), VIEW)
    _draw_boxes(views, uniform, recipe, heights, widths)
    views["size"] = of["size"]
    views["flip"] = uniform[:, _FLIP] < of["flip"]
    views["vertical_flip"] = uniform[:, _VERTICAL_FLIP] < of["vertical_flip"]
    views["turns"] = (4 * uniform[:, _TURNS]).astype(np.int32) * of["quarter_turns"]
    views["stain"] = stained = uniform[:, _STAIN] < of["stain"]
    if stained.any():
        strength = of["stain_strength"]
        factors = 1 + strength * (2 * uniform[:, _STAIN_FACTORS : _STAIN_FACTORS + 3] - 1)
        shifts = strength * (2 * uniform[:, _STAIN_SHIFTS : _STAIN_SHIFTS + 3] - 1)
        maps = stain_maps(np.moveaxis(factors, 1, -1), np.moveaxis(shifts, 1, -1))
        views["stain_map"] = np.where(stained[:, :, None, None], maps, 0)
    views["jitter"] = jittered = uniform[:, _JITTER] < of["jitter"]
    for name, row in (("brightness", _BRIGHTNESS), ("contrast", _CONTRAST), ("saturation", _SATURATION)):
        least = np.maximum(0, 1 - of[name])
        views[name] = np.where(jittered, least + (1 + of[name] - least) * uniform[:, row], 1)
    views["hue"] = np.where(jittered, of["hue"] * (2 * uniform[:, _HUE] - 1), 0)
    views["order"] = _ORDERS[np.where(jittered, uniform[:, _ORDER] * len(_ORDERS), 0).astype(np.int64)]
    views["grey"] = uniform[:, _GREY] < of["grey"]
    least, most = of["blur_radius"][:, 0], of["blur_radius"][:, 1]
    views["blur"] = np.where(uniform[:, _BLUR] < of["blur"], least + (most - least) * uniform[:, _RADIUS], 0)
    solarized = uniform[:, _SOLARIZE] < of["solarize"]
    views["solarize"] = np.where(solarized, of["solarize_threshold"], NEVER_SOLARIZED)
    return views


def _draw_boxes(
    views: Views, uniform: NDArray[np.float64], recipe: Recipe, heights: NDArray[Any], widths: NDArray[Any]
) -> None:
    shape = views.shape
    area = (heights.astype(np.float64) * widths)[:, None]
    of = recipe._columns
    rows, columns = np.broadcast_to(heights[:, None], shape), np.broadcast_to(widths[:, None], shape)
    boxes = _boxes(uniform, of["scale"], of["aspect"], area, rows, columns)
    for name, values in zip(("top", "left", "height", "width"), boxes, strict=True):
        views[name] = values
    inner, parents = recipe._parents
    if len(inner):
        parent = views[:, parents]
        top, left, height, width = _boxes(
            uniform[:, :, inner], of["scale"][inner], of["aspect"][inner], area, parent["height"], parent["width"]
        )
        views["top"][:, inner], views["left"][:, inner] = parent["top"] + top, parent["left"] + left
        views["height"][:, inner], views["width"][:, inner] = height, width


def _boxes(
    uniform: NDArray[np.float64],
    scale: NDArray[np.float64],
    aspect: NDArray[np.float64],
    area: NDArray[np.float64],
    height: NDArray[Any],
    width: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Top, left, height and width, [B, V] each, of boxes within `height` × `width` px that show `scale` of `area`.

    The first attempt that fits is taken, else the largest central box whose aspect is allowed.
    """
    targets = area[:, None] * (scale[:, 0] + (scale[:, 1] - scale[:, 0]) * uniform[:, :BOX_ATTEMPTS])
    least, most = np.log(aspect[:, 0]), np.log(aspect[:, 1])
    ratios = np.exp(least + (most - least) * uniform[:, _ASPECT : _ASPECT + BOX_ATTEMPTS])
    box_widths, box_heights = np.rint(np.sqrt(targets * ratios)), np.rint(np.sqrt(targets / ratios))
    fits = (box_widths > 0) & (box_widths <= width[:, None]) & (box_heights > 0) & (box_heights <= height[:, None])
    first = fits.argmax(axis=1)[:, None]
    found = np.take_along_axis(fits, first, axis=1)[:, 0]
    # Rounded as Python's round() does, and at least one pixel.
    narrow = np.clip(np.rint(width / aspect[:, 0]), 1, height), width
    flat = height, np.clip(np.rint(height * aspect[:, 1]), 1, width)
    is_narrow, is_flat = width < height * aspect[:, 0], width > height * aspect[:, 1]
    central_height = np.where(is_narrow, narrow[0], np.where(is_flat, flat[0], height))
    central_width = np.where(is_narrow, narrow[1], np.where(is_flat, flat[1], width))
    box_height = np.where(found, np.take_along_axis(box_heights, first, axis=1)[:, 0], central_height)
    box_width = np.where(found, np.take_along_axis(box_widths, first, axis=1)[:, 0], central_width)
    spare_rows, spare_columns = height - box_height, width - box_width
    top = np.where(found, np.floor(uniform[:, _TOP] * (spare_rows + 1)), spare_rows // 2)
    left = np.where(found, np.floor(uniform[:, _LEFT] * (spare_columns + 1)), spare_columns // 2)
    return top, left, box_height, box_width


def plain_view(top: int, left: int, height: int, width: int, size: int, **changes: Any) -> Any:
    """One record that only crops and resizes, with `changes` to its other fields; colour factors switch jitter on."""
    view = np.zeros((), VIEW)
    for name in ("brightness", "contrast", "saturation"):
        view[name] = 1
    jitter = {"jitter": 1} if changes.keys() & {"brightness", "contrast", "saturation", "hue", "order"} else {}
    values = {"order": (0, 1, 2, 3), "solarize": NEVER_SOLARIZED, **jitter, **changes}
    for name, value in {"top": top, "left": left, "height": height, "width": width, "size": size, **values}.items():
        view[name] = value
    return view
