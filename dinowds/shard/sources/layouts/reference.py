"""A data root of the reference system: tars, and beside them .npy lists of the images in them.

- Many cohorts: `pretrain_entries.npy`, uint64 [N, 5] (class, filename, start and end of the payload, cohort), and
  `cohort_indices.npy`, {cohort: name}; the tars are `NAME.tar`, with `NAME_file_indices.npy`, {filename: basename}.
- One tar: `pretrain_dataset.tar` with `pretrain_entries.npy`, uint64 [N, 4] (no cohort).
- Labelled: `downstream_dataset.tar` with `query_entries.npy` and `test_entries.npy`, uint64 [N, 4].
- Cohorts that were not joined: `NAME.tar` with `NAME_entries.npy`, uint64 [N, 4].

Lists of a fold end in `_entries_FOLD.npy`. Rows of `class-ids.npy` are (class, its name). Instead of the root, the name
of a dataset in its configurations is taken too: `Pathology:root=/data:subset=fold_0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.errors import SourceError
from dinowds.shard.records import decode_name
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.layouts.members import list_files
from dinowds.shard.sources.layouts.tar import open_tar_file
from dinowds.shard.sources.layouts.unpickle import load_array, load_dict
from dinowds.shard.sources.source import Items, Request, Source, SourceFile, path_text, readable, source_file
from dinowds.shard.sources.tarscan import DIRECTORY, Members

NAME = "reference"

NOT_LISTED = "not in the list of entries"

_ENTRIES, _NAMES = "_entries", "_file_indices"
_PRETRAIN, _LABELLED = "pretrain_dataset", "downstream_dataset"
_COHORTS, _CLASSES = "cohort_indices.npy", "class-ids.npy"
_DATASET = re.compile(r"(?P<name>PathologyFoundation|Pathology|KNN):(?P<options>(?:root|split|subset)=.*)", re.DOTALL)
_LIST = re.compile(rf"(?P<head>.+?){_ENTRIES}(?:_(?P<fold>.+))?\.npy", re.DOTALL)
_TARS = {"pretrain": _PRETRAIN, "query": _LABELLED, "test": _LABELLED}
"""Of each split, where it has one tar."""

_STEP = 1 << 20
_EXACT = 1 << 53

Entries = npt.NDArray[Any]
"""[N, 4] or [N, 5] of integers, which floats may hold."""


class _List(NamedTuple):
    """Entries of one split and fold; of each of several cohorts where they were not joined."""

    split: str
    fold: str | None
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class _Part:
    """What is known of one tar."""

    file: SourceFile
    entries: Path
    code: int | None
    """The cohort's number in the entries; None where all entries are of this tar."""
    cohort: str | None
    names: Path | None
    """{filename index: basename}."""


@dataclass(frozen=True)
class ReferenceSource(Source):
    """A root, as far as it is asked for; parts in the order of `files`."""

    parts: tuple[_Part, ...] = ()
    classes: dict[int, str] | None = None
    """Names of classes; None where there are no labels."""


def recognises(path: Path) -> bool:
    """A folder with entries and the tars that they are of, or the name of a dataset."""
    if path.is_dir():
        return bool(_find_lists(path))
    return _DATASET.fullmatch(str(path)) is not None and not path.exists()


def open_source(path: Path, request: Request) -> ReferenceSource:
    """The tars of one list. The cohort is the folder's name, or that of its only cohort.

    Raises:
        SourceError: several lists are there and none is chosen, or they do not fit together.
    """
    root, split, fold = _parse(path, request)
    if not root.is_dir():
        raise SourceError(f"{request.text}: {path_text(root)} is no folder; expected one with tars and *_entries.npy")
    chosen = _choose(_find_lists(root), split, fold, request.text)
    parts, used = _open_parts(root, chosen)
    cohorts = [part.cohort for part in parts if part.cohort is not None]
    cohort = request.cohort or (cohorts[0] if len(cohorts) == 1 else folder_name(root))
    classes = _name_classes(root, chosen, used)
    sidecars = [*chosen.paths, *(part.names for part in parts if part.names is not None)]
    sidecars += [root / name for name in (_CLASSES, _COHORTS) if (root / name).exists()]
    return ReferenceSource(
        request.text,
        cohort,
        NAME,
        tuple(part.file for part in parts),
        tuple(source_file(sidecar, "tar") for sidecar in dict.fromkeys(sidecars)),
        parts=parts if request.cohort is None else tuple(replace(part, cohort=None) for part in parts),
        classes=classes,
    )


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:
    """The members that the entries of a tar name, in the order of the entries.

    Raises:
        SourceError: an entry is not exactly a member, or is a member of another name than the one that is noted.
    """
    assert isinstance(source, ReferenceSource)
    part, path = source.parts[position], source.files[position].path
    others: list[Any] = []
    files = list_files(read, path, others)
    rows, entries = _entries_of(part)
    found = _find_members(entries, files, rows, part, path)
    names = files.names.take(pa.array(found))
    if part.names is not None:
        _check_names(names, entries[:, 1], rows, part, part.names)
    facts: dict[str, Any] = {}
    if source.classes is not None:
        numbers, which = np.unique(entries[:, 0], return_inverse=True)
        facts["label"] = pa.array([source.classes[number] for number in numbers.tolist()]).take(pa.array(which))
    if part.cohort is not None:
        facts["cohort"] = pa.repeat(part.cohort, len(names))
    passed = len(files.places) - len(np.unique(found))
    return Items(
        names,
        entries[:, 2],
        entries[:, 3] - entries[:, 2],
        pa.table(facts) if facts else None,
        [(place, name, kind) for kind, name, place, _ in others if kind != DIRECTORY],
        {NOT_LISTED: passed} if passed else {},
    )


def _parse(path: Path, request: Request) -> tuple[Path, str | None, str | None]:
    """Root, split and fold, from a dataset's name or from the options."""
    match = None if path.exists() else _DATASET.fullmatch(request.text)
    if match is None:
        return path, request.split, request.fold
    options: dict[str, str] = {}
    for option in re.split(r":(?=\w+=)", match["options"]):
        name, _, value = option.partition("=")
        if name not in ("root", "split", "subset") or name in options or not value:
            raise SourceError(f"{request.text}: has {option!r}, expected root=, split= and subset=, each once")
        options[name] = value
    if "root" not in options:
        raise SourceError(f"{request.text}: has no root=FOLDER")
    split = options.get("split", "pretrain" if match["name"] != "KNN" else None)
    named = ((split, request.split, "--split"), (options.get("subset"), request.fold, "--fold"))
    for own, given, option in named:
        if own is not None and given is not None and own != given:
            raise SourceError(f"{request.text}: names {own!r}, but {option} is {given!r}; leave one of the two out")
    return Path(options["root"]), split or request.split, options.get("subset") or request.fold


def _find_lists(root: Path) -> list[_List]:
    """All lists whose tars are there. Those of single cohorts count only where none was joined."""
    names = {entry.name for entry in root.iterdir()}
    found = [(match["head"], match["fold"], root / name) for name in names if (match := _LIST.fullmatch(name))]
    lists = []
    for split, tar in _TARS.items():
        if f"{tar}.tar" in names or (split == "pretrain" and _COHORTS in names):
            lists += [_List(split, fold, (path,)) for head, fold, path in found if head == split]
    if not any(entries.split == "pretrain" for entries in lists):
        cohorts = [row for row in found if f"{row[0]}.tar" in names and row[0] not in (_PRETRAIN, _LABELLED)]
        for fold in {fold for _, fold, _ in cohorts}:
            paths = sorted(path for _, of, path in cohorts if of == fold)
            lists.append(_List("pretrain", fold, tuple(paths)))
    return sorted(lists, key=lambda entries: (entries.split, entries.fold or "", entries.paths))


def _choose(lists: Sequence[_List], split: str | None, fold: str | None, text: str) -> _List:
    """The list of a split and a fold. Without a fold that which has none, or the only one."""
    splits = sorted({entries.split for entries in lists})
    if not lists:
        raise SourceError(f"{text}: has no *_entries.npy with the tar that they are of")
    if (split := splits[0] if split is None and len(splits) == 1 else split) not in splits:
        asked = "several splits" if split is None else f"no split {split!r}"
        raise SourceError(f"{text}: has {asked}; choose one with --split: {', '.join(splits)}")
    by_fold = {entries.fold: entries for entries in lists if entries.split == split}
    if fold is None and len(by_fold) == 1:
        return next(iter(by_fold.values()))
    if fold not in by_fold:
        folds = ", ".join(sorted(name for name in by_fold if name is not None)) or "it has none"
        asked = "several folds" if fold is None else f"no fold {fold!r}"
        raise SourceError(f"{text}: has {asked} of the split {split}; choose one with --fold: {folds}")
    return by_fold[fold]


def _open_parts(root: Path, chosen: _List) -> tuple[tuple[_Part, ...], set[int]]:
    """The tars of a list, and the classes that its entries have."""
    if len(chosen.paths) == 1 and (joined := _load_entries(chosen.paths[0])).shape[1] == 5:
        classes, codes = _check_entries(chosen.paths[0], joined)
        cohorts = load_dict(root / _COHORTS)
        if unknown := sorted(codes - set(cohorts)):
            raise SourceError(
                f"{path_text(chosen.paths[0])}: has the cohort {unknown[0]}, which {_COHORTS} does not list"
            )
        named = [(code, cohorts[code]) for code in sorted(codes)]
        return tuple(_open_part(root, name, chosen, chosen.paths[0], name, code) for code, name in named), classes
    parts, used = [], set()
    for path in chosen.paths:
        used |= _check_entries(path, _load_entries(path, 4))[0]
        head = path.name.partition(_ENTRIES)[0]
        cohort = None if (root / f"{_TARS.get(head)}.tar").exists() else head
        parts.append(_open_part(root, cohort or _TARS[head], chosen, path, cohort))
    return tuple(parts), used


def _open_part(
    root: Path, tar: str, chosen: _List, entries: Path, cohort: str | None, code: int | None = None
) -> _Part:
    if "/" in tar or "\0" in tar:
        raise SourceError(f"{path_text(root / _COHORTS)}: has the cohort {tar!r}, which cannot be a file's name")
    path = root / f"{tar}.tar"
    with readable(path_text(path)):
        file = open_tar_file(path)
    heads = (tar, tar.partition("_")[0], chosen.split)
    stems = [head + _NAMES for head in dict.fromkeys(heads if cohort is None else (tar,))]
    candidates = [f"{stem}_{chosen.fold}.npy" for stem in stems if chosen.fold] + [f"{stem}.npy" for stem in stems]
    names = next((root / name for name in candidates if (root / name).exists()), None)
    if names is None and cohort is None:
        rest = sorted(root.glob(f"*{_NAMES}.npy"))
        names = rest[0] if len(rest) == 1 else None
    return _Part(file, entries, code, cohort, names)


def _load_entries(path: Path, columns: int | None = None) -> Entries:
    entries = load_array(path)
    wanted = (4, 5) if columns is None else (columns,)
    if entries.dtype.kind not in "uif" or entries.ndim != 2 or entries.shape[1] not in wanted or not len(entries):
        expected = " or ".join(f"[N, {columns}]" for columns in wanted)
        raise SourceError(f"{path_text(path)}: is {entries.dtype} {list(entries.shape)}, expected uint64 {expected}")
    return entries


def _check_entries(path: Path, entries: Entries) -> tuple[set[int], set[int]]:
    """The classes and the cohorts that entries have. Raises SourceError where one cannot be an entry."""
    classes: set[int] = set()
    cohorts: set[int] = set()
    for start in range(0, len(entries), _STEP):
        part = entries[start : start + _STEP]
        bad = ~((part >= 0) & (part < _EXACT) & (part == np.floor(part))).all(axis=1)
        bad |= part[:, 3] < part[:, 2]
        if bad.any():
            row = int(np.argmax(bad))
            raise SourceError(
                f"{path_text(path)}: entry {start + row} is {part[row].tolist()}, expected whole numbers: class, "
                "filename, start, end, and the cohort of several"
            )
        classes |= set(np.unique(part[:, 0]).astype(np.int64).tolist())
        cohorts |= set(np.unique(part[:, 4:]).astype(np.int64).tolist())
    return classes, cohorts


def _entries_of(part: _Part) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of a tar's entries in their list, int64 [n], and the entries, int64 [n, 4 or 5]."""
    entries = _load_entries(part.entries)
    rows = np.arange(len(entries)) if part.code is None else np.flatnonzero(entries[:, 4] == part.code)
    return rows, entries[rows].astype(np.int64)


def _find_members(
    entries: npt.NDArray[np.int64], files: Members, rows: npt.NDArray[np.int64], part: _Part, path: str
) -> npt.NDArray[np.int64]:
    """int64 [n]: which of the tar's files each entry is."""
    starts, ends = entries[:, 2], entries[:, 3]
    found = np.searchsorted(files.places, starts, side="right") - 1
    nearest = np.maximum(found, 0)
    if len(files.places):
        wrong = (files.places[nearest] != starts) | (files.sizes[nearest] != ends - starts)
        if not wrong.any():
            return nearest
        row = int(np.argmax(wrong))
        place, size = int(files.places[nearest[row]]), int(files.sizes[nearest[row]])
        there = f"{decode_name(files.names[int(nearest[row])].as_py())!r} is bytes {place} to {place + size}"
    else:
        row, there = 0, "it has no files"
    raise SourceError(
        f"{path_text(part.entries)}: entry {rows[row]} is bytes {starts[row]} to {ends[row]} of {path}, which is no "
        f"member: {there}; make the entries of this tar again"
    )


def _check_names(
    names: Any, indices: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part: _Part, noted: Path
) -> None:
    """Raises SourceError where a member's name does not end in the one that is noted for its entry."""
    known = {index: name.encode("utf-8", "surrogateescape") for index, name in load_dict(noted).items()}
    for start in range(0, len(names), _STEP):
        stored = names[start : start + _STEP].to_pylist()
        for row, (name, index) in enumerate(zip(stored, indices[start : start + _STEP].tolist(), strict=True), start):
            expected = known.get(index)
            if expected is None or (name != expected and not name.endswith(b"/" + expected)):
                says = "does not list" if expected is None else f"calls {decode_name(expected)!r}"
                raise SourceError(
                    f"{path_text(part.entries)}: entry {rows[row]} is {decode_name(name)!r} in the tar, but has "
                    f"filename {index}, which {path_text(noted)} {says}; make the entries of this tar again"
                )


def _name_classes(root: Path, chosen: _List, used: set[int]) -> dict[int, str] | None:
    """Names of the classes that entries have; their numbers where there are none. None where there are no labels.

    The reference writes class 0 where there are no labels, and the names of classes may be those of another list.
    """
    is_labelled = chosen.split in ("query", "test")
    if (root / _CLASSES).exists() and (used != {0} or is_labelled or not (root / f"{_LABELLED}.tar").exists()):
        return _read_classes(root / _CLASSES, used)
    return {number: str(number) for number in used} if used != {0} or is_labelled else None


def _read_classes(path: Path, used: set[int]) -> dict[int, str]:
    """Names of the classes, from rows (class, name)."""
    rows = load_array(path)
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "UO":
        raise SourceError(f"{path_text(path)}: is {rows.dtype} {list(rows.shape)}, expected text [classes, 2]")
    names: dict[int, str] = {}
    for number, name in rows.tolist():
        if not re.fullmatch(r"[0-9]{1,18}", str(number)):
            raise SourceError(f"{path_text(path)}: has the class {str(number)[:80]!r}, expected a whole number")
        if names.setdefault(int(number), str(name)) != str(name):
            raise SourceError(f"{path_text(path)}: has two names for class {number}: {names[int(number)]!r}, {name!r}")
    if missing := sorted(used - set(names)):
        raise SourceError(f"{path_text(path)}: has no class {missing[0]}, which entries have")
    return names
