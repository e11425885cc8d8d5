"""Image headers against Pillow, and payloads that are cut or damaged."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from dinowds.data.decode import MAX_PIXELS
from dinowds.data.jpeg import jpeg_frame
from dinowds.shard.sources.images import (
    CUT_SHORT,
    DAMAGED,
    NOT_AN_IMAGE,
    OTHER_VALUES,
    TOO_LARGE,
    NotTaken,
    describe_image,
    looks_like_image,
)

MakeImage = Callable[..., bytes]
SAVES: dict[str, tuple[str, dict[str, object]]] = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "optimized": ("JPEG", {"optimize": True, "quality": 30, "subsampling": 2}),
    "exif": ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xd9" * 40, "comment": b"\xff\xd9\xff\xc0"}),
    "restarts": ("JPEG", {"restart_marker_blocks": 1}),
    "png": ("PNG", {}),
    "tif": ("TIFF", {}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "jp2": ("JPEG2000", {}),
}
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "JPEG2000": "jp2"}


def save(mode: str, width: int, height: int, save_as: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    kind, options = SAVES[save_as]
    Image.fromarray(pixels).convert(mode).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("save_as", SAVES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_describe__equals_pillow(save_as: str, mode: str) -> None:
    for width, height in ((1, 1), (1, 300), (257, 3), (64, 48)):
        payload = save(mode, width, height, save_as)
        with Image.open(io.BytesIO(payload)) as image:
            assert image.size == (width, height)
        info = describe_image(payload)
        assert (info.ext, info.width, info.height) == (EXTENSIONS[SAVES[save_as][0]], width, height)
        assert describe_image(payload + b"trailing bytes") == info
        assert looks_like_image(payload[:16])


def test_describe__png_modes_of_16_bits_and_with_alpha() -> None:
    for mode in ("RGBA", "LA", "P", "1", "I;16"):
        content = io.BytesIO()
        Image.new(mode, (5, 7)).save(content, "PNG")
        assert describe_image(content.getvalue()).width == 5


@pytest.mark.parametrize("save_as", ["baseline", "progressive", "exif", "png"])
def test_describe__each_cut_is_found(save_as: str) -> None:
    payload = save("RGB", 24, 16, save_as)
    for length in range(len(payload)):
        with pytest.raises(NotTaken) as caught:
            describe_image(payload[:length])
        assert str(caught.value) == (CUT_SHORT if length >= (3 if save_as != "png" else 8) else NOT_AN_IMAGE)


@pytest.mark.parametrize("save_as", ["tif", "webp", "gif", "jp2", "bmp"])
def test_describe__cuts_of_rarer_formats_are_found(save_as: str) -> None:
    payload = save("RGB", 24, 16, save_as)
    for length in range(0, len(payload) * 3 // 4, 7):
        with pytest.raises(NotTaken):
            describe_image(payload[:length])


@pytest.mark.parametrize("save_as", SAVES)
def test_describe__changed_bytes_never_raise_anything_else(save_as: str) -> None:
    payload = save("RGB", 12, 9, save_as)
    random = np.random.default_rng(1)
    for _ in range(200):
        changed = bytearray(payload)
        for position in random.integers(0, min(len(payload), 700), 3):
            changed[position] = random.integers(256)
        with contextlib.suppress(NotTaken):
            describe_image(bytes(changed))


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\xd8", b"text" * 9, b"PK\3\4" + bytes(60), b"RIFF\0\0\0\0WAVEfmt " + bytes(40), bytes(600)]
)
def test_describe__other_files_are_no_images(payload: bytes) -> None:
    with pytest.raises(NotTaken, match=NOT_AN_IMAGE):
        describe_image(payload)


def test_describe__images_without_a_size_are_damaged(make_image: MakeImage) -> None:
    jpeg, png = bytearray(make_image(0)), bytearray(make_image(0, kind="PNG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 7] = b"\0\0"
    png[16:20] = bytes(4)
    without_frame = make_image(0).replace(b"\xff\xc0", b"\xff\xe0")
    for payload in (bytes(jpeg), bytes(png), without_frame, b"\xff\xd8\xff\xd9"):
        with pytest.raises(NotTaken, match=DAMAGED):
            describe_image(payload)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_describe__values_that_training_does_not_read(kind: type) -> None:
    content = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), kind)).save(content, "TIFF")
    with pytest.raises(NotTaken, match=OTHER_VALUES):
        describe_image(content.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_describe__more_pixels_than_can_be_decoded_are_too_large(make_image: MakeImage, kind: str) -> None:
    payload = bytearray(make_image(0, kind=kind))
    side = math.isqrt(MAX_PIXELS)
    size = struct.Struct(">HH" if kind == "JPEG" else ">II")
    start = payload.index(b"\xff\xc0") + 5 if kind == "JPEG" else 16
    size.pack_into(payload, start, side, side)
    assert describe_image(bytes(payload)).width == side
    size.pack_into(payload, start, side + 1, side + 1)
    with pytest.raises(NotTaken, match=TOO_LARGE):
        describe_image(bytes(payload))


def test_describe__huge_claims_of_rarer_formats_are_refused_without_a_warning() -> None:
    content = bytearray(save("RGB", 4, 4, "bmp"))
    content[18:26] = (60000).to_bytes(4, "little") * 2
    with pytest.raises(NotTaken, match="too large"):
        describe_image(bytes(content))
    content[18:26] = (10000).to_bytes(4, "little") * 2
    with pytest.raises(NotTaken, match=f"{CUT_SHORT}|{DAMAGED}"):
        describe_image(bytes(content))


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("save_as", ["baseline", "progressive", "exif", "restarts"])
def test_jpeg_frame__equals_pillow_and_is_none_where_it_is_cut_off(save_as: str, mode: str, components: int) -> None:
    payload = save(mode, 300, 7, save_as)
    assert jpeg_frame(payload) == (300, 7, components, True)
    scan = payload.index(b"\xff\xda")
    frame = max(payload.rfind(b"\xff\xc0", 0, scan), payload.rfind(b"\xff\xc2", 0, scan))
    for length in range(frame + 9):
        assert jpeg_frame(payload[:length]) is None
    for other in (b"", b"\xff\xd8\xff\xd9", b"\xff\xd8text", b"\xff\xd8\xff\xe0\0\1", payload[:2] + payload[scan:]):
        assert jpeg_frame(other) is None
