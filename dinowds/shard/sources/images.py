"""What an image payload is, from its bytes: format, width and height, and whether it is whole. Nothing is decoded
for JPEG and PNG; the rarer formats are decoded once by Pillow.

Formats: ITU-T T.81 annex B (JPEG markers), W3C PNG (third edition) section 5.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

from dinowds.data.decode import MAX_PIXELS, VALUE_MODES
from dinowds.data.jpeg import JPEG_END, JPEG_START, jpeg_frame, jpeg_segments

IMAGE_EXTENSIONS = frozenset(
    {b"jpg", b"jpeg", b"jpe", b"jfif", b"png", b"tif", b"tiff", b"webp", b"bmp", b"dib", b"gif", b"jp2", b"j2k"}
)
"""Extensions (lower case) of members that are taken for images. What they are is then read from their bytes."""

NOT_AN_IMAGE = "not an image of a supported format"
CUT_SHORT = "image is cut short"
DAMAGED = "image is damaged"
TOO_LARGE = "image is too large"
OTHER_VALUES = "image of 32-bit, float or signed values"

_PNG_START = b"\x89PNG\r\n\x1a\n"
_RARER = {"TIFF": "tif", "WEBP": "webp", "BMP": "bmp", "DIB": "bmp", "GIF": "gif", "JPEG2000": "jp2"}
_RARER_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"RIFF")


class NotTaken(Exception):
    """A payload that is not taken; its one argument is the reason."""


@dataclass(frozen=True)
class ImageInfo:
    """`ext` by content, without a dot; sizes in pixels as decoded: an EXIF turn is not applied, that of a TIFF is."""

    ext: str
    width: int
    height: int


def looks_like_image(start: bytes) -> bool:
    """Whether the first 16 bytes of a payload are those of a supported format."""
    return start.startswith((JPEG_START, _PNG_START, *_RARER_STARTS))


def describe_image(payload: bytes) -> ImageInfo:
    """Format and size of a whole image.

    Raises:
        NotTaken: with `NOT_AN_IMAGE`, `CUT_SHORT`, `DAMAGED`, `TOO_LARGE` or `OTHER_VALUES`.
    """
    if payload.startswith(JPEG_START):
        info = ImageInfo("jpg", *_jpeg_size(payload))
    elif payload.startswith(_PNG_START):
        info = ImageInfo("png", *_png_size(payload))
    elif payload.startswith(_RARER_STARTS):
        info = _describe_with_pillow(payload)
    else:
        raise NotTaken(NOT_AN_IMAGE)
    if info.width * info.height > MAX_PIXELS:
        raise NotTaken(TOO_LARGE)
    return info


def _jpeg_size(payload: bytes) -> tuple[int, int]:
    """Width and height from the frame header; the scan after it must have an end-of-image marker."""
    try:
        end = max(end for _, _, end in jpeg_segments(payload))
    except IndexError:
        raise NotTaken(CUT_SHORT) from None
    except ValueError:
        raise NotTaken(DAMAGED) from None
    if payload.rfind(JPEG_END, end) < 0:
        raise NotTaken(CUT_SHORT)
    frame = jpeg_frame(payload)
    if frame is None or not frame.width or not frame.height:
        raise NotTaken(DAMAGED)
    return frame.width, frame.height


def _png_size(payload: bytes) -> tuple[int, int]:
    """Width and height from IHDR; the chunks must go on, without a gap, to IEND. Checksums are not computed."""
    if len(payload) < 33:
        raise NotTaken(CUT_SHORT)
    length, kind, width, height = struct.unpack_from(">I4sII", payload, 8)
    if kind != b"IHDR" or length != 13 or not 0 < width < 2**31 or not 0 < height < 2**31:
        raise NotTaken(DAMAGED)
    position = 33
    has_data = False
    while True:
        if position + 12 > len(payload):
            raise NotTaken(CUT_SHORT)
        length, kind = struct.unpack_from(">I4s", payload, position)
        if not kind.isalpha():
            raise NotTaken(DAMAGED)
        if kind == b"IEND":
            break
        has_data |= kind == b"IDAT"
        position += 12 + length
    if not has_data:
        raise NotTaken(DAMAGED)
    return width, height


def _describe_with_pillow(payload: bytes) -> ImageInfo:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(payload), formats=list(_RARER)) as image:
                name, (width, height) = str(image.format), image.size
                if image.mode in VALUE_MODES:
                    raise NotTaken(OTHER_VALUES)
                image.load()
    except NotTaken:
        raise
    except UnidentifiedImageError:
        raise NotTaken(NOT_AN_IMAGE) from None
    except (Image.DecompressionBombError, MemoryError):
        raise NotTaken(TOO_LARGE) from None
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to.
        raise NotTaken(CUT_SHORT if "truncated" in str(error) else DAMAGED) from None
    return ImageInfo(_RARER[name], width, height)
