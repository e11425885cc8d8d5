"""Decoding: what Pillow would show, as 8-bit RGB, whole or at a part of its size."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import tifffile
from PIL import Image

from dinowds.data.decode import decode_image, decode_reduced, image_size
from dinowds.errors import SampleError
from tests.support import lossless_jpeg

Pixels: TypeAlias = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 61)))
PICTURE = Image.fromarray(SMOOTH)
TRANSPARENT = Image.merge("RGBA", [*PICTURE.split(), PICTURE.getchannel("G")])
WIDE = SMOOTH.astype(np.uint16) << 8 | SMOOTH[::-1]
"""16 bits a channel whose low byte is something else."""
WIDE_GREY = np.ascontiguousarray(WIDE[:, :, 1])
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def encode_tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


def encode_png_16(pixels: npt.NDArray[np.uint16]) -> bytes:
    """RGB or RGBA, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that it is YCCK."""
    payload = bytearray(encode(PICTURE.convert("CMYK"), "JPEG"))
    payload[payload.index(b"Adobe") + 11] = 2
    return bytes(payload)


def shown(payload: bytes) -> Pixels:
    with Image.open(io.BytesIO(payload)) as image:
        return np.array(image.convert("RGB"))


MODES = {
    "PNG": ("L", "RGB", "RGBA", "P", "LA", "1"),
    "TIFF": ("L", "RGB", "RGBA", "P", "CMYK", "LA", "1", "YCbCr", "LAB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("L", "RGB", "P"),
    "BMP": ("L", "RGB", "RGBA", "P", "1"),
    "GIF": ("L", "RGB", "RGBA", "P", "LA", "1"),
    "JPEG2000": ("L", "RGB", "RGBA", "LA"),
}
AS_PILLOW = {f"{form}-{mode}": encode(PICTURE.convert(mode), form) for form, modes in MODES.items() for mode in modes}
AS_PILLOW |= {
    "JPEG-YCCK": ycck(),
    "JPEG-progressive": encode(PICTURE, "JPEG", progressive=True),
    "JPEG-444": encode(PICTURE, "JPEG", subsampling=0),
    "JPEG-turned": encode(PICTURE, "JPEG", exif=TURNED),
    "PNG-transparent": encode(TRANSPARENT, "PNG"),
    "PNG-P-transparent": encode(PICTURE.convert("P"), "PNG", transparency=3),
    "PNG-RGB-16": encode_png_16(WIDE),
    "PNG-RGBA-16": encode_png_16(np.dstack([WIDE, WIDE_GREY])),
    "PNG-turned": encode(PICTURE, "PNG", exif=TURNED),
    "PNG-animated": encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    "TIFF-LZW": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "TIFF-deflate": encode(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF-packbits": encode(PICTURE, "TIFF", compression="packbits"),
    "TIFF-JPEG": encode(PICTURE, "TIFF", compression="jpeg"),
    "TIFF-tiles": encode_tiff(SMOOTH, photometric="rgb", tile=(16, 32)),
    "TIFF-planes": encode_tiff(SMOOTH.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
    "TIFF-big": encode_tiff(SMOOTH, photometric="rgb", bigtiff=True),
    "TIFF-RGB-16": encode_tiff(WIDE, photometric="rgb"),
    "TIFF-RGB-16-big-endian": encode_tiff(WIDE, photometric="rgb", byteorder=">"),
    "TIFF-turned": encode(PICTURE, "TIFF", exif=TURNED),
    "WEBP-lossless": encode(PICTURE, "WEBP", lossless=True),
    "WEBP-transparent": encode(TRANSPARENT, "WEBP"),
    "WEBP-turned": encode(PICTURE, "WEBP", exif=TURNED),
    "WEBP-animated": encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
    "GIF-animated": encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
    "JPEG2000-lossy": encode(PICTURE, "JPEG2000", irreversible=True, quality_layers=[20]),
}
GREY_16 = {
    "PNG": encode(Image.fromarray(WIDE_GREY), "PNG"),
    "TIFF": encode(Image.fromarray(WIDE_GREY), "TIFF"),
    "TIFF-LZW": encode(Image.fromarray(WIDE_GREY), "TIFF", compression="tiff_lzw"),
    "TIFF-big-endian": encode_tiff(WIDE_GREY, byteorder=">"),
    "TIFF-tiles": encode_tiff(WIDE_GREY, tile=(16, 32)),
    "JPEG2000": encode(Image.fromarray(WIDE_GREY), "JPEG2000"),
}
NOT_SHOWN = {
    "float32": encode_tiff(SMOOTH[:, :, 0].astype(np.float32)),
    "float64": encode_tiff(SMOOTH[:, :, 0].astype(np.float64)),
    "int16": encode_tiff(WIDE_GREY.astype(np.int16)),
    "int32": encode_tiff(WIDE_GREY.astype(np.int32)),
    "uint32": encode_tiff(WIDE_GREY.astype(np.uint32)),
}
ALL = {**AS_PILLOW, **{f"grey-16-{name}": payload for name, payload in GREY_16.items()}}


@pytest.mark.parametrize("name", AS_PILLOW)
def test_decode__shows_what_pillow_shows(name: str) -> None:
    payload = AS_PILLOW[name]
    decoded = decode_image(payload)
    assert decoded.dtype == np.uint8
    assert decoded.shape == ((90, 61, 3) if name == "TIFF-turned" else (61, 90, 3))
    assert decoded.flags.writeable
    assert np.abs(decoded.astype(int) - shown(payload)).max() <= (1 if name.startswith("JPEG-") else 0)


@pytest.mark.parametrize("name", ["PNG-RGB-16", "PNG-RGBA-16", "TIFF-RGB-16", "TIFF-RGB-16-big-endian"])
def test_decode__sixteen_bit_colour_keeps_its_high_byte(name: str) -> None:
    assert np.array_equal(decode_image(AS_PILLOW[name]), SMOOTH)


@pytest.mark.parametrize("name", GREY_16)
def test_decode__sixteen_bit_grey_keeps_its_high_byte(name: str) -> None:
    assert np.array_equal(decode_image(GREY_16[name]), np.repeat(SMOOTH[:, :, 1:2], 3, axis=2))


@pytest.mark.parametrize("name", NOT_SHOWN)
@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decode__values_without_a_range_are_an_error(name: str, read: Callable[[bytes], object]) -> None:
    with pytest.raises(SampleError, match="expected"):
        read(NOT_SHOWN[name])


@pytest.mark.parametrize("form", ["PPM", "TGA", "EPS"])
@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decode__other_formats_are_an_error(form: str, read: Callable[[bytes], object]) -> None:
    with pytest.raises(SampleError, match="expected one of JPEG, PNG"):
        read(encode(PICTURE, form))


@pytest.mark.parametrize("name", ALL)
def test_image_size__is_that_of_the_decoded_image(name: str) -> None:
    assert image_size(ALL[name]) == decode_image(ALL[name]).shape[:2]


@pytest.mark.parametrize("height", [1, 7, 8, 9, 61])
@pytest.mark.parametrize("width", [1, 16, 17, 90])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"exif": TURNED}])
def test_reduced__jpeg_has_the_size_and_the_pixels_that_pillow_drafts(
    height: int, width: int, options: dict[str, Any]
) -> None:
    payload = encode(PICTURE.crop((0, 0, width, height)), "JPEG", quality=90, **options)
    assert image_size(payload) == (height, width)
    for reduction in (1, 2, 4, 8):
        decoded, applied = decode_reduced(payload, reduction)
        size = -(-width // reduction), -(-height // reduction)
        assert applied == reduction
        assert decoded.shape == (size[1], size[0], 3)
        if min(width, height) >= reduction:
            with Image.open(io.BytesIO(payload)) as image:
                image.draft("RGB", (width // reduction, height // reduction))
                assert image.size == size
                assert np.abs(decoded.astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced__photograph_is_the_mean_of_its_pixels(mode: str, reduction: int) -> None:
    photo = Image.fromarray(skimage.data.astronaut()).convert(mode)
    payload = encode(photo, "JPEG", quality=90)
    decoded, applied = decode_reduced(payload, reduction)
    full = decode_image(payload).astype(float)
    means = full.reshape(512 // reduction, reduction, 512 // reduction, reduction, 3).mean(axis=(1, 3))
    assert applied == reduction
    assert np.abs(decoded - means).mean() < (3 if reduction == 2 else 2)
    assert np.abs(decoded - means[:, :, ::-1]).mean() > 10 or mode == "L"


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("JPEG-") or name.endswith(("K", "CMYK"))])
def test_reduced__all_but_such_jpeg_is_decoded_whole(name: str) -> None:
    decoded, applied = decode_reduced(ALL[name], 4)
    assert applied == 1
    assert np.array_equal(decoded, decode_image(ALL[name]))


def test_reduced__lossless_jpeg_is_decoded_whole() -> None:
    decoded, applied = decode_reduced(lossless_jpeg(), 2)
    assert applied == 1
    assert decoded.shape == (17, 20, 3)
    assert (decoded == 128).all()


def test_decode__bytes_too_many_in_a_jpeg_do_no_harm() -> None:
    payload = encode(PICTURE, "JPEG")
    end = payload.rindex(b"\xff\xd9")
    assert np.array_equal(decode_image(payload[:end] + b"\0\0\0" + payload[end:]), decode_image(payload))


def test_decode__jpeg_that_lacks_a_piece_of_its_scan_is_an_error() -> None:
    """It has an end marker, so nothing but the decoder can tell."""
    payload = encode(PICTURE, "JPEG")
    scan = payload.index(b"\xff\xda")
    rest = scan + (len(payload) - scan) // 2
    with pytest.raises(SampleError, match="Corrupt JPEG data"):
        decode_image(payload[:rest] + payload[-2:])


@pytest.mark.parametrize("name", ["JPEG", "JPEG-progressive"])
def test_reduced__of_changed_bytes_writes_nothing_beyond_its_room(name: str) -> None:
    random = np.random.default_rng(0)
    memory = np.empty(1 << 20, np.uint8)
    sizes = []

    def room(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        sizes.append(math.prod(shape))
        if sizes[-1] > len(memory) // 2:
            return np.empty(shape, np.uint8)
        memory[sizes[-1] :] = 0xAB
        return memory[: sizes[-1]].reshape(shape)

    payload = encode(PICTURE, "JPEG", progressive="progressive" in name)
    frame = payload.index(b"\xff\xc2" if "progressive" in name else b"\xff\xc0")
    for _ in range(300):
        changed = bytearray(payload)
        changed[random.integers(len(changed) if random.random() < 0.5 else frame + 12)] = random.integers(256)
        if random.random() < 0.3:
            changed[frame + 1] = random.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9])
        with contextlib.suppress(SampleError):
            decode_reduced(bytes(changed), int(random.choice([1, 2, 4, 8])), room)
        if sizes and sizes[-1] <= len(memory) // 2:
            assert (memory[sizes[-1] :] == 0xAB).all()
    assert len(sizes) > 100


@pytest.mark.parametrize("name", [name for name in ALL if "animated" not in name])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_decode__cut_short_is_an_error(name: str, share: float) -> None:
    start = ALL[name][: int(len(ALL[name]) * share)]
    with pytest.raises(SampleError):
        decode_image(start)


@pytest.mark.parametrize("missing", [1, 2])
def test_decode__jpeg_without_its_end_marker_is_an_error(missing: int) -> None:
    with pytest.raises(SampleError, match="cut short"):
        decode_image(encode(PICTURE, "JPEG")[:-missing])


def test_decode__jpeg_cut_short_behind_its_thumbnail_is_an_error() -> None:
    thumbnail = b"Exif\0\0" + encode(Image.fromarray(skimage.data.astronaut()[:160, :160]), "JPEG")
    photo = encode(Image.fromarray(skimage.data.astronaut()[:256, :256]), "JPEG")
    payload = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + photo[2:]
    assert decode_image(payload).shape == (256, 256, 3)
    with pytest.raises(SampleError):
        decode_image(payload[: len(thumbnail) + 2500])


@pytest.mark.parametrize("name", ALL)
def test_decode__damaged_is_an_error_or_an_image_of_the_size_that_was_told(name: str) -> None:
    random = np.random.default_rng(len(name))
    for attempt in range(12):
        payload = bytearray(ALL[name])
        start = int(random.integers(min(400, len(payload)) if attempt % 2 else len(payload)))
        length = len(payload[start : start + int(random.choice([1, 4, 60]))])
        payload[start : start + length] = random.integers(0, 256, length, np.uint8).tobytes()
        try:
            decoded, applied = decode_reduced(bytes(payload), 2)
        except SampleError:
            continue
        height, width = image_size(bytes(payload))
        assert decoded.shape == (-(-height // applied), -(-width // applied), 3)


@pytest.mark.parametrize(
    "payload", [b"", b"text", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + bytes(100) + b"\xff\xd9", bytes(999)]
)
@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decode__no_image_is_an_error(payload: bytes, read: Callable[[bytes], object]) -> None:
    with pytest.raises(SampleError):
        read(payload)


@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decode__bomb_is_refused_before_it_is_unpacked(read: Callable[[bytes], object]) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(SampleError, match="50000"):
        read(bomb)


@pytest.mark.parametrize(("size", "found"), [(b"\x7f\xff\x7f\xff", "32767×32767"), (b"\0\0\0\x10", "16×0")])
@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decode__jpeg_of_no_sensible_size_is_refused_before_it_is_unpacked(
    size: bytes, found: str, read: Callable[[bytes], object]
) -> None:
    payload = bytearray(encode(PICTURE, "JPEG"))
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = size
    with pytest.raises(SampleError, match=f"{found} px, expected at most"):
        read(bytes(payload))


@pytest.mark.parametrize(("is_short", "raised"), [(True, MemoryError), (False, SampleError)])
def test_decode_image__without_memory_blames_the_image_only_where_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, is_short: bool, raised: type[Exception]
) -> None:
    payload = encode(PICTURE, "PNG")
    monkeypatch.setattr(Image.Image, "convert", mock.Mock(side_effect=MemoryError))
    if is_short:
        monkeypatch.setattr(np, "empty", mock.Mock(side_effect=MemoryError))
    with pytest.raises(raised):
        decode_image(payload)
