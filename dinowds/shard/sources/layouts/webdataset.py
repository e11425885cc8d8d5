"""Existing WebDatasets: shards whose members are samples of an image and more.

Members are grouped as webdataset does (`webdataset.tariterators`): a key is the folders and the basename up to its
first dot, and only members beside each other are one sample. The first image is the sample's, `cls` its label, and all
other members stay with it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dinowds.errors import SourceError
from dinowds.shard.records import decode_name
from dinowds.shard.sources.images import IMAGE_EXTENSIONS
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.layouts.members import scan_members
from dinowds.shard.sources.layouts.tar import SUFFIXES, open_tar_file, tar_cohort
from dinowds.shard.sources.source import Items, Request, Source, SourceFile, path_text, readable, source_file
from dinowds.shard.sources.tarscan import DIRECTORY, FILE, FileData, Member

NAME = "webdataset"

NO_FIELD = "not a member of a sample (no dot in its name)"
NO_IMAGE = "sample without an image"
NOT_TEXT = "label is not text"
TWICE = "second member of a sample with its extension"
UNSAFE = "extension with other characters than letters, digits, '_', '.' and '-'"
RESERVED = "members for readers (__…__)"
MAC_FILES = "macOS files"
IMAGES_KEPT = "further images of samples, kept beside them"

_NAME = re.compile(rb"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_RESERVED = re.compile(rb"__[^/]*__($|/)")
_MAC = re.compile(rb"(?:^|/)(?:\._[^/]*\Z|\.DS_Store\Z|__MACOSX/)")
_EXTENSION = re.compile(rb"[A-Za-z0-9_.-]+")
_NUMBERED = re.compile(r"(?P<prefix>(?:.*[-_])?)(?P<number>[0-9]{4,})(?:-of-[0-9]+)?\.(?:tar|tar\.gz|tgz)")
_SPLIT = re.compile(r"(train|val|valid|validation|test|dev)(?=$|[-_.])")
_BRACES = re.compile(r"\{[^{}]+\}")
_EXTRAS = pa.list_(pa.struct([("ext", pa.string()), ("place", pa.int64()), ("size", pa.int64())]))
_MAX_LABEL_BYTES = 256
_MAX_INDEX_BYTES = 256 << 20
_MAX_INDICES = 8
_MAX_SHARDS = 1_000_000
_LOOKED_AT = 200


class Field(NamedTuple):
    """One member of a sample: its extension, name, place and size."""

    ext: bytes
    name: bytes
    place: int
    size: int


def recognises(path: Path) -> bool:
    """Shards in brace notation; a folder of numbered shards, or with an index; an index; a tar that holds samples."""
    if _BRACES.search(path.name) and not path.exists():
        return path.name.lower().endswith(SUFFIXES)
    if path.is_dir():
        return bool(_read_index(path) or _numbered(path))
    if path.suffix == ".json":
        return _shards_of_wids(_read_json(path)) is not None
    return path.is_file() and path.name.lower().endswith(".tar") and _holds_samples(path)


def open_source(path: Path, request: Request) -> Source:
    """The shards in their order. The cohort is the folder's name, or what shards in brace notation begin with.

    Raises:
        SourceError: there are no shards, one is missing, or there are several splits and none is chosen.
    """
    if request.fold is not None:
        raise SourceError(f"{request.text}: is a WebDataset, which has no folds; leave --fold out")
    splits, cohort, sidecars = _find_shards(path, request)
    names = ", ".join(sorted(filter(None, splits)))
    if request.split is None and len(splits) > 1:
        raise SourceError(f"{request.text}: has several splits; choose one with --split: {names}")
    shards = next(iter(splits.values())) if request.split is None else splits.get(request.split)
    if shards is None:
        raise SourceError(f"{request.text}: has no split {request.split!r}; it has: {names or 'none'}")
    if not shards:
        raise SourceError(f"{request.text}: names no shards")
    files = []
    for shard in shards:
        with readable(path_text(shard)):
            files.append(open_tar_file(shard))
    return Source(request.text, request.cohort or cohort, NAME, tuple(files), tuple(sidecars))


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:
    """The images of one shard, with key, label and the other members of their samples."""
    listed = _Listed(read)
    for key, fields in group(listed.fields(scan_members(read, source.files[position].path))):
        listed.add(key, fields)
    return listed.finish()


def group(fields: Iterable[tuple[bytes, Field]]) -> Iterator[tuple[bytes, list[Field]]]:
    """Members with their keys → samples: those beside each other that share one."""
    last, sample = b"", list[Field]()
    for key, field in fields:
        if key != last and sample:
            yield last, sample
            sample = []
        last = key
        sample.append(field)
    if sample:
        yield last, sample


def keyed(name: bytes, place: int, size: int) -> tuple[bytes, Field] | None:
    """A member with its key: b"a/b.seg.png" → (b"a/b", b"seg.png"); None for a name that belongs to no sample."""
    start = name.rfind(b"/") + 1
    dot = name.find(b".", start)
    if dot > start:
        return name[:dot], Field(name[dot + 1 :], name, place, size)
    if (match := _NAME.fullmatch(name)) is not None:
        return match[1], Field(match[2], name, place, size)
    return None


def extras_array(of_samples: list[list[Field]]) -> Any:
    """The column `extras` [N] of further members."""
    fields = [field for fields in of_samples for field in fields]
    structs = pa.StructArray.from_arrays(
        [
            pa.array([field.ext.decode() for field in fields], pa.string()),
            pa.array([field.place for field in fields], pa.int64()),
            pa.array([field.size for field in fields], pa.int64()),
        ],
        fields=list(_EXTRAS.value_type),
    )
    offsets = np.cumsum([0, *map(len, of_samples)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), structs).cast(_EXTRAS)


def is_extra(ext: bytes) -> bool:
    """Whether a member with this extension can be kept under it."""
    return _EXTENSION.fullmatch(ext) is not None


class _Listed:
    """Samples of a shard as columns."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._images: list[Field] = []
        self._keys: list[str] = []
        self._labels: list[str | None] = []
        self._extras: list[list[Field]] = []
        self._quarantine: list[tuple[int, bytes, str]] = []
        self._skipped: Counter[str] = Counter()

    def fields(self, members: Iterable[Member]) -> Iterator[tuple[bytes, Field]]:
        """Those members that belong to samples, with their keys; the others are noted."""
        for kind, name, place, size in members:
            if kind == DIRECTORY:
                self._skipped["directories"] += 1
            elif kind != FILE:
                self._quarantine.append((place, name, kind))
            elif _MAC.search(name):
                self._skipped[MAC_FILES] += 1
            elif _RESERVED.match(name):
                self._skipped[RESERVED] += 1
            elif found := keyed(name, place, size):
                yield found
            else:
                self._quarantine.append((place, name, NO_FIELD))

    def add(self, key: bytes, fields: list[Field]) -> None:
        """Take one sample."""
        fields = self._without_repeats(fields)
        image = next((field for field in fields if field.ext.lower() in IMAGE_EXTENSIONS), None)
        image = image or next(filter(_is_image, fields), None)
        if image is None:
            self._quarantine.append((fields[0].place, fields[0].name, NO_IMAGE))
            return
        label, extras = None, []
        for field in fields:
            if field is image:
                continue
            if field.ext.lower() == b"cls":
                label = self._label(field)
            elif is_extra(field.ext):
                extras.append(field)
                self._skipped[IMAGES_KEPT] += _is_image(field)
            else:
                self._quarantine.append((field.place, field.name, UNSAFE))
        self._images.append(image)
        self._keys.append(decode_name(key))
        self._labels.append(label)
        self._extras.append(extras)

    def finish(self) -> Items:
        """All samples that were taken."""
        facts: dict[str, Any] = {"key": pa.array(self._keys, pa.string())}
        if any(label is not None for label in self._labels):
            facts["label"] = pa.array(self._labels, pa.string())
        if any(self._extras):
            facts["extras"] = extras_array(self._extras)
        return Items(
            pa.array([image.name for image in self._images], pa.large_binary()),
            np.array([image.place for image in self._images], np.int64),
            np.array([image.size for image in self._images], np.int64),
            pa.table(facts),
            self._quarantine,
            {reason: count for reason, count in sorted(self._skipped.items()) if count},
        )

    def _without_repeats(self, fields: list[Field]) -> list[Field]:
        by_ext: dict[bytes, Field] = {}
        for field in fields:
            if by_ext.setdefault(field.ext.lower(), field) is not field:
                self._quarantine.append((field.place, field.name, TWICE))
        return list(by_ext.values())

    def _label(self, field: Field) -> str | None:
        content = self._read(field.place, field.size) if field.size <= _MAX_LABEL_BYTES else b""
        try:
            text = content.decode().strip()
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable():
            self._quarantine.append((field.place, field.name, NOT_TEXT))
            return None
        return str(int(text)) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


def _is_image(field: Field) -> bool:
    return field.ext.rpartition(b".")[2].lower() in IMAGE_EXTENSIONS


def _find_shards(path: Path, request: Request) -> tuple[dict[str, list[Path]], str, list[SourceFile]]:
    """Shards of each split, the cohort's name, and the index that they were read from."""
    if path.is_dir():
        folder, index = path, _read_index(path)
        if index is None:
            return _by_split(path), folder_name(path), []
    elif path.suffix == ".json":
        folder, shards = path.parent, _shards_of_wids(_read_json(path))
        index = None if shards is None else (path, {"": shards})
    elif path.exists():
        return {"": [path]}, tar_cohort(path_text(path.name)), []
    else:
        prefix = _BRACES.split(path.name)[0].rstrip("-_.")
        return {"": _expand(request.text)}, path_text(prefix) if prefix else folder_name(path.parent), []
    if index is None:
        raise SourceError(f"{request.text}: is no index of a WebDataset")
    file, splits = index
    found = {split: [folder / name for name in names] for split, names in splits.items()}
    return found, folder_name(folder), [source_file(file, "tar")]


def _expand(text: str) -> list[Path]:
    """'a-{000..002}.tar' → its three paths."""
    from braceexpand import braceexpand

    try:
        found = list(islice(braceexpand(text), _MAX_SHARDS + 1))
    except ValueError as error:
        raise SourceError(f"{text}: {error}; expected braces such as {{000000..000012}}") from None
    if len(found) > _MAX_SHARDS:
        raise SourceError(f"{text}: stands for more than {_MAX_SHARDS} shards")
    return [Path(name) for name in found]


def _numbered(folder: Path) -> list[re.Match[str]]:
    """The names of all tars of a folder, if it has no images and all tars are numbered like shards, from 0 on."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    tars = [name for name in names if name.lower().endswith(SUFFIXES)]
    found = [match for name in tars if (match := _NUMBERED.fullmatch(name))]
    has_images = any(os.fsencode(name).rpartition(b".")[2].lower() in IMAGE_EXTENSIONS for name in names)
    is_from_0 = any(int(match["number"]) == 0 for match in found)
    return found if is_from_0 and len(found) == len(tars) and not has_images else []


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Numbered shards; by split where all their names begin with one."""
    shards = _numbered(folder)
    splits = [_SPLIT.match(shard["prefix"]) for shard in shards]
    found: dict[str, list[Path]] = {}
    for shard, split in zip(shards, splits, strict=True):
        found.setdefault(split[1] if split and all(splits) else "", []).append(folder / shard[0])
    return found


def _holds_samples(path: Path) -> bool:
    """Whether one of the first members of a tar is a further member of an image's sample, and no label."""
    if path.name.endswith(".tiles.tar") and path.with_name(path.name[:-4] + ".manifest.csv").exists():
        return False
    with open(path, "rb") as file:
        members = islice(scan_members(FileData(file.fileno()).read, path_text(path)), _LOOKED_AT)
        files = (keyed(name, place, size) for kind, name, place, size in members if kind == FILE)
        try:
            return any(_has_more(fields) for _, fields in group(filter(None, files)))
        except SourceError:
            return False


def _has_more(fields: list[Field]) -> bool:
    others = [field for field in fields if not _is_image(field)]
    return len(others) < len(fields) and any(field.ext.lower() not in (b"", b"cls") for field in others)


_Index = tuple[Path, dict[str, list[str]]]


def _read_index(folder: Path) -> _Index | None:
    """The index of a folder of shards, and the shards of each split: of Energon, timm, webdataset, or wids."""
    for name, shards_of in (
        (".nv-meta/.info.json", _shards_of_energon),
        ("_info.json", _splits_of_timm),
        ("sizes.json", _shards_of_sizes),
    ):
        path = folder / name
        if path.is_file() and (splits := shards_of(_read_json(path))):
            return path, splits
    for path in sorted(folder.glob("*.json"))[:_MAX_INDICES]:
        if (shards := _shards_of_wids(_read_json(path))) is not None:
            return path, {"": shards}
    return None


def _read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is none."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read(_MAX_INDEX_BYTES))
    except (ValueError, RecursionError):
        return None


def _shards_of_wids(content: Any) -> list[str] | None:
    """None where it is no index of wids, or that of a dataset of dinowds."""
    if not isinstance(content, dict) or "wids_version" not in content or "dinowds" in content:
        return None
    shards = content.get("shardlist")
    if not isinstance(shards, list):
        return None
    return _texts([shard.get("url") if isinstance(shard, dict) else None for shard in shards])


def _splits_of_timm(content: Any) -> dict[str, list[str]]:
    splits = content.get("splits") if isinstance(content, dict) else None
    found = {}
    for name, split in splits.items() if isinstance(splits, dict) else ():
        shards = _texts(split.get("filenames")) if isinstance(split, dict) else None
        if shards:
            found[name] = shards
    return found


def _shards_of_energon(content: Any) -> dict[str, list[str]]:
    counts = content.get("shard_counts") if isinstance(content, dict) else None
    return {"": list(counts)} if isinstance(counts, dict) and counts else {}


def _shards_of_sizes(content: Any) -> dict[str, list[str]]:
    names = sorted(content) if isinstance(content, dict) else []
    return {"": names} if names and all(name.endswith(".tar") for name in names) else {}


def _texts(values: Any) -> list[str] | None:
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else None
