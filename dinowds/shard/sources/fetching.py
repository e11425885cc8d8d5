"""Remote files as sources: what they are now, and their bytes, in sequence."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, cast

from dinowds.remote.files import RemoteFiles, ShortFileError
from dinowds.remote.threads import Threads
from dinowds.shard.sources.source import Origin, SourceFile, changed

_STEP = 8 << 20
"""Bytes of one request, some 0.1 s of a fast line: enough that its 20 ms of waiting count little."""
_AT_ONCE = 4

_SIGNS = ("etag", "generation", "last-modified", "last_modified", "lastmodified", "mtime", "updated")
"""What stores and servers say of a file that changes with its content, lower case."""


class Origins(RemoteFiles):
    """`RemoteFiles` that can tell one version of a file from another."""

    def look(self, url: str) -> tuple[Origin, int]:
        """What lies at `url`, and its bytes. Raises StorageError."""
        num_bytes = self.size(url)
        return Origin(url, self._retried(url, "read", partial(self._version, url))), num_bytes

    def _version(self, url: str) -> str:
        filesystem, path = self._filesystem(url)
        try:
            about = self._call(filesystem, "info", path)
        except FileNotFoundError:  # a server that refuses to be asked without being read from
            return ""
        return " ".join(f"{name}={about[name]}" for name in sorted(about) if name.lower() in _SIGNS)


@contextmanager
def open_remote(file: SourceFile) -> Iterator[IO[bytes]]:
    """The bytes of a remote file, in one pass.

    Raises (also at its end, and while it is read):
        SourceError: it is no longer what it was.
        StorageError: it cannot be read.
    """
    assert file.origin is not None
    files = Origins()
    _check(files, file)
    blocks = _blocks(files, file.origin.url, file.num_bytes)
    try:
        with io.BufferedReader(_Blocks(blocks), _STEP) as stream:
            yield stream
    except ShortFileError:
        raise changed(file.path) from None
    finally:
        blocks.close()
    _check(files, file)


def _check(files: Origins, file: SourceFile) -> None:
    if files.look(cast(Origin, file.origin).url) != (file.origin, file.num_bytes):
        raise changed(file.path)


def _blocks(files: RemoteFiles, url: str, num_bytes: int) -> Any:
    """A file's bytes block by block; a few are on their way."""
    threads = Threads(_AT_ONCE)
    waiting: deque[Future[bytes]] = deque()
    try:
        for start in range(0, num_bytes, _STEP):
            waiting.append(threads.submit(partial(files.read, url, start, min(start + _STEP, num_bytes))))
            if len(waiting) > _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.close()


class _Blocks(io.RawIOBase):
    """Blocks of bytes as one stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count
