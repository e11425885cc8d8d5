"""Tars and zips of strangers."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from unittest import mock

from dinowds.errors import SourceError
from dinowds.shard import kernels
from dinowds.shard.sources.tarscan import FILE, FileData
from dinowds.shard.sources.zipscan import first_member, list_spooled_zip, list_zip, needs_spool, spool_zip
from dinowds.shard.tarheader import BLOCK, is_header, padded, parse_number, parse_pax, plain_file_size
from tests.faults.fuzz.targets import Finding, scratch
from tests.shard.sources.test_tarscan import BytesData, flattened, outcome

_KINDS = b"xgXLK0S"


def tar(data: bytes) -> None:
    """Where the first byte is odd, every header gets the checksum of what it says."""
    content = data[1:]
    _scan(_with_checksums(content) if data[:1] and data[0] & 1 else content)


def tar_seeds() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        yield b"\1" + _tar(form)
    yield b"\0" + _tar(tarfile.USTAR_FORMAT)
    yield b"\1" + _tar(tarfile.USTAR_FORMAT)[:-1024]
    yield b"\1" + _tar(tarfile.PAX_FORMAT) + _tar(tarfile.GNU_FORMAT)


def pax(data: bytes) -> None:
    """The content of one metadata member, whose kind the first byte chooses, before an ordinary file."""
    kind, content = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0], data[1:]
    block = content.ljust(BLOCK, b"\0")
    plain_file_size(block)
    is_header(block)
    for reader in (parse_pax, parse_number):
        with contextlib.suppress(ValueError):
            reader(content)
    header = tarfile.TarInfo("named")
    header.size, header.type = len(content), bytes([kind])
    file = tarfile.TarInfo("a/b.jpg")
    file.size = 3
    blocks = (header.tobuf(tarfile.USTAR_FORMAT), content.ljust(padded(len(content)), b"\0"))
    _scan(b"".join(blocks) + file.tobuf(tarfile.USTAR_FORMAT) + b"abc".ljust(BLOCK, b"\0") + bytes(1024))


def pax_seeds() -> Iterator[bytes]:
    records = {"path": "ä/b.jpg", "size": "3", "GNU.sparse.name": "c.jpg", "mtime": "1.5", "comment": "x" * 90}
    for keyword, value in records.items():
        for kind in (0, 1):
            yield bytes([kind]) + _record(keyword, value) + _record("path", "second.png")
    yield b"\3" + b"long/" * 30 + b"\0"
    yield b"\0" + b"9 path=a\n" + bytes(3)
    yield b"\0" + b"99999999 path=a\n"  # says that it is longer than all there is


def zipped(data: bytes) -> None:
    path = scratch(data)
    try:
        first_member(path)
        members = list(list_zip(path, "x"))
        for kind, name, place, size in members:
            if kind == FILE and not 0 <= place <= place + size <= len(data):
                raise Finding(f"{name!r} lies outside of the zip, at {place} with {size} bytes")
        if needs_spool(path, "x"):
            spooled = io.BytesIO()
            spool_zip(path, "x", spooled)
            with open(scratch(spooled.getvalue(), "spooled"), "rb") as file:
                found = list(flattened(list_spooled_zip(FileData(file.fileno()), path, "x")))
            if len(found) != len(members):
                raise Finding(f"{len(found)} of {len(members)} members are left after unpacking")
    except SourceError:
        pass


def zipped_seeds() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", method) as archive:
            archive.writestr("slide/", b"")
            archive.writestr("slide/1_2.jpg", b"\xff\xd8\xff" + b"payload" * 20)
            archive.writestr("slide/ä.cls", b"3")
        yield content.getvalue()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("1_2.jpg", b"1234567")
    size = (7).to_bytes(4, "little") * 2  # packed and unpacked, in the member's own header and in the directory
    yield content.getvalue().replace(size, (600).to_bytes(4, "little") * 2)


def _scan(content: bytes) -> None:
    """In C, with its replacement in Python, and without runs: one outcome, which lies inside the file."""
    plain = outcome(BytesData(content))
    with open(scratch(content), "rb") as file:
        in_c = outcome(FileData(file.fileno()))
        with mock.patch.object(kernels, "_library", _none):
            in_python = outcome(FileData(file.fileno()))
    if not plain == in_c == in_python:
        raise Finding(f"three ways, three outcomes:\n{plain}\n{in_c}\n{in_python}")
    members, error = plain
    whole = members[:-1] if error else members  # the last one may be that in which the tar ends
    for kind, name, place, size in whole:
        _check_inside(kind, name, place, size, len(content))


def _check_inside(kind: str, name: bytes, place: int, size: int, length: int) -> None:
    if place < 0 or size < 0 or (kind == FILE and place + size > length):
        raise Finding(f"{kind!r} {name!r} lies outside of the tar, at {place} with {size} bytes")


def _none() -> None:
    return None


def _with_checksums(content: bytes) -> bytes:
    """Follows the sizes as a scan would, and gives each header the checksum that it should have."""
    fixed = bytearray(content)
    offset = 0
    while offset + BLOCK <= len(fixed):
        header = fixed[offset : offset + BLOCK]
        size = 0
        if any(header):
            header[148:156] = b" " * 8
            fixed[offset + 148 : offset + 156] = b"%06o\0 " % sum(header)
            with contextlib.suppress(ValueError):
                size = parse_number(bytes(header[124:136]))
        offset += BLOCK + padded(size)
    return bytes(fixed)


def _tar(form: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name, kind in (
            ("a/1_2.jpg", tarfile.REGTYPE),
            ("ä" * 60 + "/3.jpg", tarfile.REGTYPE),
            ("l", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../x" if kind == tarfile.SYMTYPE else ""
            member.size = 40 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"p" * member.size))
    return content.getvalue().rstrip(b"\0") + bytes(1500)


def _record(keyword: str, value: str) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest
