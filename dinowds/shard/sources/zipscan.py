"""Where the members of a zip lie: those that are stored are read by place, compressed ones are copied into a tar.

Format: APPNOTE.TXT 6.3.10 (PKWARE). The central directory is parsed by `zipfile`, also that of ZIP64.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dinowds.errors import SourceError
from dinowds.files import open_regular
from dinowds.shard.sources.images import IMAGE_EXTENSIONS, TOO_LARGE
from dinowds.shard.sources.listing import MAX_IMAGE_BYTES
from dinowds.shard.sources.source import readable
from dinowds.shard.sources.tarscan import DIRECTORY, FILE, LONG_NAME, Member, Members, TarData, scan_tar

COMPRESSED = "compressed member"
"""The kind of a file that has to be spooled before it can be read."""
ENCRYPTED = "encrypted member"
OTHER_METHOD = "member of another compression than deflate"
LINK = "symbolic link"
NAME_WITH_NUL = "name with a NUL byte"

MAX_DIRECTORY = 64 << 20
"""Bytes of a central directory: of 700,000 to 1,000,000 members, which `zipfile` keeps in as many kB of memory."""

MAX_RATIO = 100
"""Tiles that were stored raw and are white shrink more than this, but not all tiles of a zip."""
_SMALL = 1 << 30
_SMALL_IMAGE = 128 << 20
"""Bytes of an image that may shrink more: it is unpacked in memory."""

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800
_IN_ZIP64 = 0xFFFFFFFF
_INFLATED_AT_ONCE = 1 << 12
_MAX_NAME = 4096
_LABELS = b"cls"

_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError)
"""What `zipfile` raises for a directory that it cannot read."""


class _Entry(NamedTuple):
    kind: str
    name: bytes
    place: int
    size: int
    info: zipfile.ZipInfo

    def is_spooled(self) -> bool:
        extension = self.name.rpartition(b".")[2].lower()
        is_wanted = extension in IMAGE_EXTENSIONS or extension == _LABELS
        return is_wanted and self.kind in (FILE, COMPRESSED) and self.size <= MAX_IMAGE_BYTES


def list_zip(file: Path, text: str) -> Iterator[Member]:
    """Yield each member of a zip in the order of its bytes; `text` names the zip in errors.

    The kind of a stored file is `FILE`: its bytes lie at `place`. A deflated one is `COMPRESSED`; `spool_zip` makes a
    tar of all. Every other kind is a word for people. Names are as stored; they are not paths of this host. Checksums
    are not computed.

    Raises:
        SourceError: not a zip, cut short, too many members, or its directory and its members do not agree.
    """
    with _opened(file, text) as (archive, descriptor):
        for entry in _entries(archive, descriptor, text):
            yield entry[:4]


def needs_spool(file: Path, text: str) -> bool:
    """Whether any image or label of a zip is compressed. Raises SourceError, as `list_zip`."""
    with _opened(file, text) as (archive, descriptor):
        return any(e.kind == COMPRESSED and e.is_spooled() for e in _entries(archive, descriptor, text))


def spool_zip(file: Path, text: str, out: BinaryIO) -> None:
    """Write the images and labels of a zip to an uncompressed tar, whole names and all, one member in memory at a time.

    Of a damaged member, what comes before the damage is written.

    Raises:
        SourceError: as `list_zip`; or the members say that they are far larger than an image can be.
        OSError: `out` cannot be written.
    """
    with (
        _opened(file, text) as (archive, descriptor),
        tarfile.open(
            fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar,
    ):
        entries = list(_entries(archive, descriptor, text))
        claimed = [e for e in entries if e.is_spooled() or (e.kind == TOO_LARGE and e.size <= MAX_IMAGE_BYTES)]
        _check_total(claimed, os.fstat(descriptor).st_size, text)
        for entry in filter(_Entry.is_spooled, entries):
            payload = _payload(descriptor, entry)
            member = tarfile.TarInfo(entry.name.decode("utf-8", "surrogateescape"))
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))


def list_spooled_zip(tar: TarData, file: Path, text: str) -> Iterator[Member | Members]:
    """The members of the tar that `spool_zip` wrote, and then those that it left out, with their places in the zip."""
    yield from scan_tar(tar, text)
    with _opened(file, text) as (archive, descriptor):
        for entry in _entries(archive, descriptor, text):
            if not entry.is_spooled():
                yield FILE if entry.kind == COMPRESSED else entry.kind, entry.name, entry.place, entry.size


def first_member(file: Path) -> tuple[str, bytes]:
    """Name of a zip's first member, and its content if that is stored and under 64 kB; empty where there is none."""
    with open(open_regular(file), "rb") as stream:
        start = stream.read(1 << 16)
    if len(start) < _LOCAL.size or not start.startswith(_LOCAL_MAGIC):
        return "", b""
    _, _, _, method, _, _, _, packed, _, name_bytes, extra_bytes = _LOCAL.unpack_from(start)
    name = start[_LOCAL.size : _LOCAL.size + name_bytes]
    content = start[_LOCAL.size + name_bytes + extra_bytes :]
    is_whole = method == zipfile.ZIP_STORED and packed <= len(content)
    return name.decode("utf-8", "backslashreplace"), content[:packed] if is_whole else b""


class _Bounded(io.FileIO):
    """A file that refuses to read more at once than a central directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, expected at most {MAX_DIRECTORY}")
        return super().read(size) or b""


@contextmanager
def _opened(file: Path, text: str) -> Iterator[tuple[zipfile.ZipFile, int]]:
    with readable(text):
        stream = _Bounded(open_regular(file))
    with stream:
        try:
            with readable(text):
                archive = zipfile.ZipFile(stream)
        except _UNREADABLE as error:
            raise _damaged(text, str(error).rstrip(".")) from None
        with archive:
            yield archive, stream.fileno()


def _entries(archive: zipfile.ZipFile, descriptor: int, text: str) -> Iterator[_Entry]:
    """The members in the order of their bytes, each compared with its own header. None may lie on another."""
    free = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
        if info.header_offset < free:
            raise _damaged(text, f"member {_quoted(info)} lies on the one before it")
        place = _payload_place(info, name, descriptor, text)
        free = place + info.compress_size
        if free > archive.start_dir:
            raise _damaged(text, f"member {_quoted(info)} goes on past the end of the members")
        yield _Entry(_kind(info, name), name[:_MAX_NAME], place, info.file_size, info)


def _payload_place(info: zipfile.ZipInfo, name: bytes, descriptor: int, text: str) -> int:
    """Where the bytes of a member begin, as its own header says."""
    header = os.pread(descriptor, _LOCAL.size + len(name), info.header_offset)
    if len(header) < _LOCAL.size + len(name) or not header.startswith(_LOCAL_MAGIC):
        raise _damaged(text, f"member {_quoted(info)} is not at byte {info.header_offset}, where it should be")
    _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes = _LOCAL.unpack_from(header)
    agrees = method == info.compress_type and name_bytes == len(name) and header[_LOCAL.size :] == name
    if not flags & _SIZES_FOLLOW:
        agrees &= packed in (info.compress_size, _IN_ZIP64) and size in (info.file_size, _IN_ZIP64)
    if method == zipfile.ZIP_STORED and not _is_encrypted(info):
        agrees &= info.compress_size == info.file_size
    if not agrees:
        raise _damaged(text, f"member {_quoted(info)} and the zip's directory say different things")
    return info.header_offset + _LOCAL.size + len(name) + int(extra_bytes)


def _kind(info: zipfile.ZipInfo, name: bytes) -> str:
    if name.endswith(b"/"):
        return DIRECTORY
    if len(name) > _MAX_NAME:
        return LONG_NAME
    if b"\0" in name:
        return NAME_WITH_NUL
    if stat.S_ISLNK(info.external_attr >> 16):
        return LINK
    if _is_encrypted(info):
        return ENCRYPTED
    if info.compress_type == zipfile.ZIP_STORED:
        return FILE
    if info.compress_type != zipfile.ZIP_DEFLATED:
        return OTHER_METHOD
    largest = min(MAX_IMAGE_BYTES, max(_SMALL_IMAGE, MAX_RATIO * info.compress_size))
    return COMPRESSED if max(info.file_size, info.compress_size) <= largest else TOO_LARGE


def _is_encrypted(info: zipfile.ZipInfo) -> bool:
    return bool(info.flag_bits & _ENCRYPTED_FLAGS)


def largest_unpacked(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to."""
    return max(_SMALL, MAX_RATIO * packed)


def _check_total(entries: list[_Entry], packed: int, text: str) -> None:
    total = sum(entry.size for entry in entries)
    if total > largest_unpacked(packed):
        raise SourceError(
            f"{text}: its images say that they have {total} bytes, more than {MAX_RATIO} times the zip's {packed}; "
            "if that is true, unpack it and give the folder"
        )


def _payload(descriptor: int, entry: _Entry) -> bytes:
    """The bytes of a member, up to the size that it says or to its damage."""
    if entry.kind == FILE:
        return os.pread(descriptor, entry.size, entry.place)
    packed = os.pread(descriptor, entry.info.compress_size, entry.place)
    inflate, payload = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    try:
        for start in range(0, len(packed), _INFLATED_AT_ONCE):
            if len(payload) < entry.size:
                payload += inflate.decompress(
                    packed[start : start + _INFLATED_AT_ONCE], max_length=entry.size - len(payload)
                )
    except zlib.error:
        # A member of no bytes would be said to be empty, not damaged.
        payload = payload or bytearray(1)
    return bytes(payload)


def _damaged(text: str, what: str) -> SourceError:
    return SourceError(f"{text}: is not a zip that can be read ({what}); copy or pack it again, or give the folder")


def _quoted(info: zipfile.ZipInfo) -> str:
    return repr(info.orig_filename[:100])
