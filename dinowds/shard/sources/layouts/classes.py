"""Class folders, as of CRC-100K: `ADI/ADI-AAAFLCLY.tif`; with `train/ADI/…`, one such tree a split."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from dinowds.errors import SourceError
from dinowds.shard.records import DEFAULT_KEY_PATTERN, GENERIC_FOLDERS, decode_name, find_place
from dinowds.shard.sources.images import IMAGE_EXTENSIONS
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.source import Request, Source, SourceFile, path_text

NAME = "classes"

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "tune", "test", "testing"})
_NO_CLASSES = GENERIC_FOLDERS | _SPLITS | {"masks", "labels", "annotations", "thumbnails", "coordinates", "slides"}
_MAX_CLASSES = 1000
_LOOKED_AT = 64
"""Entries of each folder that are looked at."""
_PLACE = re.compile(DEFAULT_KEY_PATTERN)


def recognises(path: Path) -> bool:
    """Whether it is quite sure: two folders or more, without digits in their names, that have images without places.

    `--layout classes` takes any folder with folders.
    """
    if not path.is_dir():
        return False
    splits = _splits(path)
    return all(_has_classes(path / split) for split in splits) if splits else _has_classes(path)


def open_source(path: Path, request: Request) -> Source:
    """The folder, or that of the split that was asked for; the cohort is the folder's name."""
    if not path.is_dir():
        raise SourceError(f"{request.text}: is not a folder; give one with a folder for each class")
    splits = _splits(path)
    root = path / _choose_split(splits, request) if splits or request.split else path
    if not _folders(root):
        raise SourceError(f"{path_text(root)}: has no folders; expected one for each class")
    file = SourceFile(path_text(root), root, "folder")
    return Source(request.text, request.cohort or folder_name(path), NAME, (file,))


def facts(source: Source, position: int, names: Any) -> Any:  # noqa: ARG001 - the signature of `facts`
    """The label [N], which is the first folder of a name, and the slide, which is the last one below that.

    Null where there is no such folder: a class is never a slide.
    """
    labels: list[str | None] = []
    slides: list[str | None] = []
    for name in names.to_pylist():
        label, slash, rest = decode_name(name).partition("/")
        labels.append(label if slash else None)
        slides.append(find_place(rest, None).slide)
    return pa.table({"label": pa.array(labels, pa.string()), "slide": pa.array(slides, pa.string())})


def _choose_split(splits: list[str], request: Request) -> str:
    if request.split in splits:
        return request.split or ""
    there = ", ".join(path_text(split) for split in splits) or "none"
    if request.split is None:
        raise SourceError(f"{request.text}: has splits ({there}); choose one with --split")
    raise SourceError(f"{request.text}: has no split {request.split!r}; there are: {there}")


def _splits(path: Path) -> list[str]:
    return [name for name in _folders(path) if name.lower() in _SPLITS and _folders(path / name)]


def _has_classes(path: Path) -> bool:
    folders = _folders(path)
    return (
        2 <= len(folders) <= _MAX_CLASSES
        and all(name.lower() not in _NO_CLASSES and not re.search(r"\d", name) for name in folders)
        and not _images(path)
        and all(_images(path / name) and not _has_places(path / name) for name in folders)
    )


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return sorted(names)


def _images(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        names = [entry.name for entry in islice(entries, _LOOKED_AT)]
    return [name for name in names if os.fsencode(name.rpartition(".")[2].lower()) in IMAGE_EXTENSIONS]


def _has_places(path: Path) -> bool:
    return any(_PLACE.search(name) for name in _images(path))
