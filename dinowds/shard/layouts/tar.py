"""One tar a cohort, plain or compressed, or one zip."""

from __future__ import annotations

import stat
from pathlib import Path

from dinowds.errors import SourceError

from ..source import Request, Source, SourceFile, path_text
from ..tarheader import BLOCK, is_header
from . import nothing_known

NAME = "tar"

SUFFIXES = (".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".tbz", ".txz", ".tar")
_COMPRESSED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}

facts = nothing_known


def recognises(path: Path) -> bool:
    """Whatever is no folder: what it lacks to be a tar is then said."""
    return path.exists() and not path.is_dir()


def open_source(path: Path, request: Request) -> Source:
    """One file; the cohort is the tar's name without its suffix."""
    file = open_tar_file(path)
    return Source(request.text, request.cohort or tar_cohort(path_text(path.name)), NAME, (file,))


def open_tar_file(path: Path) -> SourceFile:
    """Look at a tar's first bytes. Raises SourceError where it is none."""
    found, text = path.stat(), path_text(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{text}: is neither a file nor a folder")
    with open(path, "rb") as stream:
        start = stream.read(BLOCK)
    if start.startswith(b"PK\x03\x04"):
        return SourceFile(text, path, "zip", "", found.st_size, found.st_mtime_ns)
    packing = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), "")
    if not packing:
        _check_start(text, start)
    return SourceFile(text, path, "tar", packing, found.st_size, found.st_mtime_ns)


def tar_cohort(name: str) -> str:
    """'a.tar.gz' → 'a'."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _check_start(path: str, start: bytes) -> None:
    if not start:
        raise SourceError(f"{path}: is empty; give a tar with images")
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise SourceError(f"{path}: is compressed with zstd, which is not read; decompress it first: zstd -d {path}")
    if len(start) == BLOCK and not is_header(start) and any(start):
        raise SourceError(f"{path}: is not a tar; give tars (plain, gz, bz2 or xz), zips or folders of images")
    if len(start) < BLOCK:
        raise SourceError(f"{path}: is not a tar ({len(start)} bytes); give tars or folders of images")
