"""Lists of samples and slides that users bring, and which rows of an index they mean."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.errors import DatasetError

_SHOWN = 3
_BATCH_ROWS = 1 << 20  # Arrow hashes the whole list anew for each batch

_FORMS = ("key", "name in its source", "slide/file name", "slide/file name without extension", "file name",
          "file name without extension")  # fmt: skip


@dataclass(frozen=True)
class Entries:
    """A list as it was read."""

    path: Path
    names: tuple[str, ...]
    """Without doubles, in the order of the file."""
    sha256: str
    """Of the file."""

    def to_json(self) -> dict[str, Any]:
        """Of the file its name alone: the folders of whoever made a subset are nobody's concern."""
        name = os.fsencode(self.path.name).decode("utf-8", "backslashreplace")
        return {"file": name, "sha256": self.sha256, "entries": len(self.names)}


def read_entries(path: Path) -> Entries:
    """Read a list: UTF-8, one entry a line; empty lines and those that begin with '#' are skipped.

    Raises:
        DatasetError: it cannot be read, or holds nothing.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected a list, one entry a line") from None
    names = dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not names:
        raise DatasetError(f"{path}: holds no entry; expected one a line")
    return Entries(path, tuple(names), hashlib.sha256(content).hexdigest())


def find_samples(dataset: Dataset, entries: Entries) -> tuple[NDArray[np.int64], list[str]]:
    """The sample that each entry means, and notices.

    An entry is taken as the first of these that there is: a sample's key, its full name in its source, slide/file name,
    slide/file name without extension, file name, file name without extension.

    Returns:
        int64 [n]: ids, in no order; n is the number of entries that mean a sample.

    Raises:
        DatasetError: an entry means several samples, or none of the entries means any.
    """
    names = pa.array(entries.names, pa.string())
    ids = np.zeros((len(_FORMS), len(names)), np.int64)
    count = np.zeros((len(_FORMS), len(names)), np.int64)
    for start, rows in dataset.batches(["key", "source_name", "slide"], _BATCH_ROWS):
        for form, values in enumerate(_forms(rows)):
            entry = _positions(values, names)
            where = np.flatnonzero(entry >= 0)
            count[form] += np.bincount(entry[where], minlength=len(names))
            ids[form, entry[where]] = where + start  # of several, any: they are refused
    form = np.argmax(count > 0, axis=0)  # the first form that there is
    each = np.arange(len(names))
    matches = count[form, each]
    _refuse_ambiguous(entries, matches, form)
    return ids[form, each][matches > 0], missing_entries(entries, matches > 0, "sample")


def find_slides(dataset: Dataset, entries: Entries, chosen: NDArray[np.bool_]) -> list[str]:
    """Clear `chosen`, bool [samples], where a sample's slide is not listed; gives notices.

    An entry is a slide's name, in whatever cohort, or cohort/slide.

    Raises:
        DatasetError: none of the entries is a slide.
    """
    listed, count = match_slides(dataset, entries)
    chosen &= listed
    return missing_entries(entries, count > 0, "slide")


def match_slides(dataset: Dataset, entries: Entries) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which samples of the whole dataset are of a listed slide, bool [samples]; and of how many each entry is, int64
    [entries].
    """
    names = pa.array(entries.names, pa.string())
    count = np.zeros(len(names), np.int64)
    listed = np.zeros(int(dataset.first_ids[-1]), np.bool_)
    for start, rows in dataset.batches(["cohort", "slide"], _BATCH_ROWS):
        full = pc.binary_join_element_wise(rows["cohort"], rows["slide"], "/")
        for values in (rows["slide"], full):
            entry = _positions(values, names)
            listed[start : start + len(rows)] |= entry >= 0
            count += np.bincount(entry[entry >= 0], minlength=len(names))
    return listed, count


def _positions(values: Any, names: Any) -> NDArray[np.int32]:
    """Where each value stands among the names; -1 where it does not."""
    found: NDArray[np.int32] = pc.fill_null(pc.index_in(values, value_set=names), -1).to_numpy()
    return found


def _forms(rows: Any) -> list[Any]:
    name = rows["source_name"]
    file_name = _last(name, "/")
    stem = _without_extension(file_name)
    slide = rows["slide"]
    in_slide = [pc.binary_join_element_wise(slide, part, "/") for part in (file_name, stem)]
    return [rows["key"], name, *in_slide, file_name, stem]


def _last(values: Any, separator: str) -> Any:
    """What follows the last separator."""
    parts = pc.split_pattern(values.combine_chunks(), separator, max_splits=1, reverse=True)
    return parts.values.take(pc.subtract(parts.offsets[1:], 1))


def _without_extension(values: Any) -> Any:
    parts = pc.split_pattern(values, ".", max_splits=1, reverse=True)
    return parts.values.take(parts.offsets[:-1])


def _refuse_ambiguous(entries: Entries, matches: NDArray[np.int64], form: NDArray[np.intp]) -> None:
    ambiguous = np.flatnonzero(matches > 1)
    if not len(ambiguous):
        return
    worst = int(ambiguous[0])
    others = f", as are {len(ambiguous) - 1} more" if len(ambiguous) > 1 else ""
    better = "the sample's key" if form[worst] == 1 else "slide/file name, the full name in the source, or the key"
    raise DatasetError(
        f"{entries.path}: entry {entries.names[worst]!r} is the {_FORMS[form[worst]]} of {matches[worst]} "
        f"samples{others}; give {better}"
    )


def missing_entries(entries: Entries, is_known: NDArray[np.bool_], what: str) -> list[str]:
    """A notice of the entries that are not known, bool [entries]. Raises DatasetError if none is."""
    missing = np.flatnonzero(~is_known)
    if not len(missing):
        return []
    shown = ", ".join(repr(entries.names[place]) for place in missing[:_SHOWN].tolist())
    shown += ", …" if len(missing) > _SHOWN else ""
    if len(missing) == len(entries.names):
        raise DatasetError(f"{entries.path}: no entry is a {what} of the dataset ({shown})")
    return [f"{entries.path}: {len(missing)} of {len(entries.names)} entries are no {what} of the dataset: {shown}"]
