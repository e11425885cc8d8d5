"""Image bytes → pixels, as Pillow would show them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dinowds.data.jpeg import JPEG_END, JPEG_START, JpegFrame, jpeg_frame
from dinowds.errors import SampleError

VALUE_MODES = ("I", "F")
"""Pillow's modes of 32-bit, float and signed values, which it would clip to 0 … 255: black or white."""

MAX_PIXELS = 1 << 27
"""Largest image that is decoded: 11,585 × 11,585 px, far above any patch and far below a decompression bomb."""

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
_DAMAGE = re.compile("Corrupt JPEG data: (?!.*extraneous bytes)|Premature end")
"""Of libjpeg's warnings, those after which pixels are wrong."""

Room: TypeAlias = Callable[[tuple[int, int, int]], NDArray[np.uint8]]
"""Shape [h, w, 3] → C-contiguous memory of that shape, to decode into."""


def image_size(payload: bytes) -> tuple[int, int]:
    """Height and width, px, of what `decode_image` gives, from the header alone: the pixels may still be damaged.

    Raises:
        SampleError: as `decode_image`, as far as the header tells.
    """
    frame = _turbo_frame(payload)
    if frame is not None:
        return frame.height, frame.width
    with _opened(payload) as image:
        return image.height, image.width


def decode_image(payload: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, TIFF, WebP, BMP, GIF or JPEG 2000 to uint8 RGB [H, W, 3].

    Colour and grey JPEG go through simplejpeg (libjpeg-turbo, as in Pillow, with less overhead), all else through
    Pillow: transparency is dropped, the first frame taken, and of 16 bits the high 8. An EXIF orientation is
    not applied: patches are cut in the orientation that they are stored in. (Pillow does turn a TIFF by its own tag.)

    Raises:
        SampleError: not an image, damaged, cut short, too large, or of 32-bit or signed values. The message names no
            file; the caller knows it.
        MemoryError: this process gets too little memory, which says nothing of the image.
    """
    return decode_reduced(payload, 1)[0]


def decode_reduced(payload: bytes, reduction: int, room: Room | None = None) -> tuple[NDArray[np.uint8], int]:
    """Decode as `decode_image` does, but a colour or grey JPEG at 1/reduction of its size, which takes less time:
    libjpeg leaves out the high frequencies of each block (scaled inverse DCT) and never makes the full image.

    Args:
        reduction: 1, 2, 4 or 8.
        room: gives the memory that a JPEG is decoded into; by default it is new.

    Returns:
        uint8 RGB [ceil(H/r), ceil(W/r), 3], and the reduction r that was applied: 1 for what cannot be reduced.

    Raises:
        SampleError: as `decode_image`.
    """
    frame = _turbo_frame(payload)
    if frame is None:
        return _decode_with_pillow(payload), 1
    if payload.rfind(JPEG_END) < len(payload) // 2:
        raise SampleError("JPEG without an end marker: cut short")
    height, width = -(-frame.height // reduction), -(-frame.width // reduction)
    memory = np.empty((height, width, 3), np.uint8) if room is None else room((height, width, 3))
    decode = partial(simplejpeg.decode_jpeg, payload, "RGB", min_height=height, min_width=width, buffer=memory)
    try:
        try:
            image = decode()
        except ValueError as error:
            if _DAMAGE.search(str(error)):
                raise
            image = decode(strict=False)
    except ValueError as error:
        raise SampleError(f"JPEG that cannot be decoded ({error})") from None
    if image.shape != memory.shape:
        raise _other_size(image, width, height)
    return memory, reduction


def _turbo_frame(payload: bytes) -> JpegFrame | None:
    """The frame header of a JPEG that libjpeg-turbo decodes as Pillow would; None for all else."""
    frame = jpeg_frame(payload) if payload.startswith(JPEG_START) else None
    # Of a lossless JPEG, TurboJPEG writes all pixels even where it was asked to reduce it and given less memory.
    if frame is None or frame.components not in (1, 3) or not frame.is_common:
        return None
    _check_size(frame.width, frame.height)
    return frame


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise SampleError(f"image of {width}×{height} px, expected at most {MAX_PIXELS:,} px and at least one")


def _other_size(pixels: NDArray[Any], width: int, height: int) -> SampleError:
    found = f"{pixels.shape[1]}×{pixels.shape[0]}"
    return SampleError(f"image that decodes to {found} px, expected {width}×{height} px as its header says")


@contextmanager
def _opened(payload: bytes) -> Iterator[Image.Image]:
    """Pillow's image, of which only the header is read yet. What Pillow raises while it is open is a SampleError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload), formats=_FORMATS) as image:
                _check_size(image.width, image.height)
                if image.mode in VALUE_MODES:
                    raise SampleError("image of 32-bit, float or signed values, expected 8 bits or unsigned 16 bits")
                yield image
    except SampleError:
        raise
    except UnidentifiedImageError:
        raise SampleError(f"not an image that can be read, expected one of {', '.join(_FORMATS)}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on damaged data
        if isinstance(error, MemoryError) and _is_memory_short():
            raise
        raise SampleError(f"image that cannot be decoded ({type(error).__name__}: {error})") from None


def _is_memory_short() -> bool:
    """Whether even an image that may be decoded asks for too much; Pillow says so of damaged headers, too."""
    try:
        np.empty(4 * MAX_PIXELS, np.uint8)  # asked for, not written to
    except MemoryError:
        return True
    return False


def _decode_with_pillow(payload: bytes) -> NDArray[np.uint8]:
    with _opened(payload) as image:
        width, height = image.size
        pixels = _grey16_to_rgb(image) if image.mode.startswith("I;16") else np.array(image.convert("RGB"))
    if pixels.shape != (height, width, 3):  # what `image_size` told must hold
        raise _other_size(pixels, width, height)
    return pixels


def _grey16_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey → its high byte in three channels (Pillow's own conversion would clip at 255)."""
    return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
