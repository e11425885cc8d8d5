"""Image bytes → pixels, as Pillow would show them."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.data.jpeg import JPEG_END, JPEG_START, jpeg_frame
from dinowds.errors import SampleError

MAX_PIXELS = 1 << 27
"""Largest image that is decoded: 11,585 × 11,585 px, far above any patch and far below a decompression bomb."""


def decode_image(payload: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, TIFF, WebP, … to uint8 RGB [H, W, 3].

    Colour and grey JPEG go through OpenCV (the same libjpeg-turbo arithmetic as Pillow, less overhead), all else
    through Pillow. An EXIF orientation is not applied: patches are cut in the orientation that they are stored in.

    Raises:
        SampleError: not an image, damaged, or cut short. The message names no file; the caller knows it.
    """
    frame = jpeg_frame(payload) if payload.startswith(JPEG_START) else None
    if frame is None or frame.components not in (1, 3):
        return _decode_with_pillow(payload)
    _check_size(frame.width, frame.height)
    if payload.rfind(JPEG_END) < len(payload) // 2:
        raise SampleError("JPEG without an end marker: cut short")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(payload, dtype=np.uint8), flags)
    except cv2.error as error:
        raise SampleError(f"JPEG that cannot be decoded ({error.err})") from None
    if image is None:
        raise SampleError("JPEG that cannot be decoded")
    return np.asarray(image, dtype=np.uint8)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise SampleError(f"image of {width}×{height} px, expected at most {MAX_PIXELS:,} px")


def _decode_with_pillow(payload: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload)) as image:
                _check_size(image.width, image.height)
                if image.mode.startswith("I;16"):
                    return _grey16_to_rgb(np.asarray(image))
                return np.asarray(image.convert("RGB"))
    except SampleError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged data
        raise SampleError(f"image that cannot be decoded ({type(error).__name__}: {error})") from None


def _grey16_to_rgb(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """16-bit grey → its high byte in three channels (Pillow's own conversion would clip at 255)."""
    return np.repeat((pixels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
