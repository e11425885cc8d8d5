"""What a dataset is made from: the inputs of the command, and the files that each of them is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dinowds.errors import SourceError
from dinowds.files import reading_advice
from dinowds.shard.records import decode_name

FileKind = Literal["tar", "zip", "folder", "tensors", "sidecar"]


class Origin(NamedTuple):
    """Where a remote file is fetched from."""

    url: str
    version: str
    """What its store says that changes with its content; '' where it says nothing."""


@dataclass(frozen=True)
class SourceFile:
    """One file that payloads are read from by place, or a folder of image files."""

    path: str
    """As it was given or found, as text: in messages, and in the column `source`."""
    file: Path
    """What is opened on this host."""
    kind: FileKind
    """`folder`: each payload is a file below it. `tensors`: a folder of .pt files. `sidecar`: has no payloads."""
    packing: str = ""
    """What has to be undone before payloads can be read by place: 'gz', 'bz2', 'xz' of a tar; '' for nothing."""
    num_bytes: int = 0
    mtime_ns: int = 0
    """Size and time of a file; 0 for a folder."""
    prefix: str = ""
    """Goes before members' names in keys, such as 'slide_1/', where names differ within their file alone."""
    slide: str | None = None
    """Of all its members, where the layout knows it."""
    origin: Origin | None = None
    """Of a remote file, which has to be fetched: nothing lies at `file` yet."""


@dataclass(frozen=True)
class Source:
    """One input of the command."""

    path: str
    """As it was given, as text."""
    cohort: str
    layout: str
    files: tuple[SourceFile, ...]
    sidecars: tuple[SourceFile, ...] = ()
    """Small files that slides, places or labels were read from: a change of one is a change of the source."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What is known of all its images, such as {'mpp': 0.5}."""
    about: dict[str, Any] = field(default_factory=dict)
    """What goes into the manifest's metadata as it is."""


@dataclass(frozen=True)
class Request:
    """What the command says about a source."""

    text: str
    """As it was given."""
    cohort: str | None = None
    split: str | None = None
    fold: str | None = None


class Items(NamedTuple):
    """The images of one file [N] in source order, where a layout does not take simply all image files.

    `names` is a large_binary Arrow array: the members' names as stored. `places` and `sizes` are int64 [N]: byte range
    in the file, or order in the walk of a folder. `facts`: see `layouts.Layout.facts`. `quarantine` has
    (place, name, reason).
    """

    names: Any
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    facts: Any = None
    quarantine: Sequence[tuple[int, bytes, str]] = ()
    skipped: dict[str, int] = {}  # noqa: RUF012 - never written to


def source_file(file: Path, kind: FileKind, **fields: Any) -> SourceFile:
    """A SourceFile of what lies at `file` now. Raises OSError where nothing does."""
    found = file.stat()
    text = path_text(file)
    if stat.S_ISDIR(found.st_mode):
        return SourceFile(text, file, kind, **fields)
    return SourceFile(text, file, kind, num_bytes=found.st_size, mtime_ns=found.st_mtime_ns, **fields)


def path_text(path: Path | str) -> str:
    """A path as text; bytes that are not UTF-8 become backslash escapes."""
    return decode_name(os.fsencode(path))


def check_unchanged(sources: Sequence[Source]) -> None:
    """Raises SourceError where a file is not the one that was opened."""
    for source in sources:
        for file in (*source.files, *source.sidecars):
            if not is_unchanged(file):
                raise changed(file.path)


def is_unchanged(file: SourceFile) -> bool:
    """Whether a file is still the one that was opened; True for what has no time: folders and remote files."""
    if not file.mtime_ns:
        return True
    with readable(file.path):
        found = file.file.stat()
    return (found.st_size, found.st_mtime_ns) == (file.num_bytes, file.mtime_ns)


def changed(path: str) -> SourceError:
    """The error of a source that someone writes to."""
    return SourceError(
        f"{path}: changed while it was read; run the command again, with --overwrite, once nothing writes to it"
    )


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of the system about `path`, or about a file below it, into SourceError."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file or folder") from None
    except OSError as error:
        reason = f"({error.strerror or error}){reading_advice(error)}"
        raise SourceError(f"{_below(path, error)}: cannot be read {reason}") from None


def _below(path: str, error: OSError) -> str:
    """The file that an error names, if it is one below `path`."""
    if isinstance(error.filename, str | bytes) and os.path.lexists(error.filename):
        named = path_text(os.fsdecode(error.filename))
        return named if named.startswith(f"{path}/") else path
    return path
