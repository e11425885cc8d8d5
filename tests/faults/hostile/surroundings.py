"""What holds of every command on hostile input: nothing outside its output changes, and what it says is plain text."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Collection
from pathlib import Path

from tests.faults.commands import Ended

_SMALL = 1 << 20
MEMORY = 400 << 20
"""Bytes that a command may take more than on a harmless input."""


def listing(root: Path, but: Collection[Path] = ()) -> dict[str, tuple[object, ...]]:
    """Everything below `root` but what lies below one of `but`: its kind, size, time, and content if that is small."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = [name for name in names if here / name not in but]
        for name in [*names, *files]:
            path = here / name
            if path in but:
                continue
            about = path.lstat()
            is_file = stat.S_ISREG(about.st_mode)
            content = b"" if not is_file or about.st_size > _SMALL else hashlib.sha256(path.read_bytes()).digest()
            times = (about.st_size, about.st_mtime_ns) if is_file else ()
            found[str(path)] = (about.st_mode, *times, content)
    return found


def control_characters(text: str) -> list[str]:
    """What could steer a terminal or turn text around: all but line feeds that is no printable character."""
    return [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))]


def check_ended(ended: Ended, harmless: int) -> None:
    """It is done, or has ended with one line that says why; bounded in time and memory.

    Args:
        harmless: bytes of memory that the command takes on a harmless input.
    """
    assert ended.status in (0, 1), ended
    assert control_characters(ended.out + ended.errors) == [], ended
    errors = [line for line in ended.errors.splitlines() if line.startswith("dinowds: error: ")]
    assert len(errors) == ended.status, ended
    assert "Traceback" not in ended.errors, ended
    assert all(len(line) < 4000 for line in errors), ended
    assert ended.peak <= harmless + MEMORY, (ended.peak >> 20, harmless >> 20, ended)
