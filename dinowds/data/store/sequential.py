"""The files of a dataset read from their beginning to their end, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from dinowds.data.location import join_url
from dinowds.errors import StorageError
from dinowds.files import open_regular
from dinowds.remote.files import RemoteFiles, is_remote
from dinowds.remote.threads import Threads

_STEP = 1 << 20
_BLOCK = 8 << 20
"""Bytes of one request: 80 ms at 100 MB/s, so that its round trip counts little."""
_AHEAD = 4
"""Requests at once."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class HashingReader:
    """Reads a file in sequence and hashes all of it."""

    def __init__(self, stream: _Stream, size: int) -> None:
        self.size = size
        self.position = 0
        self._stream = stream
        self._sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or what is left."""
        content = self._stream.read(size)
        self._sha256.update(content)
        self.position += len(content)
        return content

    def blocks(self) -> Iterator[bytes]:
        """What is left, piece by piece."""
        while block := self.read(_STEP):
            yield block

    @property
    def sha256(self) -> str:
        """Hex, of all that was read."""
        return self._sha256.hexdigest()


class DatasetFiles:
    """The files of the dataset at `root`, a folder or a URL. URLs are those of its manifest."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.remote = RemoteFiles()

    @contextmanager
    def open(self, url: str) -> Iterator[HashingReader]:
        """Raises OSError where it cannot be read or (remote) is not there, StorageError where the network fails, and
        DatasetError for a URL that has no business in this dataset.
        """
        place = join_url(self._root, url)
        if not is_remote(place):
            with open(open_regular(place), "rb") as file:
                yield HashingReader(file, os.fstat(file.fileno()).st_size)
            return
        size = self.remote.size(place)
        threads = Threads(_AHEAD)
        try:
            yield HashingReader(_Blocks(self.remote, place, size, threads), size)
        finally:
            threads.close()

    def names(self, folder: str) -> list[str]:
        """What lies in one of its folders, sorted; nothing where that cannot be known, as over HTTP."""
        place = join_url(self._root, folder)
        if not is_remote(place):
            return sorted(path.name for path in Path(place).glob("*"))
        if place.startswith(("http://", "https://")):
            return []
        try:
            return self.remote.names(place)
        except StorageError:  # readers may be allowed to read, but not to list
            return []


class _Blocks:
    """A remote file, fetched some blocks ahead."""

    def __init__(self, files: RemoteFiles, url: str, size: int, threads: Threads) -> None:
        ranges = ((start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))
        self._futures = (threads.submit(partial(files.read, url, start, stop)) for start, stop in ranges)
        self._ahead: deque[Future[bytes]] = deque(islice(self._futures, _AHEAD))
        self._block = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and self._has_more():
            piece = self._block[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _has_more(self) -> bool:
        if self._at == len(self._block) and self._ahead:
            self._block, self._at = self._ahead.popleft().result(), 0
            self._ahead.extend(islice(self._futures, 1))
        return self._at < len(self._block)
