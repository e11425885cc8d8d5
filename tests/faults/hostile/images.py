"""Images that claim what they are not."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.faults.form import amount
from tests.support import jpeg_patch

SIDE = 50_000
JPEG, OTHER = jpeg_patch(1, 32), jpeg_patch(2, 32)


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    content = io.BytesIO()
    with Image.open(io.BytesIO(JPEG)) as image:
        image.convert(mode).save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_frame(jpeg: bytes, height: int, width: int) -> bytes:
    """The same with another size in its frame header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def many_scans(scans: int) -> bytes:
    """A progressive JPEG of 1,024 × 1,024 px that is refined again and again."""
    content = io.BytesIO()
    Image.fromarray(np.zeros((1024, 1024, 3), np.uint8)).save(content, "JPEG", progressive=True)
    jpeg = content.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + b"\xff\xd9"


def _zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../../outside/x.jpg", JPEG)
    return content.getvalue()


def _tiff(width: int, height: int, strips: int = 1) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [
        (273, 4, strips, 8),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, strips, min(width * height, 1 << 31)),
    ]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(64)


def _animated(kind: str, frames: int) -> bytes:
    pictures = [Image.new("P", (64, 64), number % 250) for number in range(frames)]
    content = io.BytesIO()
    pictures[0].convert("RGB").save(
        content, kind, save_all=True, append_images=[p.convert("RGB") for p in pictures[1:]]
    )
    return content.getvalue()


def bombs() -> dict[str, bytes]:
    """Name → an image that claims to be far larger than any that is taken."""
    zeros = zlib.compressobj(9)
    row = bytes(SIDE * 3 + 1)
    lines = b"".join(zeros.compress(row) for _ in range(60)) + zeros.flush()
    bmp = bytearray(saved("BMP"))
    bmp[18:26] = struct.pack("<ii", SIDE, SIDE)
    gif = bytearray(saved("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    webp = bytearray(saved("WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 0x0FFFFFFF)
    return {
        "bomb.png": png(SIDE, SIDE, lines),
        "bomb of one bit.png": png(2**31 - 1, 2**31 - 1, lines, depth=1, colour=0),
        "bomb.jpg": with_frame(JPEG, 65535, 65535),
        "bomb.bmp": bytes(bmp),
        "bomb.gif": bytes(gif),
        "bomb.webp": bytes(webp),
        "bomb.tif": _tiff(SIDE, SIDE),
        "bomb of strips.tif": _tiff(2**31 - 1, 2**31 - 1, strips=2**28),
        "bomb.jp2": saved("JPEG2000").replace(struct.pack(">II", 32, 32), struct.pack(">II", SIDE, SIDE)),
    }


def odd() -> dict[str, bytes]:
    """Name → an image that some reader stumbles over; it is taken as it is, or not."""
    giant = bytes(64 << 20)
    text = b"Comment\0\0" + zlib.compress(giant, 9)
    pixels = zlib.compress(bytes((32 * 3 + 1) * 32))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 300
    return {
        "cut.jpg": JPEG[: len(JPEG) // 2],
        "cut in its header.jpg": JPEG[:30],
        "jpeg and zip.jpg": JPEG + _zipped(),
        "zip in a comment.jpg": JPEG[:2] + segment(0xFE, _zipped()[:60000]) + JPEG[2:],
        "gif and html.gif": saved("GIF") + b"<script>alert(1)</script>",
        "gif that begins as html.gif": b"GIF89a/*<script>alert(1)</script>*/=1;",
        "html.jpg": b"<html><script>alert(1)</script></html>",
        "script.jpg": b"#!/bin/sh\ntouch evil\n",
        "png.jpg": saved("PNG"),
        "jpeg.png": JPEG,
        "bmp.tif": saved("BMP"),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "eps.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch evil) run\n",
        "cmyk.jpg": saved("JPEG", "CMYK"),
        "grey and alpha.png": saved("PNG", "LA"),
        "16 bit.png": png(32, 32, zlib.compress(bytes((32 * 6 + 1) * 32)), depth=16),
        "32 bit.tif": saved("TIFF", "F"),
        "animated.gif": _animated("GIF", 100),
        "animated.webp": _animated("WEBP", 50),
        "icc.jpg": JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\x01\xff" + b"\xff" * 500) + JPEG[2:],
        "exif.jpg": JPEG[:2] + segment(0xE1, exif) + JPEG[2:],
        "exif that turns.jpg": JPEG[:2]
        + segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
        + JPEG[2:],
        "many segments.jpg": JPEG[:2] + segment(0xFE, b"x") * 20_000 + JPEG[2:],
        "tEXt.png": png(32, 32, pixels, chunk(b"tEXt", b"Comment\0" + giant[: 8 << 20])),
        "zTXt.png": png(32, 32, pixels, chunk(b"zTXt", text)),
        "many zTXt.png": png(32, 32, pixels, *[chunk(b"zTXt", text)] * 20),
        "iTXt.png": png(32, 32, pixels, chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(giant, 9))),
        "iCCP.png": png(32, 32, pixels, chunk(b"iCCP", b"p\0\0" + zlib.compress(giant, 9))),
        "more pixels than it says.png": png(32, 32, zlib.compress(giant, 9)),
        "fewer pixels than it says.png": png(4000, 4000, zlib.compress(bytes(100), 9)),
        "no pixels.png": png(0, 0, pixels),
        "chunk of 4 GB.png": png(32, 32, pixels)[:33] + struct.pack(">I", 0xFFFFFFFF) + b"tEXt" + bytes(100),
        "one pixel.jpg": with_frame(JPEG, 1, 1),
        "other size.jpg": with_frame(JPEG, 3000, 3000),
        "many scans.jpg": many_scans(amount(200, 2000)),
        "jumping back.tif": _tiff(32, 32, strips=70_000),
        "noise.jpg": JPEG[:2] + np.random.default_rng(0).bytes(20_000) + JPEG[-2:],
    }
