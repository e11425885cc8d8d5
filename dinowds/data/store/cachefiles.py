"""Files that the processes of a host share: locks on them, and a number in one."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dinowds.files import NO_LOCKS, close_unforked, open_unforked

_ABANDONED_AFTER_S = 3600.0  # where there are no locks to tell
_warned: dict[Path, object] = {}  # once per process


class Total:
    """The number in a file that is locked; negative where the file holds none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        content = os.pread(descriptor, 32, 0)
        self.value = int(content) if content.strip().isdigit() else -1

    def set(self, value: int) -> None:
        """Write another number."""
        self.value = max(0, value)
        os.pwrite(self._descriptor, b"%020d\n" % self.value, 0)

    def add(self, num_bytes: int) -> None:
        """Write the sum."""
        if num_bytes:
            self.set(self.value + num_bytes)


def open_or_make(path: Path) -> int:
    """A descriptor for a lock, which forked children do not get; makes the file, and its folder, if it is missing."""
    try:
        return open_unforked(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open_unforked(path)


def take_lock(descriptor: int, folder: Path, wait: bool) -> bool | None:
    """Whether the file is locked by us now; None where the file system has no locks. Only waits with `wait`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks(folder)
        return None
    return True


def _warn_of_no_locks(folder: Path) -> None:
    mine = object()
    if _warned.setdefault(folder, mine) is mine:
        logging.getLogger(__name__).warning(
            "data.cache_dir: %s: this file system has no locks; processes may fetch the same chunks and pass "
            "data.cache_gib; give a folder on a local disk",
            folder,
        )


def is_same(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def remove_abandoned(path: Path) -> int | None:
    """Remove a file in `fetching` if nobody is at it. Returns its bytes, None where it stays or is gone already."""
    try:
        descriptor = open_unforked(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        held = take_lock(descriptor, path.parent.parent, wait=False)
        about = os.fstat(descriptor)
        if held is None:
            held = time.time() - about.st_mtime > _ABANDONED_AFTER_S
        if not held or not is_same(descriptor, path):
            return None
        path.unlink()
        return about.st_size
    finally:
        close_unforked(descriptor)


def files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder that may be missing."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def about(file: os.DirEntry[str]) -> tuple[int, int, str]:
    """When it was used last, bytes, path."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0, file.path)
    return (found.st_mtime_ns, found.st_size, file.path)


def write(descriptor: int, content: bytes) -> None:
    """Write all of it from the start of the file."""
    view = memoryview(content)
    while view:
        view = view[os.pwrite(descriptor, view, len(content) - len(view)) :]
