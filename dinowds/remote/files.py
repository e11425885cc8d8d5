"""Remote files: read and written whole, again and again, or a clear error.

Filesystems are fsspec's. Its asynchronous ones do not outlive a fork, so they are made when they are first used in a
process. All retrying is done here, so that an error can say how often it was tried.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from dinowds.errors import StorageError
from dinowds.remote.faults import RangeIgnored, ShortBody, is_transient, status_of, words
from dinowds.remote.filesystems import WITH_BUCKETS, check_bucket, make_filesystem, place_of
from dinowds.remote.ranged import read_range, size_of
from dinowds.remote.urls import HTTP, is_remote, scheme_of, shown

__all__ = ["MissingFileError", "RemoteFiles", "RetryOptions", "ShortFileError", "is_remote", "shown"]

_MOST_AT_ONCE = 1 << 30
"""Bytes of a file that is read whole without its size being known: manifests and the like."""

T = TypeVar("T")


class MissingFileError(StorageError, FileNotFoundError):
    """There is no such remote file."""


class ShortFileError(StorageError):
    """The file ends before the range that was asked for does."""


@dataclass(frozen=True)
class RetryOptions:
    """How long to go on. Seconds; waits double from the first to the longest and are cut at random to half or more."""

    tries: int = 6
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    timeout_s: float = 30.0
    """Of one try; on top of it comes the time of its bytes at the slowest rate."""
    slowest_bytes_per_s: float = 2.0**18
    listing_timeout_s: float = 600.0
    """Of one try to list a folder: a page of 1000 names takes up to a second, and there may be hundreds."""


class RemoteFiles:
    """Reads and writes remote files. Safe to share between threads, to pickle and to carry over a fork.

    Every method raises `StorageError`, after all tries or at once where trying again cannot help; and
    `MissingFileError`, which is a FileNotFoundError too, where there is no such file. A range that is not all in the
    file is a `ShortFileError`.
    """

    def __init__(self, options: RetryOptions = RetryOptions()) -> None:
        self._options = options
        self._filesystems: dict[tuple[int, str, bool], Any] = {}

    def __reduce__(self) -> tuple[type[RemoteFiles], tuple[RetryOptions]]:
        return (RemoteFiles, (self._options,))

    def read(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file, exactly; to its end where `stop` is None (asks for its size first, and takes
        no more than 1 GiB).
        """
        if stop is None:
            stop = self.size(url)
            if stop - start > _MOST_AT_ONCE:
                raise StorageError(f"{shown(url)}: has {stop} bytes, expected at most 1 GiB; give another file")
        if stop <= start:
            return b""
        what = f"{shown(url)} [{start}, {stop})"

        def attempt() -> bytes:
            return self._read_once(url, what, start, stop)

        return self._retried(what, "read", attempt)

    def size(self, url: str) -> int:
        """Bytes of a file."""
        return self._retried(shown(url), "read", lambda: self._size_once(url))

    def exists(self, url: str) -> bool:
        """Whether there is such a file. A "folder" of an object store is none."""
        try:
            self.size(url)
        except MissingFileError:
            return False
        return True

    def names(self, url: str) -> list[str]:
        """Sorted names of what lies directly in a "folder"; empty where nothing does."""
        folder = url.rstrip("/") + "/"

        def attempt() -> set[str]:
            filesystem, path = self._filesystem(folder if scheme_of(url) in HTTP else url)
            seconds = self._options.listing_timeout_s
            try:
                found: list[str] = self._call(filesystem, "ls", path, detail=False, seconds=seconds)
            except (FileNotFoundError, NotADirectoryError):
                return set()
            return {name.rstrip("/") for name in found} - {path.rstrip("/")}  # stores can have a file named 'FOLDER/'

        paths = self._retried(shown(folder), "listed", attempt)
        return sorted({path.rpartition("/")[2] for path in paths} - {""})

    def has_bucket(self, url: str) -> bool:
        """Whether the bucket of `url` is there; True where that cannot be known without reading from it."""
        if scheme_of(url) not in WITH_BUCKETS:
            return True
        bucket = "/".join(url.split("/")[:3])

        def attempt() -> bool:
            filesystem, path = self._filesystem(bucket)
            try:
                self._call(filesystem, "info", path)
            except FileNotFoundError:
                return False
            return True

        try:
            return self._retried(shown(bucket), "found", attempt)
        except StorageError:  # it may be allowed to write to, but not to look at
            return True

    def upload(self, path: Path, url: str) -> None:
        """Write a whole file, in parts where it is big; its size is checked afterwards. Replaces what is there."""
        num_bytes = path.stat().st_size

        def attempt() -> None:
            filesystem, target = self._filesystem(url, patient=True)
            self._call(filesystem, "put_file", str(path), target, seconds=self._seconds(num_bytes))
            if (found := self._size_once(url)) != num_bytes:
                raise ShortBody(f"{found} of {num_bytes} bytes arrived")

        self._written(url, attempt)

    def write(self, url: str, content: bytes) -> None:
        """Write a whole file. Replaces what is there."""

        def attempt() -> None:
            filesystem, target = self._filesystem(url, patient=True)
            self._call(filesystem, "pipe_file", target, content, seconds=self._seconds(len(content)))

        self._written(url, attempt)

    def remove(self, url: str) -> None:
        """Remove a file; one that is not there is no error."""

        def attempt() -> None:
            filesystem, target = self._filesystem(url)
            try:
                self._call(filesystem, "rm_file", target)
            except FileNotFoundError:
                return

        self._written(url, attempt)

    def _written(self, url: str, attempt: Callable[[], None]) -> None:
        if scheme_of(url) in HTTP:
            raise StorageError(f"{shown(url)}: cannot be written, http is read only; give s3://, gs:// or a folder")
        self._retried(shown(url), "written", attempt)

    def _retried(self, what: str, verb: str, attempt: Callable[[], T]) -> T:
        options = self._options
        wait = options.first_wait_s
        for number in range(1, options.tries + 1):
            try:
                return attempt()
            except StorageError:
                raise
            except FileNotFoundError:
                raise MissingFileError(f"{what}: no such file or bucket; check the URL") from None
            except Exception as error:
                if not is_transient(error) or number == options.tries:
                    tries = f"after {number} {'try' if number == 1 else 'tries'}"
                    reason, advice = words(error)
                    raise StorageError(f"{what}: cannot be {verb} {tries} ({reason}); {advice}") from None
            time.sleep(wait * random.SystemRandom().uniform(0.5, 1.0))
            wait = min(2 * wait, options.longest_wait_s)
        raise AssertionError("tries is at least 1")

    def _read_once(self, url: str, what: str, start: int, stop: int) -> bytes:
        filesystem, path = self._filesystem(url)
        length = stop - start
        seconds = self._seconds(length)
        try:
            if scheme_of(url) in HTTP:
                content = self._run(filesystem, read_range(filesystem, path, start, stop), seconds)
            else:
                content = self._call(filesystem, "cat_file", path, start=start, end=stop, seconds=seconds)
            if len(content) > length:
                raise RangeIgnored
            if len(content) < length:
                raise ShortBody(f"{len(content)} of {length} bytes came")
        except RangeIgnored:
            raise StorageError(
                f"{what}: the server ignores ranges and sends the whole file, or another part; use one that serves "
                "ranges, or copy the dataset to a local disk"
            ) from None
        except Exception as error:
            # A file that ends early gives a short body or answer 416. Only then is its size asked for.
            ends_early = isinstance(error, ShortBody) or status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            if ends_early and (found := self._size_once(url)) < stop:
                raise ShortFileError(f"{what}: the file has only {found} bytes; restore it") from None
            raise
        return bytes(content)

    def _size_once(self, url: str) -> int:
        filesystem, path = self._filesystem(url)
        if scheme_of(url) in HTTP:
            size = self._run(filesystem, size_of(filesystem, path), self._seconds(0))
        else:
            about = self._call(filesystem, "info", path)
            if about.get("type") == "directory":
                raise FileNotFoundError(path)
            size = about.get("size")
        if size is None:
            raise StorageError(f"{shown(url)}: the server does not say how long the file is; use another server")
        return int(size)

    def _filesystem(self, url: str, patient: bool = False) -> tuple[Any, str]:
        """The filesystem of this process for `url`, and the path in it. A patient one has retries of its own, which
        big uploads need: there a part is tried again, not the whole file."""
        check_bucket(url)
        key = (os.getpid(), place_of(url), patient)
        if key not in self._filesystems:
            self._filesystems.setdefault(key, make_filesystem(url, patient))
        filesystem = self._filesystems[key]
        return filesystem, filesystem._strip_protocol(url)

    def _seconds(self, num_bytes: int) -> float:
        return self._options.timeout_s + num_bytes / self._options.slowest_bytes_per_s

    def _call(self, filesystem: Any, name: str, *args: Any, seconds: float | None = None, **options: Any) -> Any:
        if not filesystem.async_impl:
            return getattr(filesystem, name)(*args, **options)
        seconds = self._seconds(0) if seconds is None else seconds
        return self._run(filesystem, getattr(filesystem, f"_{name}")(*args, **options), seconds)

    def _run(self, filesystem: Any, coroutine: Any, seconds: float) -> Any:
        """Run on the filesystem's loop; what takes too long, or is interrupted here by Ctrl-C, is cancelled there."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, seconds), filesystem.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
