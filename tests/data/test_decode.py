"""Decoding: what Pillow would show, as 8-bit RGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dinowds.data.decode import decode_image
from dinowds.errors import SampleError

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 61)))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_decode__jpeg_as_pillow(subsampling: int, progressive: bool) -> None:
    payload = encode(Image.fromarray(SMOOTH), "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
    decoded = decode_image(payload)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (61, 90, 3)
    assert np.abs(decoded.astype(int) - expected).max() <= 1


MODES = {
    "PNG": ("L", "RGBA", "P", "LA", "1"),
    "TIFF": ("L", "RGBA", "P", "CMYK", "LA", "1"),
    "JPEG": ("L", "CMYK"),
    "WEBP": ("L", "RGBA", "P"),
    "BMP": ("L", "RGBA", "P", "1"),
    "GIF": ("L", "RGBA", "P", "LA", "1"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_decode__other_modes_and_formats_as_pillow(form: str, mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    payload = encode(image, form, **({"lossless": True} if form == "WEBP" else {}))
    expected = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
    decoded = decode_image(payload)
    assert decoded.shape == (61, 90, 3)
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_decode__sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    payload = encode(Image.fromarray(values), "PNG")
    assert np.array_equal(decode_image(payload), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_decode__orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = encode(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    assert decode_image(payload).shape == (61, 90, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_decode__cut_short_is_an_error(form: str, share: float) -> None:
    payload = encode(Image.fromarray(SMOOTH), form)
    with pytest.raises(SampleError):
        decode_image(payload[: int(len(payload) * share)])


@pytest.mark.parametrize(
    "payload", [b"", b"text", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + bytes(100) + b"\xff\xd9", bytes(999)]
)
def test_decode__no_image_is_an_error(payload: bytes) -> None:
    with pytest.raises(SampleError):
        decode_image(payload)


def test_decode__bomb_is_refused_before_it_is_unpacked() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(SampleError, match="50000"):
        decode_image(bomb)


def test_decode__huge_jpeg_is_refused_before_it_is_unpacked() -> None:
    payload = bytearray(encode(Image.fromarray(SMOOTH), "JPEG"))
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = b"\x7f\xff\x7f\xff"
    with pytest.raises(SampleError, match="32767×32767 px, expected at most"):
        decode_image(bytes(payload))
