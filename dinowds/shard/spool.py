"""Compressed tars: read as a stream, or decompressed once to a file whose members can be read by place."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import xxhash

from dinowds.errors import SourceError
from dinowds.files import atomic_write

from .sources import Source, readable

_STEP = 1 << 20
_OPENERS: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


class StreamData:
    """`TarData` of a compressed tar, decompressed as it is read. Its offsets are those of the uncompressed tar.

    A read may begin again inside the bytes of the one before it, not earlier.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._stream = stream
        self._path = path
        self._last = b""
        self._position = 0

    def read(self, offset: int, size: int) -> bytes:
        with decompressing(self._path):
            while self._position < offset and (skipped := len(self._stream.read(min(_STEP, offset - self._position)))):
                self._position += skipped
                self._last = b""
            if offset > self._position:
                return b""
            content = (
                self._last[len(self._last) - (self._position - offset) :][:size] if offset < self._position else b""
            )
            more = self._stream.read(size - len(content))
            self._position += len(more)
        if more:
            self._last = content + more
        return content + more

    def size(self) -> int:
        return self._position


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
def open_stream(source: Source) -> Iterator[StreamData]:
    """The uncompressed bytes of a compressed tar, in one pass."""
    with decompressing(source.path):
        stream = cast(IO[bytes], _OPENERS[source.compression](source.file, "rb"))
    with stream:
        yield StreamData(stream, source.path)


def spool(source: Source, folder: Path, report: Callable[[int], None]) -> Path:
    """Decompress `source` to a file in `folder`, unless an earlier run did; the file's path.

    `report` gets the uncompressed bytes written so far. Raises SourceError, or OSError where `folder` cannot be
    written.
    """
    identity = f"{source.path}\0{source.num_bytes}\0{source.mtime_ns}".encode("utf-8", "backslashreplace")
    path = folder / f"source-{xxhash.xxh3_128_hexdigest(identity)}.tar"
    if path.exists():
        return path
    with open_stream(source) as data, atomic_write(path) as file:
        position = 0
        while block := data.read(position, _STEP):
            file.write(block)
            position += len(block)
            report(position)
    return path
