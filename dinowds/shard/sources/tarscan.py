"""Where the members of an uncompressed tar lie: a header scan that reads 512 bytes a member.

Understands V7, USTAR (with prefixes), GNU (long names, base-256 numbers, sparse) and PAX (path, size, global headers).
Format: POSIX.1-2001 pax interchange format; "Basic Tar Format" in the manual of GNU tar.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.errors import SourceError
from dinowds.shard.kernels import TarRuns
from dinowds.shard.tarheader import BLOCK, header_name, is_header, padded, parse_number, parse_pax, plain_file_size

FILE = ""
"""The kind of an ordinary file; every other kind is a word for people."""
DIRECTORY = "directory"
NO_END = "tar without its end marker: it may be cut short"
AFTER_END = "data after the end marker"
LONG_NAME = "name over 4,096 bytes"

Member = tuple[str, bytes, int, int]
"""Kind, name as stored, offset of the payload, size of the payload."""

_KINDS = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device or pipe",
    b"4": "device or pipe",
    b"5": DIRECTORY,
    b"6": "device or pipe",
}
_SPARSE = "sparse member"
_MAX_METADATA = 1 << 20
_MAX_SIZE = 1 << 62
_MAX_NAME, _HEAD = 4096, 200
_PREFETCH = 8 << 20
_ZERO_STEP = 1 << 20


class Members(NamedTuple):
    """A run of ordinary files: names as stored, offsets and sizes of the payloads, int64 [N]."""

    names: pa.LargeBinaryArray
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class TarData(Protocol):
    """The bytes of an uncompressed tar. An offset is never before that of the read before it."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the data."""

    def size(self) -> int:
        """Bytes in all. Asked only once the end was reached."""


class FileData:
    """`TarData` of an open file. Asks the system to read ahead, so that a cold tar comes in large reads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ahead = 0

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self._ahead and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, _PREFETCH, os.POSIX_FADV_WILLNEED)
            self._ahead = offset + _PREFETCH
        return os.pread(self._descriptor, size, offset)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def runs(self) -> TarRuns:
        """The walker of what is ordinary in the file."""
        return TarRuns(self._descriptor)


def scan_tar(data: TarData, source: str) -> Iterator[Member | Members]:
    """Yield the members of a tar in order; `source` names it in errors.

    Of `FileData`, ordinary files come in runs of up to 4,096 members or 64 MiB, as `Members`; the rest one by one.
    Goes on after zero blocks, so that joined tars (`cat a.tar b.tar`) are read whole. A tar that ends between two
    members without an end marker yields one last member of kind `NO_END`; one that ends in something else after its end
    marker yields one of kind `AFTER_END`. Of a name that is too long only a part is kept.

    Raises:
        SourceError: not a tar, cut short, or a header is damaged. What was yielded before is right.
    """
    offset = 0
    ended = False
    shared: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    runs = data.runs() if isinstance(data, FileData) else None
    while True:
        if runs is not None and not own and not shared and (run := runs.walk(offset)):
            files, offset = run
            ended = False
            yield Members(*files)
            continue
        header = data.read(offset, BLOCK)
        if len(header) < BLOCK:
            is_junk = ended and any(header)
            _check_end(data, source, offset, bool(own or (header and not ended)))
            if is_junk or not ended:
                yield AFTER_END if is_junk else NO_END, b"", offset, 0
            return
        if not own and not shared and (size := plain_file_size(header)) >= 0:
            yield FILE, header_name(header), offset + BLOCK, size
            ended, offset = False, offset + BLOCK + padded(size)
            continue
        if not is_header(header):
            if header.count(0) < BLOCK:
                if not ended or _has_header(data, offset):
                    raise SourceError(_not_a_header(source, offset))
                yield AFTER_END, b"", offset, 0
                return
            ended, offset = True, _skip_zeros(data, offset)
            continue
        ended = False
        flag = header[156:157]
        start = offset + BLOCK
        try:
            size = parse_number(header[124:136])
            if flag in b"LKxgX":
                content = _read_metadata(data, start, size, source)
                _apply_metadata(flag, content, shared, own)
                offset = start + padded(size)
                continue
            kind, name, size, start = _resolve(data, header, start, size, {**shared, **own} if shared else own)
        except ValueError as error:
            raise SourceError(f"{source}: damaged tar header at byte {offset} ({error}); pack the tar again") from None
        own = {}
        if len(name) > _MAX_NAME:
            yield LONG_NAME, name[:_HEAD], start, size
        else:
            yield kind, name, start, size
        offset = start + padded(size) if kind in (FILE, _SPARSE) else start


def _read_metadata(data: TarData, start: int, size: int, source: str) -> bytes:
    if size > _MAX_METADATA:
        raise ValueError(f"{size} bytes of metadata")
    content = data.read(start, size)
    if len(content) < size:
        raise cut_short(source, data.size())
    return content


def _apply_metadata(flag: bytes, content: bytes, shared: dict[bytes, bytes], own: dict[bytes, bytes]) -> None:
    """Note what a metadata member says about the members after it. Of two that disagree, the first one counts."""
    if flag == b"L":
        own.setdefault(b"path", content.partition(b"\0")[0])
    elif flag == b"g":
        shared.update((keyword, value) for keyword, value in parse_pax(content).items() if _counts(keyword))
    elif flag != b"K":
        for keyword, value in parse_pax(content).items():
            own.setdefault(keyword, value)


def _counts(keyword: bytes) -> bool:
    """Whether a keyword of PAX changes what a member is; the others tell times, owners and comments."""
    return keyword in (b"path", b"size") or keyword.startswith(b"GNU.sparse.")


def _resolve(
    data: TarData, header: bytes, start: int, size: int, extra: dict[bytes, bytes]
) -> tuple[str, bytes, int, int]:
    """Kind, name, size and payload offset of a member whose metadata says `extra`."""
    name = header_name(header)
    flag = header[156:157]
    kind = _KINDS.get(flag, FILE)
    if flag == b"\0" and name.endswith(b"/"):
        kind = DIRECTORY
    elif flag == b"S":
        kind, start = _SPARSE, _after_sparse_map(data, header, start)
    if extra:
        name = extra.get(b"GNU.sparse.name") or extra.get(b"path") or name
        if b"size" in extra:
            size = int(extra[b"size"])
        if kind == FILE and any(keyword.startswith(b"GNU.sparse.") for keyword in extra):
            kind = _SPARSE
    if not 0 <= size <= _MAX_SIZE:
        raise ValueError("a size that no file has")
    return kind, name, size, start


def _after_sparse_map(data: TarData, header: bytes, start: int) -> int:
    more = header[482]
    while more:
        block = data.read(start, BLOCK)
        if len(block) < BLOCK:
            raise ValueError("a sparse map that is cut short")
        more = block[504]
        start += BLOCK
    return start


def _skip_zeros(data: TarData, offset: int) -> int:
    """Offset of the first block from `offset` on that is not all zeros, or of the end of the data."""
    while True:
        block = data.read(offset, _ZERO_STEP)
        rest = block.lstrip(b"\0")
        if rest:
            return offset + (len(block) - len(rest)) // BLOCK * BLOCK
        offset += len(block)
        if len(block) < _ZERO_STEP:
            return offset


def _has_header(data: TarData, offset: int) -> bool:
    """Whether a member begins anywhere from `offset` on: then zeros before it were no end, but a hole."""
    while block := data.read(offset, _ZERO_STEP):
        for start in range(0, len(block) - BLOCK + 1, BLOCK):
            if block[start + 257 : start + 262] == b"ustar" and is_header(block[start : start + BLOCK]):
                return True
        offset += len(block)
    return False


def _check_end(data: TarData, source: str, offset: int, inside: bool) -> None:
    size = data.size()
    if inside or size < offset:
        raise cut_short(source, size)


def cut_short(source: str, size: int) -> SourceError:
    """The error of a tar of `size` bytes."""
    return SourceError(f"{source}: is cut short: it ends at byte {size} inside a member; copy or pack it again")


def _not_a_header(source: str, offset: int) -> str:
    if offset == 0:
        return f"{source}: is not a tar; give tars (plain, gz, bz2 or xz) or folders of images"
    return f"{source}: has no tar header at byte {offset}, where one should be; it is damaged: copy or pack it again"
