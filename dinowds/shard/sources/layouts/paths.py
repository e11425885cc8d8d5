"""A list of image files: a CSV or Parquet file with a column of paths, and whatever else is known of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dinowds.errors import SourceError
from dinowds.shard.records import decode_name
from dinowds.shard.sources.images import IMAGE_EXTENSIONS
from dinowds.shard.sources.layouts.tables import integers, line_of, read_columns, strings
from dinowds.shard.sources.listing import NOT_AN_IMAGE_NAME
from dinowds.shard.sources.source import Items, Request, Source, SourceFile, path_text, source_file
from dinowds.shard.sources.tarscan import DIRECTORY

NAME = "paths"

_SUFFIXES = (".csv", ".tsv", ".parquet")
_PATH = ("path", "image_path", "file_path", "file", "filename", "file_name", "image")
_TEXTS = {"slide": ("slide", "slide_id"), "label": ("label",), "cohort": ("cohort",)}
_NUMBERS = {"x": ("x",), "y": ("y",)}
_BATCH = 1 << 16
_OTHERS = ((stat.S_ISLNK, "symbolic link"), (stat.S_ISDIR, DIRECTORY))
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def recognises(path: Path) -> bool:
    """Any file with the name of a table."""
    return path.is_file() and path.suffix.lower() in _SUFFIXES


def open_source(path: Path, request: Request) -> Source:
    """The list's name is the cohort. The one file is the deepest folder that holds all images."""
    listed = source_file(path, "sidecar")
    low = high = b""
    for paths in _absolute(path, _read_paths(listed)):
        low, high = min([low, *paths] if low else paths), max(high, *paths)
    if not low:
        raise SourceError(f"{listed.path}: lists nothing; expected a path a line")
    # The folders that the first and the last of all in order have in common, all have in common.
    folder = Path(os.fsdecode(os.path.commonpath([low.rpartition(b"/")[0] + b"/", high.rpartition(b"/")[0] + b"/"])))
    file = SourceFile(path_text(folder), folder, "folder")
    cohort = request.cohort or path_text(path.stem)
    return Source(request.text, cohort, NAME, (file,), (listed,))


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:  # noqa: ARG001
    """The images of the list, in its order, with its columns slide, label, cohort, x and y.

    Raises SourceError for files that are not there, a file that is listed twice, and an x or y that is no integer.
    """
    (listed,) = source.sidecars
    column = _read_paths(listed)
    start = len(os.fsencode(source.files[position].file).rstrip(b"/")) + 1
    names, sizes, left_out = _look_at_all(_absolute(listed.file, column), start, listed.path)
    _check_once(names, listed.path)
    taken = np.ones(len(names), bool)
    taken[[row for row, _ in left_out]] = False
    quarantine = [(row, names[row].as_py(), reason) for row, reason in left_out]
    images = pa.array(taken)
    return Items(names.filter(images), np.flatnonzero(taken), sizes[taken], _read_facts(listed, images), quarantine)


def _read_paths(listed: SourceFile) -> Any:
    table = read_columns(listed.file, listed.path, {"path": _PATH})
    if "path" not in table.column_names:
        raise SourceError(f"{listed.path}: has no column of paths; expected one named {', '.join(_PATH)}")
    return table["path"]


def _read_facts(listed: SourceFile, images: Any) -> Any:
    table = read_columns(listed.file, listed.path, {"path": _PATH, **_TEXTS, **_NUMBERS})
    columns = {}
    for name in table.column_names:
        if name in _TEXTS:
            columns[name] = strings(table[name], name, listed.path).cast(pa.string())
        elif name in _NUMBERS:
            columns[name] = integers(table[name], name, listed.path)
    return pa.table(columns).filter(images) if columns else None


def _absolute(listed: Path, column: Any) -> Iterator[list[bytes]]:
    """The paths of a list in batches; relative ones begin at the list's folder."""
    base = os.fsencode(listed.absolute().parent)
    row = 0
    for chunk in column.chunks:
        for start in range(0, len(chunk), _BATCH):
            paths = chunk[start : start + _BATCH].to_pylist()
            if None in paths:
                line = line_of(row + paths.index(None))
                raise SourceError(f"{path_text(listed)}: line {line}: has no path; expected one a line")
            yield [os.path.normpath(os.path.join(base, path)) for path in paths]  # noqa: PTH118 - bytes
            row += len(paths)


def _look_at_all(
    batches: Iterator[list[bytes]], start: int, text: str
) -> tuple[Any, npt.NDArray[np.int64], list[tuple[int, str]]]:
    """Names [N] (the paths from `start` on), sizes [N], and (row, reason) of what is no image file."""
    names, sizes, left_out, absent = [pa.array([], pa.large_binary())], [], [], []
    row = 0
    for paths in batches:
        found = np.zeros(len(paths), np.int64)
        for index, path in enumerate(paths):
            size, reason = _look_at(path)
            found[index] = size
            if size < 0:
                absent.append((line_of(row + index), path))
            elif reason:
                left_out.append((row + index, reason))
        names.append(pa.array([path[start:] for path in paths], pa.large_binary()))
        sizes.append(found)
        row += len(paths)
    if absent:
        line, path = absent[0]
        raise SourceError(
            f"{text}: {len(absent)} of the {row} files that it lists are not there, the first is {decode_name(path)} "
            f"(line {line}); relative paths begin at the list's folder"
        )
    return pa.concat_arrays(names), np.concatenate(sizes), left_out


def _look_at(path: bytes) -> tuple[int, str]:
    """Bytes of a file, -1 where there is none; and why it is no image file."""
    try:
        found = os.lstat(path)
    except ValueError:  # a NUL byte
        return -1, ""
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return -1, ""
    if not stat.S_ISREG(found.st_mode):
        return 0, next((kind for is_kind, kind in _OTHERS if is_kind(found.st_mode)), "device or pipe")
    is_image = path.rpartition(b".")[2].lower() in IMAGE_EXTENSIONS
    return found.st_size, "" if is_image else NOT_AN_IMAGE_NAME


def _check_once(names: Any, text: str) -> None:
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(name.as_py()) for name in names), np.uint64, len(names))
    order = np.argsort(hashes, kind="stable")
    for index in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]).tolist():
        first, second = (int(row) for row in order[index : index + 2])
        if names[first] == names[second]:
            raise SourceError(
                f"{text}: line {line_of(second)}: {decode_name(names[second].as_py())} is also on line "
                f"{line_of(first)}; list each file once"
            )
