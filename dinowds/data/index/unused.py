"""What a cache folder need not keep for ever."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from dinowds.files import TEMPORARY_SUFFIX, remove_unlocked

_SUFFIXES = (".index", ".parquet", ".npy")
_KEPT_DAYS = 30
_KEPT_UNFINISHED_DAYS = 1
_DAY = 24 * 60 * 60


def mark_used(path: Path) -> None:
    """Set a file's time of access to now, which many file systems do not do by themselves."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def remove_unused(folder: Path) -> None:
    """Remove indexes and copies of remote files that were not used for 30 days, and what killed writers left: at once,
    or after a day on a file system that has no locks.

    Who has a file open or mapped keeps it.
    """
    for path in folder.iterdir():
        is_temporary = path.suffix == TEMPORARY_SUFFIX
        days = _KEPT_UNFINISHED_DAYS if is_temporary else _KEPT_DAYS
        if is_temporary or path.suffix in _SUFFIXES:
            with suppress(OSError):  # of another user, or another process was faster
                if is_temporary:
                    remove_unlocked(path)
                about = path.stat()
                if max(about.st_atime, about.st_mtime) < time.time() - days * _DAY:
                    path.unlink()
