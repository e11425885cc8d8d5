"""Chunks of remote shards on a local disk: fetched once per host, whole or absent, within a bound.

All processes and threads of a host share the folder:

    fetching/NAME     a chunk that is being fetched, locked by whoever fetches it; the others wait for the lock
    00 … ff/NAME      a whole chunk, renamed into place
    total             bytes of all of these, locked by whoever changes it

A file in `fetching` that nobody has locked was left by a killed process. Who would pass the bound counts anew and
removes what was not used for longest; a kill at any moment leaves a total that is right or too large, never too small.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dinowds.data.store.cachefiles import (
    Total,
    about,
    files,
    is_same,
    open_or_make,
    remove_abandoned,
    take_lock,
    write,
)
from dinowds.errors import ConfigError
from dinowds.files import cache_folder, close_unforked

_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEPT_AFTER_EVICTION = 0.9  # of the bound, so that counting anew is rare


@dataclass(frozen=True)
class CacheOptions:
    """Where chunks of remote shards are kept (None: in `files.cache_folder()`), and how many bytes of them at most."""

    folder: Path | None = None
    max_bytes: int = 32 << 30


DEFAULT_CACHE = CacheOptions()


class FullDiskError(ConfigError):
    """The disk of the cache has no room, even with half of the cache removed."""


class OpenChunk:
    """A chunk that stays readable while this object lives, even when the cache lets go of its file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` in the chunk. Raises OSError."""
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        os.close(self.descriptor)


def chunk_name(shard: str, start: int, stop: int) -> str:
    """File name of bytes [start, stop) of a shard, which is named by its digest."""
    return hashlib.blake2b(f"{shard} {start} {stop}".encode(), digest_size=16).hexdigest()


class ChunkCache:
    """The cache in one folder. Without state of its own: safe between threads, to pickle and to carry over a fork.

    All methods raise ConfigError where the folder cannot be written, FullDiskError where its disk is full.
    """

    def __init__(self, options: CacheOptions) -> None:
        self._folder = (options.folder or cache_folder()) / "chunks"
        self._max_bytes = options.max_bytes

    def fits(self, num_bytes: int) -> bool:
        """Whether a chunk of this size can be kept."""
        return num_bytes <= self._max_bytes

    def open(self, name: str, num_bytes: int, fetch: Callable[[], bytes]) -> OpenChunk:
        """The chunk `name`. Waits for whoever is fetching it, or fetches it.

        Args:
            name: as `chunk_name` makes it.
            num_bytes: of the chunk, which must fit. A file of another size is thrown away.
            fetch: gets the bytes; what it raises is passed on.
        """
        while True:
            if chunk := self._find(name, num_bytes):
                return chunk
            with self._fetching(name, wait=True) as temporary:
                if temporary is not None:
                    return self._find(name, num_bytes) or self._add(name, fetch(), temporary)

    def prepare(self, name: str, num_bytes: int, fetch: Callable[[], bytes]) -> None:
        """Fetch the chunk `name`, unless it is there or somebody is fetching it. Waits for nobody."""
        if self._find(name, num_bytes) is None:
            with self._fetching(name, wait=False) as temporary:
                if temporary is not None and self._find(name, num_bytes) is None:
                    self._add(name, fetch(), temporary)

    def discard(self, name: str, chunk: OpenChunk) -> None:
        """Throw away the file of `chunk`, whose content is wrong. Another file that has its place by now stays."""
        path = self._path(name)
        with self._total() as total, suppress(OSError):  # gone, or of a network file system that has forgotten it
            found = path.stat()
            if os.path.samestat(found, os.fstat(chunk.descriptor)):
                path.unlink()
                total.add(-found.st_size)

    def clean(self) -> None:
        """Remove what killed processes left half-fetched."""
        with self._total() as total:
            for file in files(self._folder / "fetching"):
                total.add(-(remove_abandoned(Path(file.path)) or 0))

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _find(self, name: str, num_bytes: int) -> OpenChunk | None:
        with self._named_errors():
            try:
                chunk = OpenChunk(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))
                found = os.fstat(chunk.descriptor).st_size
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                return None
        if found != num_bytes:  # a power cut may leave a renamed file empty
            self.discard(name, chunk)
            return None
        with suppress(OSError):  # only the order of eviction depends on it
            os.utime(chunk.descriptor)
        return chunk

    def _add(self, name: str, content: bytes, temporary: Path) -> OpenChunk:
        """Write the chunk into `temporary`, within the bound, and rename it into place."""
        try:
            return self._write(name, content, temporary)
        except FullDiskError:  # others use the disk too
            with self._total() as total:
                total.set(self._evict(self._evict(self._max_bytes) // 2))
            return self._write(name, content, temporary)

    def _write(self, name: str, content: bytes, temporary: Path) -> OpenChunk:
        path = self._path(name)
        with self._named_errors():
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            chunk = OpenChunk(descriptor)
            with self._total() as total:
                if total.value + len(content) > self._max_bytes:
                    total.set(self._evict(min(self._kept_after_eviction, self._max_bytes - len(content))))
                total.add(len(content) - os.fstat(descriptor).st_size)  # a killed process may have left it
                os.ftruncate(descriptor, len(content))  # whoever counts anew meanwhile counts it in full
            try:
                write(descriptor, content)
                path.parent.mkdir(exist_ok=True)
                temporary.rename(path)
            except BaseException:
                with self._total() as total:
                    if is_same(descriptor, temporary):
                        os.ftruncate(descriptor, 0)  # it stays, for it is locked by its name
                        total.add(-len(content))
                raise
        return chunk

    @property
    def _kept_after_eviction(self) -> int:
        return int(self._max_bytes * _KEPT_AFTER_EVICTION)

    def _evict(self, goal: int) -> int:
        """Remove chunks until there are `goal` bytes at most. Returns those that are left. The total must be held."""
        for file in files(self._folder / "fetching"):
            remove_abandoned(Path(file.path))
        fetching = [about(file) for file in files(self._folder / "fetching")]
        folders = [Path(folder.path) for folder in files(self._folder) if len(folder.name) == 2]
        chunks = [about(file) for folder in folders for file in files(folder)]
        count = sum(num_bytes for _, num_bytes, _ in fetching + chunks)
        for _, num_bytes, path in sorted(chunks):
            if count <= goal:
                break
            Path(path).unlink(missing_ok=True)
            count -= num_bytes
        return count

    @contextmanager
    def _fetching(self, name: str, wait: bool) -> Iterator[Path | None]:
        """Be the one who fetches `name`, into the file that is given. None: somebody else was, or is, at it."""
        path = self._folder / "fetching" / name
        with self._named_errors():
            descriptor = open_or_make(path)
        held: bool | None = False
        try:
            held = take_lock(descriptor, self._folder, wait)
            if held is None:
                path.unlink(missing_ok=True)
                path = path.with_name(f"{name}.{os.urandom(8).hex()}")  # nobody else's
            yield path if held is None or (held and is_same(descriptor, path)) else None
        finally:
            # Not renamed into place: what we hold, nobody else renames or removes.
            if held is None or (held and is_same(descriptor, path)):
                path.unlink(missing_ok=True)
            close_unforked(descriptor)

    @contextmanager
    def _total(self) -> Iterator[Total]:
        """The count of bytes, held alone."""
        with self._named_errors():
            descriptor = open_or_make(self._folder / "total")
            try:
                take_lock(descriptor, self._folder, wait=True)
                total = Total(descriptor)
                if total.value < 0:
                    total.set(self._evict(self._kept_after_eviction))
                yield total
            finally:
                close_unforked(descriptor)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = FullDiskError if error.errno in _FULL else ConfigError
            raise kind(
                f"data.cache_dir: {self._folder}: chunks of remote shards cannot be kept here ({error.strerror}); give "
                "a folder on a local disk with room, or lower data.cache_gib"
            ) from None
