"""One tar a cohort, plain or compressed, or one zip. A tar may be remote."""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dinowds.data.location import split_subset
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.errors import SourceError
from dinowds.remote.files import MissingFileError, shown
from dinowds.shard.sources.fetching import Origins
from dinowds.shard.sources.layouts import nothing_known
from dinowds.shard.sources.source import FileKind, Request, Source, SourceFile, path_text
from dinowds.shard.tarheader import BLOCK, is_header

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


def open_remote(request: Request) -> Source:
    """A tar at a URL, which is fetched when it is scanned; the cohort is its name without its suffix.

    Raises:
        SourceError: there is no tar.
        StorageError: the store cannot be read.
    """
    url, text, files = request.text, shown(request.text), Origins()
    try:
        origin, num_bytes = files.look(url)
        start = files.read(url, 0, min(BLOCK, num_bytes))
    except MissingFileError as error:
        if files.exists(f"{split_subset(url)[0].rstrip('/')}/{MANIFEST_NAME}"):
            raise SourceError(f"{text}: is a dataset, which must be local to be sharded anew; copy it first") from None
        raise SourceError(str(error)) from None
    kind, packing = _kind(text, start)
    if kind != "tar":
        raise SourceError(f"{text}: is a {kind}, which must be local; copy it to a local disk first")
    name = urlsplit(text).path.rpartition("/")[2]
    file = SourceFile(text, Path(text), kind, packing, num_bytes, origin=origin)
    cohort = request.cohort or tar_cohort(unquote(name) if url.lower().startswith("http") else name)
    return Source(text, cohort, NAME, (file,))


def open_tar_file(path: Path) -> SourceFile:
    """Look at a tar's first bytes. Raises SourceError where it is none."""
    found, text = path.stat(), path_text(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{text}: is neither a file nor a folder")
    with open(path, "rb") as stream:
        start = stream.read(BLOCK)
    kind, packing = _kind(text, start)
    return SourceFile(text, path, kind, packing, found.st_size, found.st_mtime_ns)


def tar_cohort(name: str) -> str:
    """'a.tar.gz' → 'a'."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _kind(path: str, start: bytes) -> tuple[FileKind, str]:
    """What a file is by its first block, and its packing."""
    if start.startswith(b"PK\x03\x04"):
        return "zip", ""
    packing = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), "")
    if not packing:
        _check_start(path, start)
    return "tar", packing


def _check_start(path: str, start: bytes) -> None:
    if not start:
        raise SourceError(f"{path}: is empty; give a tar with images")
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise SourceError(f"{path}: is compressed with zstd, which is not read; decompress it first: zstd -d {path}")
    if len(start) == BLOCK and not is_header(start) and any(start):
        raise SourceError(f"{path}: is not a tar; give tars (plain, gz, bz2 or xz), zips or folders of images")
    if len(start) < BLOCK:
        raise SourceError(f"{path}: is not a tar ({len(start)} bytes); give tars or folders of images")
