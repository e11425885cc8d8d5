"""Images of strangers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.data.decode import decode_image, decode_reduced, image_size
from dinowds.errors import SampleError
from dinowds.shard.sources.check import Checked, Checks, Row, check_payload, check_ranges
from dinowds.shard.sources.images import looks_like_image
from tests.faults.fuzz.targets import Finding, scratch
from tests.support import lossless_jpeg

_MOST = 1 << 22
"""Pixels; larger images are not decoded here, as one would take the time of a thousand inputs."""
_FENCE = 4096


def headers(data: bytes) -> None:
    """The verdict in C and that of its reference, on a payload amid other bytes."""
    before, payload = data[:1], data[1:]
    place = before[0] if before else 0
    path = scratch(b"\xff" * place + payload + b"\xff\xd9IEND" * 300)
    looks_like_image(payload)
    places, sizes = np.array([place, 0], np.int64), np.array([len(payload), 2], np.int64)
    for digests in (False, True):
        checks = Checks(digests=digests)
        with open(path, "rb") as file:
            found = check_ranges(file.fileno(), places, sizes, checks, threads=1)
        if (row := _row(found, digests)) != (expected := check_payload(payload, checks)[:5]):
            raise Finding(f"in C {row}, expected {expected}")


def headers_seeds() -> Iterator[bytes]:
    for form in ("JPEG", "PNG"):
        for side in (1, 40):
            yield b"\5" + _image(form, side)
    yield b"\0" + _image("PNG", 30, "L")
    yield b"\7" + _image("JPEG", 30, "L")[:-2]


def decode(data: bytes) -> None:
    size = None
    with contextlib.suppress(SampleError):
        size = image_size(data)
    if size is not None and size[0] * size[1] > _MOST:
        return
    for reduction in (1, 2, 4, 8):
        fenced: list[NDArray[np.uint8]] = []
        try:
            image, applied = decode_reduced(data, reduction, lambda shape: _room(shape, fenced))  # noqa: B023
        except SampleError:
            image = None
        if any((memory[:_FENCE] != 7).any() or (memory[-_FENCE:] != 7).any() for memory in fenced):
            raise Finding("pixels were written outside of the image's memory")
        if image is None:
            continue
        if size is None:
            raise Finding(f"an image of {image.shape}, whose header could not be read")
        if image.dtype != np.uint8 or image.shape != (-(-size[0] // applied), -(-size[1] // applied), 3):
            raise Finding(f"an image of {image.shape} {image.dtype}, expected {size} by {applied}")
    with contextlib.suppress(SampleError):
        decode_image(data)


def decode_seeds() -> Iterator[bytes]:
    yield lossless_jpeg()
    for form in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000"):
        yield _image(form, 17)
    for mode in ("L", "CMYK"):
        yield _image("JPEG", 20, mode)
    for mode in ("RGBA", "P", "I;16", "1"):
        yield _image("PNG", 20, mode)
    content = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(content, "JPEG", progressive=True)
    yield content.getvalue()
    content = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(content, "TIFF", compression="tiff_lzw")
    yield content.getvalue()


def _row(found: Checked, digests: bool) -> tuple[Any, ...]:
    digest = found.digest[0].tobytes() if digests and found.digest is not None else bytes(16)
    return Row(int(found.reason[0]), int(found.ext[0]), int(found.width[0]), int(found.height[0]), digest)[:5]


def _room(shape: tuple[int, int, int], fenced: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Memory between two fences."""
    count = int(np.prod(shape))
    memory = np.full(count + 2 * _FENCE, 7, np.uint8)
    fenced.append(memory)
    return memory[_FENCE : _FENCE + count].reshape(shape)


def _image(form: str, side: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 3, 3), np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()
