"""Zips that lie, made by changing fields of true ones."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from functools import cache

from tests.faults.form import amount
from tests.faults.hostile.tars import IMAGES, NAMES, plain_tar

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
DEFLATED = zipfile.ZIP_DEFLATED


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, **fields: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, payload in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, payload)
    return content.getvalue()


def whole(method: int = zipfile.ZIP_STORED) -> bytes:
    return zipped([(f"slide/{number}_{number}.jpg", IMAGES[number]) for number in range(3)], method)


def changed(content: bytes, magic: bytes, place: int, value: bytes, which: int = 1) -> bytes:
    """`value` at `place` of the header number `which` that begins with `magic`."""
    start = -1
    for _ in range(which + 1):
        start = content.index(magic, start + 1)
    start += place
    return content[:start] + value + content[start + len(value) :]


def overlapping(entries: int, payload: bytes) -> bytes:
    """Many entries of the directory that are one member: as in the zip bombs of 2019."""
    kernel = zipped([("a.jpg", payload)], DEFLATED)
    start = kernel.index(CENTRAL)
    entry = kernel[start : kernel.index(END)]
    directory = entry * entries
    end = struct.pack("<4sHHHHIIH", END, 0, 0, entries & 0xFFFF, entries & 0xFFFF, len(directory), start, 0)
    return kernel[:start] + directory + end


def nested(depth: int) -> bytes:
    content = zipped([("a.jpg", bytes(64 << 20))], DEFLATED)
    for number in range(depth):
        content = zipped([(f"{number}.{copy}.zip", content) for copy in range(8)], DEFLATED)
    return content


@cache
def damages() -> dict[str, bytes]:
    """Name → a zip that is not what it says."""
    found = {}
    for what, method in (("stored", zipfile.ZIP_STORED), ("deflated", DEFLATED)):
        true = whole(method)
        for magic, size, packed in ((LOCAL, 22, 18), (CENTRAL, 24, 20)):
            where = "local" if magic == LOCAL else "directory"
            for number, value in enumerate((0, 5, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)):
                found[f"{what}, {where}: size {number}"] = changed(true, magic, size, struct.pack("<I", value))
                found[f"{what}, {where}: packed {number}"] = changed(true, magic, packed, struct.pack("<I", value))
        for number, value in enumerate((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)):
            found[f"{what}: offset {number}"] = changed(true, CENTRAL, 42, struct.pack("<I", value))
        found[f"{what}: wrong checksum"] = changed(true, CENTRAL, 16, b"\1\2\3\4")
        found[f"{what}: encrypted"] = changed(changed(true, CENTRAL, 8, b"\1"), LOCAL, 6, b"\1")
        found[f"{what}: other method"] = changed(changed(true, CENTRAL, 10, b"\x63"), LOCAL, 8, b"\x63")
        found[f"{what}: stored and deflated"] = changed(true, CENTRAL, 10, b"\x08" if method == 0 else b"\0")
        found[f"{what}: link"] = changed(true, CENTRAL, 38, struct.pack("<I", 0o120777 << 16))
        found[f"{what}: device"] = changed(true, CENTRAL, 38, struct.pack("<I", 0o060666 << 16))
        found[f"{what}: long name"] = changed(true, CENTRAL, 28, b"\xff\xff")
        found[f"{what}: long extra field"] = changed(true, LOCAL, 28, b"\xff\xff")
        found[f"{what}: fewer entries"] = changed(true, END, 8, b"\1\0\1\0", 0)
        found[f"{what}: more entries"] = changed(true, END, 8, b"\xff\xff\xff\xff", 0)
        found[f"{what}: directory elsewhere"] = changed(true, END, 16, b"\xff\xff\xff\x7f", 0)
        found[f"{what}: comment"] = true[:-2] + b"\xff\xff" + b"PK\x05\x06" * 3000
        found[f"{what}: something before"] = b"#!/bin/sh\nexit\n" + true
        found[f"{what}: a tar before"] = plain_tar({"1_2.jpg": IMAGES[4]}) + true
        found[f"{what}: cut"] = true[: len(true) // 2]
        found[f"{what}: joined"] = true + true
    for what, name in NAMES.items():
        text = name.decode("utf-8", "replace")
        found[f"name: {what}"] = zipped([("slide/0_0.jpg", IMAGES[0]), (text, IMAGES[1])])
    found["name twice"] = zipped([("a.jpg", IMAGES[0]), ("b.jpg", IMAGES[1])]).replace(b"b.jpg", b"a.jpg")
    found["name with NUL"] = zipped([("a_b.jpg", IMAGES[0])]).replace(b"a_b.jpg", b"a\0b.jpg")
    extra = struct.pack("<HHQQQ", 1, 24, 1 << 62, 1 << 62, 1 << 62)
    info = zipfile.ZipInfo("big.jpg")
    info.extra = extra
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(info, IMAGES[0])
    lie = changed(content.getvalue(), CENTRAL, 20, b"\xff" * 8, 0)
    found["zip64 that lies"] = changed(lie, CENTRAL, 42, b"\xff" * 4, 0)
    found["bomb by overlap"] = overlapping(60_000, bytes(1 << 20))
    found["bomb of one image"] = zipped([("a.jpg", bytes(amount(600, 1000) << 20))], DEFLATED)
    found["bomb by nesting"] = nested(3)
    said = zipped([(f"{number}.jpg", bytes(1 << 20)) for number in range(20)], DEFLATED)
    found["bomb that says little"] = said.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 100))
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = raw.compress(IMAGES[0] + bytes(64 << 20)) + raw.flush()
    short = zipped([("a.jpg", IMAGES[0])], DEFLATED)
    found["more behind the image"] = short[:35] + squeezed + short[35:]
    return found


def mutated(content: bytes, draw: random.Random) -> bytes:
    out = bytearray(content)
    headers = [at for magic in (LOCAL, CENTRAL, END) for at in _places(content, magic)]
    for _ in range(draw.randint(1, 5)):
        near = (
            draw.choice(headers) + draw.randrange(46) if headers and draw.random() < 0.8 else draw.randrange(len(out))
        )
        if near < len(out):
            out[near] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(out[: draw.choice((len(out), len(out), draw.randrange(1, len(out) + 1)))])


def _places(content: bytes, magic: bytes) -> list[int]:
    found, start = [], -1
    while (start := content.find(magic, start + 1)) >= 0:
        found.append(start)
    return found
