"""Small disks: real file systems in memory, of a size that can grow."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
ROOMY = 1 << 30
"""Bytes that are enough for every test."""


class Disk:
    """A mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: int) -> None:
        """Give it `size` bytes."""
        self._remount(f"size={size}")

    def read_only(self, is_read_only: bool = True) -> None:
        self._remount("ro" if is_read_only else "rw")

    def used(self) -> int:
        """Bytes that are taken."""
        about = os.statvfs(self.path)
        return (about.f_blocks - about.f_bfree) * about.f_frsize

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


@contextmanager
def disk(path: Path, size: int = ROOMY) -> Iterator[Disk]:
    """A disk of `size` bytes at `path`; the test is skipped where this user cannot mount one."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
