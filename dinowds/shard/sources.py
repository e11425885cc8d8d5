"""The inputs of `dinowds shard`: what each one is, and the list of its images as columns."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from dinowds.errors import SourceError
from dinowds.remote.files import is_remote

from .listing import NOT_AN_IMAGE_NAME, Collector, Listing
from .records import decode_name
from .tarheader import BLOCK, is_header
from .tarscan import DIRECTORY, FILE, FileData, Member, TarData, scan_tar

SourceKind = Literal["tar", "compressed", "folder"]

_TAR_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".tbz", ".txz", ".tar")
_COMPRESSED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}


@dataclass(frozen=True)
class Source:
    """One input. `path` is its file's path as it was given, as text; size and time are of a tar, 0 for a folder.

    What payloads are read from has the place of an uncompressed tar as `file`, or the time of a folder's newest file.
    """

    file: Path
    path: str
    cohort: str
    kind: SourceKind
    compression: str
    num_bytes: int
    mtime_ns: int


def open_sources(paths: Sequence[Path | str]) -> list[Source]:
    """Look at each input once. Raises SourceError where one cannot be used, is given twice, or shares a cohort name."""
    if not paths:
        raise SourceError("no source given; give tars or folders of images")
    sources: list[Source] = []
    for path in paths:
        text = decode_name(os.fsencode(path))
        if is_remote(text):
            raise SourceError(f"{text}: sources must be local; copy it to a local disk first")
        with readable(text):
            sources.append(_open_source(Path(path), text))
    _check_given_once(sources)
    by_cohort: dict[str, str] = {}
    for source in sources:
        if other := by_cohort.get(source.cohort):
            raise SourceError(
                f"{source.path}: its cohort name {source.cohort!r} is also that of {other}; rename one of the two"
            )
        by_cohort[source.cohort] = source.path
    return sources


def check_unchanged(sources: Sequence[Source]) -> None:
    """Raises SourceError where a tar is not the one that `open_sources` saw."""
    for source in sources:
        if source.kind != "folder":
            with readable(source.path):
                found = source.file.stat()
            if (found.st_size, found.st_mtime_ns) != (source.num_bytes, source.mtime_ns):
                raise changed(source)


def changed(source: Source) -> SourceError:
    """The error of a source that someone writes to."""
    return SourceError(
        f"{source.path}: changed while it was read; run the command again, with --overwrite, once nothing writes to it"
    )


def list_source(source: Source, data: TarData | None, report: Callable[[int], None]) -> Listing:
    """List a source's images. `data` are the tar's bytes (None for a folder); `report` gets the members seen so far.

    Raises SourceError where the source cannot be read to its end or has no image.
    """
    times = _Times()
    with readable(source.path):
        if data is None:
            root = source.file
            collector = Collector(lambda name, _place, _size: (root / os.fsdecode(name)).read_bytes(), report)
            collector.take(_walk(root, times))
        else:
            collector = Collector(lambda _name, place, size: data.read(place, size), report)
            collector.take(scan_tar(data, source.path))
    listing = collector.finish(times.digest, times.newest_ns)
    if not len(listing.names):
        raise SourceError(f"{source.path}: {_why_no_image(source, listing, collector.extensions)}")
    return listing


@contextmanager
def open_tar(path: Path, source: str) -> Iterator[FileData]:
    """The bytes of an uncompressed tar. Raises SourceError, which names `source`, where it cannot be opened."""
    with readable(source):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FileData(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of the system about `path` into SourceError."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None


def _open_source(file: Path, text: str) -> Source:
    found = file.stat()
    if stat.S_ISDIR(found.st_mode):
        name = file.name if file.name not in ("", "..") else file.resolve().name
        return Source(file, text, decode_name(os.fsencode(name)) or "root", "folder", "", 0, 0)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{text}: is neither a file nor a folder")
    with open(file, "rb") as stream:
        start = stream.read(BLOCK)
    compression = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), "")
    if not compression:
        _check_tar_start(text, start)
    kind: SourceKind = "compressed" if compression else "tar"
    cohort = _tar_cohort(decode_name(os.fsencode(file.name)))
    return Source(file, text, cohort, kind, compression, found.st_size, found.st_mtime_ns)


def _check_given_once(sources: Sequence[Source]) -> None:
    """Neither links nor folders inside each other may bring a sample twice."""
    seen: dict[tuple[int, int], Source] = {}
    for source in sources:
        with readable(source.path):
            found = source.file.stat()
        other = seen.setdefault((found.st_dev, found.st_ino), source)
        if other is not source:
            raise SourceError(f"{source.path}: is given twice, also as {other.path}; give it once")
    folders = {source.file.resolve(): source for source in sources if source.kind == "folder"}
    for folder, source in folders.items():
        if outer := next((folders[parent] for parent in folder.parents if parent in folders), None):
            raise SourceError(f"{source.path}: is given twice, also in {outer.path}; give only one of the two")


def _check_tar_start(path: str, start: bytes) -> None:
    if not start:
        raise SourceError(f"{path}: is empty; give a tar with images")
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise SourceError(f"{path}: is compressed with zstd, which is not read; decompress it first: zstd -d {path}")
    if start.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path}: is a zip, which is not read; unpack it and give the folder")
    if len(start) == BLOCK and not is_header(start) and any(start):
        raise SourceError(f"{path}: is not a tar; give tars (plain, gz, bz2 or xz) or folders of images")
    if len(start) < BLOCK:
        raise SourceError(f"{path}: is not a tar ({len(start)} bytes); give tars or folders of images")


def _tar_cohort(name: str) -> str:
    for suffix in _TAR_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _why_no_image(source: Source, listing: Listing, extensions: Counter[bytes]) -> str:
    if archives := sum(extensions[suffix[1:].encode()] for suffix in _TAR_SUFFIXES):
        if source.kind == "folder":
            return f"has no image files, but {archives} tars: give those"
        return f"has no image files, but {archives} tars inside: take them out (tar -xf {source.path}) and give those"
    reasons = Counter(listing.quarantine["reason"].to_pylist())
    names = reasons.pop(NOT_AN_IMAGE_NAME, 0)
    found = [f"{count} .{decode_name(name)}" for name, count in extensions.most_common(3)] if names else []
    found += [f"{count} × {reason}" for reason, count in (reasons + Counter(listing.skipped)).most_common()]
    if source.kind != "folder" and not found:
        return "holds nothing; give a tar with images"
    what = "folder" if source.kind == "folder" else "tar"
    expected = "jpg, png, tif, webp, bmp, gif or jp2"
    said = ", ".join(found) or "nothing at all"
    return f"this {what} has no image files ({said}); expected names ending in {expected}"


class _Times:
    """When the files of a folder were last changed."""

    def __init__(self) -> None:
        self.digest = xxhash.xxh3_128()
        self.newest_ns = 0

    def add(self, mtime_ns: int) -> None:
        self.digest.update(mtime_ns.to_bytes(8, "big", signed=True))
        self.newest_ns = max(self.newest_ns, mtime_ns)


def _walk(root: Path, times: _Times) -> Iterator[Member]:
    """The files under a folder, sorted by name folder by folder; links are not followed. The place is the position.

    `times` gets each file's time of change.
    """
    pending: list[tuple[bytes, Iterator[os.DirEntry[bytes]]]] = [(b"", iter(_sorted_entries(os.fsencode(root))))]
    position = 0
    while pending:
        prefix, entries = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        name = prefix + entry.name
        if entry.is_symlink():
            yield "symbolic link", name, position, 0
        elif entry.is_dir(follow_symlinks=False):
            yield DIRECTORY, name, position, 0
            pending.append((name + b"/", iter(_sorted_entries(entry.path))))
        elif entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            times.add(found.st_mtime_ns)
            yield FILE, name, position, found.st_size
        else:
            yield "device or pipe", name, position, 0
        position += 1


def _sorted_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
