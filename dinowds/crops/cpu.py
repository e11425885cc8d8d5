"""The fast renderer for processor cores: kernels.c, which makes the bytes that Pillow makes (see pil.py).

The C library is built by the installation where there is a compiler. Without it, views are rendered by Pillow: the
same bytes, ten times as slowly, and one warning in the log.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import threading
from collections.abc import Sequence
from functools import cache
from itertools import count, takewhile
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from dinowds.crops.recipe import VIEW, Views
from dinowds.crops.reduction import REDUCTIONS
from dinowds.crops.stain import optical_density

Pixels: TypeAlias = npt.NDArray[np.uint8]

VERSION = 1
"""Of the C library that this module calls; goes up there and here with every change of its arguments or its bytes."""

LAYOUT = [field[1] for field in (VIEW.fields or {}).values()] + [VIEW.itemsize]
"""Where the fields of a record lie, and its size, bytes; the C library's own list must be equal."""

INSTALL = "pip install -e ."
"""What builds the C library again."""


def render(image: Pixels, views: Views, outs: Sequence[Pixels], reduction: int = 1) -> None:
    """Write each of `views`, [V] records, of `image`, uint8 [H, W, 3], RGB, into its place of `outs`.

    Args:
        outs: V arrays, uint8 [3, size, size], C-contiguous (a slice of a batch's memory is).
        reduction: the image is 1 / this of the size that the records are for: their boxes are divided by it; 1, 2, 4
            or 8.

    Raises:
        ValueError: an array has another shape or type, or a record is not of a view of this image: its box is not
            inside, or a number of it is outside the range that `VIEW` gives.
    """
    _check(image, views, outs)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction}, expected one of {', '.join(map(str, REDUCTIONS))}")
    render_views = _fastest()
    if render_views is None:
        _render_by_pillow(image, views, outs, reduction)
        return
    if image.strides[1:] != (3, 1):
        image = np.ascontiguousarray(image)
    views = np.ascontiguousarray(views)
    addresses = (ctypes.c_void_p * len(outs))(*[out.ctypes.data for out in outs])
    while True:
        scratch = _memory.scratch
        result = render_views(
            image.ctypes.data, *image.shape[:2], image.strides[0], reduction, views.ctypes.data, len(views), addresses,
            _density_address(), scratch.ctypes.data, scratch.size,
        )  # fmt: skip
        if result <= 0:
            break
        _memory.scratch = np.empty(result, np.uint8)
    if result < 0:
        raise ValueError(
            f"view {-1 - result} cannot be rendered from an image of {image.shape[0]} × {image.shape[1]} px "
            f"at reduction {reduction}: {views[-1 - result]}"
        )


def missing() -> str | None:
    """Why the C library cannot be used, and what to do; None if it can."""
    return _load()[1]


def _check(image: Pixels, views: Views, outs: Sequence[Pixels]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    if views.dtype != VIEW or views.ndim != 1 or len(views) != len(outs):
        raise ValueError(
            f"views are {list(views.shape)} of {views.dtype}, expected [{len(outs)}] of VIEW, one for each out"
        )
    for out, size in zip(outs, views["size"].tolist(), strict=True):
        flags = out.flags
        if out.shape != (3, size, size) or out.dtype != np.uint8 or not (flags.c_contiguous and flags.writeable):
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)}, strides {list(out.strides)}, "
                f"expected writeable C-contiguous uint8 [3, {size}, {size}]"
            )


class _Memory(threading.local):
    """Scratch memory of a thread, used again and again: fresh memory comes from the kernel page by page."""

    def __init__(self) -> None:
        self.scratch = np.empty(0, np.uint8)


_memory = _Memory()


@cache
def _load() -> tuple[list[Any], str | None]:
    """The C library's functions that this processor can run, the fastest first; or none, and why."""
    spec = importlib.util.find_spec("dinowds.crops._kernels")
    if spec is None or spec.origin is None:
        return [], f"the C library of dinowds.crops is not built: install a C compiler (gcc), then run `{INSTALL}`"
    try:
        library = ctypes.CDLL(spec.origin)
        version = library.dinowds_version()
        layout = list((ctypes.c_int32 * len(LAYOUT)).in_dll(library, "dinowds_layout"))
    except (OSError, AttributeError, ValueError) as error:
        return [], f"the C library of dinowds.crops cannot be loaded ({error}): run `{INSTALL}` again"
    if (version, layout) != (VERSION, LAYOUT):
        return [], (
            f"the C library of dinowds.crops is of another version ({version}, records {layout[-1]} bytes; "
            f"expected {VERSION}, {VIEW.itemsize} bytes): run `{INSTALL}` again"
        )
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    render = ctypes.CFUNCTYPE(
        long, pointer, long, long, long, ctypes.c_int32, pointer, long, pointer, pointer, pointer, long
    )
    library.dinowds_renderer.restype = pointer
    addresses = takewhile(bool, map(library.dinowds_renderer, count()))
    return [render(address) for address in addresses], None


@cache
def _fastest() -> Any:
    renderers, reason = _load()
    if reason:
        logging.getLogger(__name__).warning("%s; until then crops are made by Pillow, at a tenth of the speed", reason)
        return None
    return renderers[0]


@cache
def _density() -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(optical_density())


@cache
def _density_address() -> int:
    return int(_density().ctypes.data)


def _render_by_pillow(image: Pixels, views: Views, outs: Sequence[Pixels], reduction: int) -> None:
    from dinowds.crops import pil

    if reduction == 1:
        pil.render(image, views, outs)
        return
    picture = Image.fromarray(image)
    for view, out in zip(views.copy(), outs, strict=True):
        top, left, height, width, size = (int(view[name]) for name in ("top", "left", "height", "width", "size"))
        bottom, right = top + height, left + width
        first = left // reduction, top // reduction
        inside = picture.crop((*first, -(-right // reduction), -(-bottom // reduction)))
        box = (
            left / reduction - first[0],
            top / reduction - first[1],
            right / reduction - first[0],
            bottom / reduction - first[1],
        )
        small = np.asarray(inside.resize((size, size), Image.Resampling.BICUBIC, box))
        view["top"] = view["left"] = 0
        view["height"] = view["width"] = size
        pil.render(small, view[None], [out])
