"""The fast renderer for processor cores: uint8 from end to end, in OpenCV and torch's antialiased resize.

Every step is the counterpart of one in `pil.py` and rounds as Pillow does: `Image.blend` truncates, so half a grey
level is taken off before OpenCV rounds. Steps are not merged, because Pillow clips and truncates after each one, and on
flat areas that is seen.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch

from dinowds.crops.recipe import View

# The loader runs one process a core; threads inside OpenCV would fight over the same cores.
cv2.setNumThreads(0)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Step: TypeAlias = Callable[[Pixels, Pixels], None]
"""From one uint8 [size, size, 3] into another; the two never overlap."""

TRUNCATE = -0.5 + 1e-4
"""Added before rounding, it rounds down; the excess keeps whole numbers from falling to the one below."""

SMALL_RADIUS = 0.4
"""Below this radius, px, one filter in the place of Pillow's six is off by up to 1 grey level on noise."""

RADIUS_STEPS = 256
"""Radii are rounded to 1 / this before a filter is made for them, so that filters can be kept."""

_resize_into: Any = torch.ops.aten._upsample_bicubic2d_aa.out


def render(image: Pixels, view: View, out: Pixels) -> None:
    """Write one view of `image`, uint8 [H, W, 3], RGB, into `out`, uint8 [size, size, 3].

    Raises:
        ValueError: `out` has another shape or type.
    """
    if out.shape != (view.size, view.size, 3) or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, expected uint8 [{view.size}, {view.size}, 3]")
    steps = _steps(view)
    # torch's resize takes its target for dense memory, whatever the strides.
    dense = out if out.flags.c_contiguous else _scratch(out.shape, "uint8", 2)
    other = _scratch(out.shape, "uint8", 0)
    source, target = (dense, other) if len(steps) % 2 == 0 else (other, dense)
    _crop(image, view, source)
    for step in steps:
        step(source, target)
        source, target = target, source
    if dense is not out:
        np.copyto(out, dense)


class _Memory(threading.local):
    """Arrays that a thread uses again and again; fresh ones of this size come from the kernel page by page."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[tuple[int, ...], str, int], npt.NDArray[Any]] = {}


_memory = _Memory()


def _scratch(shape: tuple[int, ...], kind: str, slot: int) -> npt.NDArray[Any]:
    """Uninitialised memory of this thread; the same one for the same arguments."""
    key = (shape, kind, slot)
    if key not in _memory.arrays:
        _memory.arrays[key] = np.empty(shape, kind)
    return _memory.arrays[key]


def _steps(view: View) -> list[Step]:
    steps: list[Step] = []
    if view.jitter is not None:
        factors = view.jitter[:4]
        steps += [partial(_JITTER_STEPS[index], factor=factors[index]) for index in view.jitter.order]
    if view.grey:
        steps.append(partial(_grey, radius=view.blur))
    elif view.blur is not None:
        steps.append(partial(_blur, radius=view.blur))
    if view.solarize is not None:
        steps.append(partial(_solarize, threshold=view.solarize))
    return steps


def _crop(image: Pixels, view: View, target: Pixels) -> None:
    box = image[view.top : view.top + view.height, view.left : view.left + view.width]
    # Mirroring first is cheaper where the box is smaller than the view, and the filter is symmetric.
    box = cv2.flip(box, 1) if view.flip else box.copy()
    _resize_into(_as_nchw(box), [view.size, view.size], False, None, None, out=_as_nchw(target))


def _as_nchw(pixels: Pixels) -> torch.Tensor:
    """The same memory as a tensor [1, 3, H, W] in channels-last order."""
    return torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)


def _scale(source: Pixels, target: Pixels, factor: float, offset: float) -> None:
    """target = factor · source + offset, rounded and clipped."""
    rows = [[factor, 0, 0, offset], [0, factor, 0, offset], [0, 0, factor, offset]]
    cv2.transform(source, np.array(rows), dst=target)


def _brightness(source: Pixels, target: Pixels, factor: float) -> None:
    _scale(source, target, factor, TRUNCATE)


def _contrast(source: Pixels, target: Pixels, factor: float) -> None:
    mean = int(cv2.mean(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    _scale(source, target, factor, (1 - factor) * mean + TRUNCATE)


def _saturation(source: Pixels, target: Pixels, factor: float) -> None:
    grey = _scratch(source.shape, "uint8", 1)
    cv2.cvtColor(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=grey)
    cv2.addWeighted(source, factor, grey, 1 - factor, TRUNCATE, dst=target)


def _hue(source: Pixels, target: Pixels, factor: float) -> None:
    """Pillow keeps hue, saturation and value in 8 bits, rounded down, and its hue has 256 steps of 1/255 of the circle.

    OpenCV's 8-bit HSV rounds to other steps on the way there, so that way goes through float32; on the way back its
    "full" 8-bit HSV has Pillow's steps.
    """
    floats, hsv = _scratch(source.shape, "float32", 0), _scratch(source.shape, "float32", 1)
    steps = _scratch(source.shape, "uint8", 1)
    np.copyto(floats, source)
    cv2.cvtColor(floats, cv2.COLOR_RGB2HSV, dst=hsv)
    cv2.transform(hsv, _HSV_TO_BYTES, dst=floats)
    cv2.convertScaleAbs(floats, dst=steps)
    rows = steps.reshape(len(steps), -1)
    np.add(rows, _hue_shift(len(steps), int(factor * 255) % 256), out=rows)
    cv2.cvtColor(steps, cv2.COLOR_HSV2RGB_FULL, dst=target)


_HSV_TO_BYTES = np.array([[255 / 360, 0, 0, TRUNCATE], [0, 255, 0, TRUNCATE], [0, 0, 1, 0]])


@lru_cache(maxsize=1024)
def _hue_shift(width: int, steps: int) -> Pixels:
    """One row of pixels, uint8 [3 · width], that adds `steps` to the hue and nothing to the rest, wrapping around."""
    return np.tile(np.array([steps, 0, 0], np.uint8), width)


_JITTER_STEPS = (_brightness, _contrast, _saturation, _hue)
"""In the order of the fields of `Jitter`."""


def _grey(source: Pixels, target: Pixels, radius: float | None) -> None:
    """Blurs as well, where a radius is given: one channel costs a third of three."""
    grey = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)
    if radius is not None:
        _blur(grey, grey := np.empty_like(grey), radius)
    cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB, dst=target)


def _blur(source: Pixels, target: Pixels, radius: float) -> None:
    """Pillow's Gaussian blur: three extended box filters along the rows, then three along the columns."""
    if radius < SMALL_RADIUS:
        _blur_small(source, target, radius)
        return
    kernel = _blur_kernel(round(radius * RADIUS_STEPS))
    cv2.sepFilter2D(source, -1, kernel, kernel, dst=target, borderType=cv2.BORDER_REPLICATE)


def _blur_small(source: Pixels, target: Pixels, radius: float) -> None:
    """A small radius moves values by about half a level a filter, so it is the rounding of each that decides.

    The box filter is (1 - 2s, s, s) of a value and its neighbours, which is here a blend with a stronger filter.
    """
    share = float(_box(radius)[0])
    strong = _scratch(source.shape, "uint8", 1)
    for _ in range(3):
        cv2.blur(source, (3, 1), dst=strong, borderType=cv2.BORDER_REPLICATE)
        source = cv2.addWeighted(source, 1 - 3 * share, strong, 3 * share, 0, dst=target)
    for _ in range(3):
        cv2.sepFilter2D(source, -1, _NO_FILTER, _QUARTERS, dst=strong, borderType=cv2.BORDER_REPLICATE)
        source = cv2.addWeighted(source, 1 - 4 * share, strong, 4 * share, 0, dst=target)


_NO_FILTER, _QUARTERS = np.ones(1), np.array([0.25, 0.5, 0.25])


def _box(radius: float) -> npt.NDArray[np.float64]:
    """Weights of one of three box filters with fractional ends that together blur by `radius` (Gwosdek et al. 2011)."""
    variance = radius**2 / 3
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return np.array([share, *[1.0] * (2 * whole + 1), share]) / (2 * (whole + share) + 1)


@lru_cache(maxsize=4096)
def _blur_kernel(steps: int) -> npt.NDArray[np.float64]:
    """The three box filters of a radius of `steps` / RADIUS_STEPS as one.

    Returns:
        An odd number of weights, symmetric, with sum 1. All are multiples of 1/256, which OpenCV's 8-bit filter keeps
        as they are; of the roundings up and down, those that change white noise least.
    """
    box = _box(steps / RADIUS_STEPS)
    exact = 256 * np.convolve(np.convolve(box, box), box)
    side = len(exact) // 2
    choices = (np.arange(2**side)[:, None] >> np.arange(side)) & 1
    sides = np.floor(exact[:side]) + choices
    rounded = np.concatenate([sides, 256 - 2 * sides.sum(axis=1, keepdims=True), sides[:, ::-1]], axis=1)
    # The squared difference of the two-dimensional filters, less what all choices share.
    error = (rounded**2).sum(axis=1) ** 2 - 2 * (rounded @ exact) ** 2
    best: npt.NDArray[np.float64] = np.trim_zeros(rounded[np.argmin(error)]) / 256
    return best


def _solarize(source: Pixels, target: Pixels, threshold: int) -> None:
    cv2.LUT(source, _solarize_table(threshold), dst=target)


@lru_cache
def _solarize_table(threshold: int) -> Pixels:
    values = np.arange(256)
    return np.where(values < threshold, values, 255 - values).astype(np.uint8)
