"""Files whose payloads cannot be read by place: read as a stream, or put once into a plain tar in the work folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import xxhash

from dinowds.errors import SourceError
from dinowds.files import atomic_write, open_regular, output_errors
from dinowds.shard.sources import zipscan
from dinowds.shard.sources.fetching import open_remote
from dinowds.shard.sources.layouts.folder import Times, walk
from dinowds.shard.sources.layouts.regions import spool_regions
from dinowds.shard.sources.source import SourceFile, readable
from dinowds.shard.sources.zipscan import MAX_RATIO, largest_unpacked

_STEP = 1 << 20
_OPENERS: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


class StreamData:
    """`TarData` of a compressed or remote tar, decompressed as it is read; offsets are those of the uncompressed tar.

    A read may begin again inside the bytes of the one before it, not earlier. `most` bytes are read in all; SourceError
    where there are more.
    """

    def __init__(self, stream: IO[bytes], path: str, most: int) -> None:
        self._stream = stream
        self._path = path
        self._most = most
        self._last = b""
        self._position = 0

    def read(self, offset: int, size: int) -> bytes:
        with decompressing(self._path):
            while self._position < offset and (skipped := len(self._stream.read(min(_STEP, offset - self._position)))):
                self._advance(skipped)
                self._last = b""
            if offset > self._position:
                return b""
            content = (
                self._last[len(self._last) - (self._position - offset) :][:size] if offset < self._position else b""
            )
            more = self._stream.read(size - len(content))
            self._advance(len(more))
        if more:
            self._last = content + more
        return content + more

    def size(self) -> int:
        return self._position

    def _advance(self, num_bytes: int) -> None:
        self._position += num_bytes
        if self._position > self._most:
            raise SourceError(
                f"{self._path}: unpacks to more than {self._most} bytes, over {MAX_RATIO} times its size; if that is "
                "true, unpack it and give the tar"
            )


@contextmanager
def decompressing(path: str) -> Iterator[None]:
    """Turn what decompressors raise about `path` into SourceError."""
    try:
        with readable(path):
            yield
    except EOFError:
        raise SourceError(f"{path}: is cut short: its compressed data has no end; copy or pack it again") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise SourceError(f"{path}: cannot be decompressed ({error}); copy or pack it again") from None


@contextmanager
def open_stream(file: SourceFile) -> Iterator[StreamData]:
    """The uncompressed bytes of a compressed or remote tar, in one pass."""
    with ExitStack() as stack:
        with decompressing(file.path):
            opened = open_remote(file) if file.origin is not None else os.fdopen(open_regular(file.file), "rb")
            packed: Any = stack.enter_context(opened)
            if file.packing:
                packed = stack.enter_context(_OPENERS[file.packing](packed, "rb"))
        yield StreamData(packed, file.path, largest_unpacked(file.num_bytes) if file.packing else file.num_bytes)


def needs_spool(file: SourceFile) -> bool:
    """Whether payloads of a file cannot be read by place as it is."""
    if file.kind == "zip":
        return zipscan.needs_spool(file.file, file.path)
    return bool(file.packing or file.origin) or file.kind == "tensors"


def spool(file: SourceFile, folder: Path, report: Callable[[int], None]) -> Path:
    """Unpack or fetch a file to an uncompressed tar in `folder`, unless an earlier run did; the tar's path.

    `report` gets the bytes written so far; what it raises ends the unpacking. Raises SourceError, StorageError for a
    remote file, OutputError or OSError where `folder` cannot be written.
    """
    identity = f"{file.path}\0{file.num_bytes}\0{file.mtime_ns}\0{_state(file)}".encode("utf-8", "backslashreplace")
    path = folder / f"source-{xxhash.xxh3_128_hexdigest(identity)}.tar"
    if path.exists():
        return path
    with atomic_write(path) as file_out:
        out = cast(BinaryIO, _Reported(file_out, folder, report))
        if file.kind == "zip":
            zipscan.spool_zip(file.file, file.path, out)
        elif file.kind == "tensors":
            spool_regions(file.file, file.path, out)
        else:
            _copy_stream(file, out)
    return path


class _Reported:
    """A new file that says how much was written. Its errors are never taken for those of what is read."""

    def __init__(self, file: BinaryIO, folder: Path, report: Callable[[int], None]) -> None:
        self._file, self._folder, self._report = file, folder, report
        self.tell = file.tell

    def write(self, content: bytes) -> int:
        with output_errors(self._folder):
            count = self._file.write(content)
        self._report(self._file.tell())
        return count


def _state(file: SourceFile) -> str:
    """Changes with any file of a folder, and with a remote file. A URL itself may have a signature that is new."""
    if file.origin is not None:
        return file.origin.version or file.origin.url
    times = Times()
    if file.kind == "tensors":
        for _ in walk(file.file, times):
            pass
    return times.digest.hexdigest()


def _copy_stream(file: SourceFile, out: BinaryIO) -> None:
    with open_stream(file) as data:
        position = 0
        while block := data.read(position, _STEP):
            out.write(block)
            position += len(block)
