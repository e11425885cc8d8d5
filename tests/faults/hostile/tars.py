"""Tars that lie, byte by byte. `IMAGES` are the only payloads that a dataset made of them may hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable

from tests.faults.form import amount
from tests.support import jpeg_patch

BLOCK = 512
IMAGES = [jpeg_patch(seed, 16) for seed in range(12)]

TERMINAL = b"\x1b[2J\x1b]8;;http://evil\x07\x9b31m\r\x7f"
"""Clears a screen, makes a link, sets a colour, goes to the begin of a line."""

NAMES = {
    "up": b"../../../outside/up_1_2.jpg",
    "up inside": b"a/../../../../outside/inside_1_2.jpg",
    "absolute": b"/OUTSIDE/absolute_1_2.jpg",
    "slashes": b"////OUTSIDE//x_1_2.jpg",
    "dots": b"./././../../outside/x.jpg",
    "drive": b"C:\\outside\\x_1_2.jpg",
    "share": b"\\\\host\\outside\\x.jpg",
    "backslashes": b"..\\..\\outside\\x.jpg",
    "line feed": b"a\nb\ndinowds: error: forged_1_2.jpg",
    "tab": b"a\tb_1_2.jpg",
    "terminal": TERMINAL + b"_1_2.jpg",
    "right to left": "a\u202egpj.exe_1_2.jpg".encode(),
    "isolates": "\u2066a\u2069\u200b\u2028_1_2.jpg".encode(),
    "not utf-8": b"\xff\xfe\xc3(_1_2.jpg",
    "surrogate": b"\xed\xa0\x80_1_2.jpg",
    "markup": b"<script>alert(1)</script>/[bold red]x[/]_1_2.jpg",
    "quotes": b"\"'onmouseover=`$(touch evil);{x}${y}_1_2.jpg",
    "formula": b"=cmd|' /C calc'!A0_1_2.jpg",
    "only dots": b"../..jpg",
    "device": b"NUL.jpg",
    "hidden": b"__x__.jpg",
    "option": b"--overwrite.jpg",
    "remote": b"s3://bucket/x_1_2.jpg",
    "dashes": b"-_1_2.jpg",
    "glob": b"*?[a-z]{000..999}_1_2.jpg",
}


def header(
    name: bytes, size: int | bytes, flag: bytes = b"0", link: bytes = b"", checksum: bytes | None = None
) -> bytes:
    """One block of USTAR; `size` as it stands there where it is bytes."""
    told = b"%011o\0" % size if isinstance(size, int) else size
    parts = [name[:100].ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", told.ljust(12, b"\0"), b"0" * 11]
    block = bytearray(b"".join(parts) + b"\0" + b" " * 8 + flag + link[:100].ljust(100, b"\0") + b"ustar\x0000")
    block += bytes(BLOCK - len(block))
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % BLOCK)


def member(name: bytes, payload: bytes = b"", flag: bytes = b"0", link: bytes = b"") -> bytes:
    return header(name, len(payload), flag, link) + padded(payload)


def record(keyword: bytes, value: bytes) -> bytes:
    """One of PAX, with its length as it must be."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax(content: bytes, name: bytes, payload: bytes, flag: bytes = b"x") -> bytes:
    """A member that a header of metadata comes before."""
    return member(b"pax", content, flag) + member(name, payload)


def good(number: int) -> bytes:
    return member(b"slide/%d_%d.jpg" % (number, number), IMAGES[number % len(IMAGES)])


def named(name: bytes) -> bytes:
    """An image of any name, as PAX has it: it may hold everything."""
    return pax(record(b"path", name), b"x.jpg", IMAGES[1])


END = bytes(2 * BLOCK)


def sizes() -> dict[str, bytes]:
    """The field of the size, as no one would write it."""
    return {
        "negative": b"-0000000001\0",
        "negative of base 256": b"\xff" * 12,
        "huge": b"77777777777\0",
        "huge of base 256": b"\x80" + b"\xff" * 11,
        "overflow of base 256": b"\x80\0\0\0\x7f" + b"\xff" * 7,
        "not octal": b"0000000089x\0",
        "empty": b"\0" * 12,
        "blank": b" " * 12,
        "text": b"hello world!",
        "plus": b"+0000000100\0",
        "underscore": b"00_00_01_00\0",
    }


def damages() -> dict[str, bytes]:
    """Name → what lies between two good members."""
    image = IMAGES[2]
    found = {f"name: {what}": named(name) for what, name in NAMES.items()}
    found |= {f"short name: {what}": member(name[:99], image) for what, name in NAMES.items() if b"\0" not in name}
    found |= {f"size: {what}": header(b"x_1_2.jpg", size) + padded(image) for what, size in sizes().items()}
    found |= {f"size of metadata: {what}": header(b"pax", size, b"x") + padded(image) for what, size in sizes().items()}
    links = {"file": b"../../outside/victim", "absolute": b"/etc/passwd", "itself": b"x_1_2.jpg", "folder": b"/"}
    for kind, flag in (("hard", b"1"), ("symbolic", b"2")):
        found |= {f"{kind} link: {to}": member(b"x_1_2.jpg", b"", flag, link) for to, link in links.items()}
        found[f"{kind} link, then below it"] = member(b"d", b"", flag, b"../../outside") + member(b"d/x_1_2.jpg", image)
        found[f"{kind} links in a loop"] = member(b"a.jpg", b"", flag, b"b.jpg") + member(b"b.jpg", b"", flag, b"a.jpg")
        found[f"{kind} link of a size"] = member(b"a.jpg", image, flag, b"b.jpg")
    found |= {f"device {flag!r}": member(b"dev_1_2.jpg", b"", flag) for flag in (b"3", b"4", b"6", b"7")}
    found |= {
        f"unknown kind {flag!r}": member(b"odd_1_2.jpg", image, flag) for flag in (b"Z", b"V", b"M", b"N", b"\xff")
    }
    sparse = bytearray(header(b"sparse_1_2.jpg", len(image), b"S"))
    sparse[386:410] = b"00000000000\0" + b"00000001000\0"
    for what, real, more in (("old GNU", b"00000001000\0", 0), ("huge", b"\x80" + b"\xff" * 11, 0), ("map", b"1\0", 1)):
        sparse[483:495] = real.ljust(12, b"\0")
        sparse[482] = more
        sparse[148:156] = b" " * 8
        sparse[148:156] = b"%06o\0 " % sum(sparse)
        found[f"sparse: {what}"] = bytes(sparse) + padded(image)
    maps = {
        "0.0": record(b"GNU.sparse.size", b"99999999999") + record(b"GNU.sparse.numblocks", b"1")
        + record(b"GNU.sparse.offset", b"0") + record(b"GNU.sparse.numbytes", b"9"),
        "0.1": record(b"GNU.sparse.map", b"0,9," * 1000) + record(b"GNU.sparse.name", b"../../outside/s_1_2.jpg"),
        "1.0": record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
        + record(b"GNU.sparse.realsize", b"9" * 30) + record(b"GNU.sparse.name", b"/outside/s_1_2.jpg"),
    }  # fmt: skip
    found |= {f"sparse: PAX {what}": pax(content, b"s_1_2.jpg", image) for what, content in maps.items()}
    lies = {
        "shorter": b"5 path=abc_1_2.jpg\n",
        "longer": b"999 path=abc.jpg\n",
        "negative": b"-9 path=abc.jpg\n",
        "huge": b"9" * 5000 + b" path=abc.jpg\n",
        "zero": b"0 path=a\n",
        "no number": b"x path=a\n",
        "no space": b"12path=abcde\n",
        "no sign": b"12 pathabcd\n",
        "no end": record(b"path", b"a.jpg")[:-1],
        "nothing": b"",
        "zeros": bytes(600),
        "NUL": record(b"path", b"a\0b_1_2.jpg"),
        "64 KiB": record(b"path", b"a/" * 32700 + b"x_1_2.jpg"),
        "negative size": record(b"size", b"-1"),
        "huge size": record(b"size", b"9" * 400),
        "more digits than Python reads": record(b"size", b"9" * 5000),
        "size in words": record(b"size", b"many"),
        "size with a sign": record(b"size", b" +1_0 "),
        "many": record(b"comment", b"x") * 20_000,
        "another encoding": record(b"hdrcharset", b"BINARY") + record(b"path", b"\xff_1_2.jpg"),
    }
    found |= {f"PAX record: {what}": pax(content, b"x_1_2.jpg", image) for what, content in lies.items()}
    found |= {f"global PAX record: {what}": pax(content, b"x_1_2.jpg", image, b"g") for what, content in lies.items()}
    found |= {
        "wrong checksum": header(b"x_1_2.jpg", len(image), checksum=b"000000\0 ") + padded(image),
        "checksum that is none": header(b"x_1_2.jpg", len(image), checksum=b"zzzzzzzz") + padded(image),
        "joined tars": END + good(3) + END + bytes(20 * BLOCK) + good(4) + END,
        "tar in a tar": member(b"inner.tar", good(5) + END) + member(b"inner_1_2.jpg", good(5) + END),
        "long name without a member": member(b"././@LongLink", b"x" * 300, b"L"),
        "long names on end": member(b"././@LongLink", b"../../outside/a_1_2.jpg\0", b"L") * 50 + good(6),
        "long name of 2 MB": member(b"././@LongLink", b"x/" * 1_000_000, b"L") + good(6),
        "huge claim of a long name": header(b"././@LongLink", 1 << 32, b"L") + bytes(BLOCK),
        "the same name": good(3) * 30,
        "folder with a size": member(b"folder/", image, b"5"),
        "image as a folder": member(b"slide/0_0.jpg/", b"", b"5") + member(b"slide/0_0.jpg/x.jpg", image),
        "junk": random.Random(0).randbytes(BLOCK),
        "zeros": bytes(300 * BLOCK),
    }
    return found


def hostile_tar(middle: bytes, ending: bytes = END) -> bytes:
    return good(0) + middle + good(7) + ending


def bombs() -> dict[str, bytes]:
    """File name → a few MB at most that unpack to GBs: as one image, as many, in metadata, behind the end."""
    giga = amount(1, 3) << 30
    heads = {
        "image": header(b"big_1_2.jpg", giga),
        "text": header(b"big.txt", giga),
        "metadata": header(b"pax", giga, b"x"),
        "zeros": b"",
    }
    return {f"{what}.tar.gz": _zipped(good(0) + head, giga) for what, head in heads.items()} | {
        "text.tar.bz2": _repeated(bz2.compress, good(0) + heads["text"], giga),
        "text.tar.xz": _repeated(lzma.compress, good(0) + heads["text"], giga),
    }


def _zipped(head: bytes, zeros: int) -> bytes:
    return _repeated(gzip.compress, head, zeros)


def _repeated(pack: Callable[[bytes], bytes], head: bytes, zeros: int) -> bytes:
    """Streams on end are one file for each of these programs."""
    part = 64 << 20
    return pack(head) + pack(bytes(part)) * (zeros // part)


def mutated(tar: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, blocks swapped, doubled, lost or cut off; checksums mended in half of the headers."""
    blocks = [bytearray(tar[start : start + BLOCK]) for start in range(0, len(tar), BLOCK)]
    for _ in range(draw.randint(1, 6)):
        where = draw.randrange(len(blocks))
        how = draw.choice(("byte", "byte", "field", "swap", "double", "lose", "zero", "cut"))
        if how == "byte":
            blocks[where][draw.randrange(len(blocks[where]))] = draw.randrange(256)
        elif how == "field" and len(blocks[where]) == BLOCK:
            start, stop = draw.choice(((0, 100), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500)))
            filling = draw.choice((bytes(stop - start), b"\xff" * (stop - start), draw.randbytes(stop - start)))
            blocks[where][start:stop] = filling
        elif how == "swap":
            other = draw.randrange(len(blocks))
            blocks[where], blocks[other] = blocks[other], blocks[where]
        elif how == "double":
            blocks.insert(where, bytearray(blocks[where]))
        elif how == "lose" and len(blocks) > 1:
            del blocks[where]
        elif how == "zero":
            blocks[where][:] = bytes(len(blocks[where]))
        elif how == "cut":
            del blocks[max(1, where) :]
    for block in blocks:
        if block[257:262] == b"ustar" and draw.random() < 0.8 and len(block) == BLOCK:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(map(bytes, blocks))


def plain_tar(members: dict[str, bytes]) -> bytes:
    """A tar as anyone writes it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return content.getvalue()
