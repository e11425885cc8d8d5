"""Image bytes → pixels, as Pillow would show them."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.errors import SampleError

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_MAX_PIXELS = 1 << 28  # 16,384 × 16,384: far above any patch, far below what a decompression bomb asks for


def decode_image(payload: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, TIFF, WebP, … to uint8 RGB [H, W, 3].

    Colour and grey JPEG go through OpenCV (the same libjpeg-turbo arithmetic as Pillow, less overhead), all else
    through Pillow. An EXIF orientation is not applied: patches are cut in the orientation that they are stored in.

    Raises:
        SampleError: not an image, damaged, or cut short. The message names no file; the caller knows it.
    """
    if payload[:3] == _JPEG_START and _jpeg_components(payload) in (1, 3):
        if payload.rfind(_JPEG_END) < len(payload) // 2:
            raise SampleError("JPEG without an end marker: cut short")
        image = cv2.imdecode(
            np.frombuffer(payload, dtype=np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if image is None:
            raise SampleError("JPEG that cannot be decoded")
        return np.asarray(image, dtype=np.uint8)
    return _decode_with_pillow(payload)


def _decode_with_pillow(payload: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload)) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise SampleError(f"image of {image.width}×{image.height} px, expected at most 16,384 on a side")
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


def _jpeg_components(payload: bytes) -> int:
    """Number of colour components in a JPEG's frame header; 0 where none is found."""
    place = 2
    while place + 9 < len(payload) and payload[place] == 0xFF:
        marker = payload[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return payload[place + 9]
        else:
            place += 2 + int.from_bytes(payload[place + 2 : place + 4], "big")
    return 0
