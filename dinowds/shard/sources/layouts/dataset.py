"""An existing dataset of dinowds, or a subset of it, to be sharded anew: `DATASET` or `DATASET:SUBSET`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.dataset import Dataset
from dinowds.data.location import split_subset
from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_NAME, UNFINISHED_NAME
from dinowds.errors import SourceError
from dinowds.remote.files import is_remote, shown
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.layouts.members import scan_members
from dinowds.shard.sources.layouts.webdataset import Field, extras_array, group, is_extra, keyed
from dinowds.shard.sources.source import Items, Request, Source, SourceFile, path_text, readable, source_file
from dinowds.shard.sources.tarscan import FILE

NAME = "dataset"

NOT_IN_SUBSET = "samples that are not in the subset"
NOT_IN_INDEX = "samples that are not in the index"

_COLUMNS = ("key", "offset", "size", "cohort", "slide", "x", "y", "label", "source", "source_name")
_FACTS = ("key", "slide", "x", "y", "source", "source_name")


@dataclass(frozen=True, kw_only=True)
class DatasetSource(Source):
    """A dataset; its shards are `files`, in the manifest's order."""

    dataset: Dataset
    has_one_cohort: bool
    """Whether all samples are of `cohort`, instead of their own."""


def recognises(path: Path) -> bool:
    """A folder with a manifest of dinowds, or one that is not finished; with or without a subset's name."""
    folder = _folder(path)
    if (folder / UNFINISHED_NAME).is_dir():
        return True
    manifest = folder / MANIFEST_NAME
    return manifest.is_file() and b'"dinowds"' in manifest.read_bytes()


def open_source(path: Path, request: Request) -> DatasetSource:
    """All shards of a dataset.

    Raises:
        DatasetError: it is damaged or unfinished, or there is no such subset.
        SourceError: a shard is not the one that the manifest describes.
    """
    for value, option in ((request.split, "--split"), (request.fold, "--fold")):
        if value is not None:
            raise SourceError(f"{request.text}: is a dataset, which has no {option}; choose a subset by DATASET:SUBSET")
    dataset, folder = Dataset.open(request.text), _folder(path)
    files = tuple(_open_shard(dataset, shard) for shard in range(len(dataset.manifest.shards)))
    sidecars = [folder / MANIFEST_NAME, folder / SAMPLES_NAME]
    return DatasetSource(
        request.text,
        request.cohort or folder_name(folder),
        NAME,
        files,
        tuple(source_file(sidecar, "sidecar") for sidecar in sidecars),
        dataset=dataset,
        has_one_cohort=request.cohort is not None,
    )


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:
    """The selected samples of one shard, in its order, with all that the dataset knows of them.

    Raises:
        DatasetError: the index is damaged.
        SourceError: the tar does not fit the index.
    """
    assert isinstance(source, DatasetSource)
    rows = source.dataset.index.groups.read(position, _COLUMNS)
    chosen = _chosen(source.dataset, position)
    unchosen = len(rows) - int(chosen.sum())
    skipped = {NOT_IN_SUBSET: unchosen} if unchosen else {}
    if unchosen == len(rows):
        return Items(pa.array([], pa.large_binary()), np.zeros(0, np.int64), np.zeros(0, np.int64), None, [], skipped)
    file = source.files[position]
    found, extras, others = _find_members(read, file, dict(zip(*_places(rows), strict=True)))
    if others:
        skipped[NOT_IN_INDEX] = others
    rows = rows.filter(pa.array(chosen))
    names, kept = [], []
    for place, size in zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True):
        member = found.get(place)
        if member is None or member.size != size:
            raise SourceError(
                f"{file.path}: has no member of {size} bytes at byte {place}, where {SAMPLES_NAME} has a sample; run "
                f"'dinowds inspect {shown(source.dataset.url)} --verify'"
            )
        names.append(member.name)
        kept.append(extras.get(place, []))
    return Items(
        pa.array(names, pa.large_binary()),
        rows["offset"].to_numpy(),
        rows["size"].to_numpy(),
        _facts(source, rows, kept),
        [],
        skipped,
    )


def _folder(path: Path) -> Path:
    """The dataset's folder, of a path that may name its manifest or a subset."""
    root = Path(split_subset(str(path))[0])
    return root.parent if root.name == MANIFEST_NAME else root


def _open_shard(dataset: Dataset, shard: int) -> SourceFile:
    url = dataset.shard_url(shard)
    if is_remote(url):
        raise SourceError(f"{shown(url)}: sources must be local; copy the dataset to a local disk first")
    path, expected = Path(url), dataset.manifest.shards[shard].num_bytes
    with readable(path_text(path)):
        file = source_file(path, "tar")
    if file.num_bytes != expected:
        raise SourceError(
            f"{file.path}: has {file.num_bytes} bytes, but {MANIFEST_NAME} says {expected}; copy the dataset again"
        )
    return file


def _chosen(dataset: Dataset, shard: int) -> npt.NDArray[np.bool_]:
    """bool [samples of the shard]: which are selected."""
    first, stop = int(dataset.first_ids[shard]), int(dataset.first_ids[shard + 1])
    mask = dataset.selection.mask
    if mask is None:
        return np.ones(stop - first, np.bool_)
    bits = np.unpackbits(mask[first // 8 : -(-stop // 8)], bitorder="little")
    return bits[first % 8 :][: stop - first].view(np.bool_)


def _places(rows: Any) -> tuple[list[int], list[str]]:
    return rows["offset"].to_pylist(), rows["key"].to_pylist()


def _find_members(
    read: Callable[[int, int], bytes], file: SourceFile, keys: dict[int, str]
) -> tuple[dict[int, Field], dict[int, list[Field]], int]:
    """Members by place; by an indexed sample's place, what else lies in it; and how many samples are not indexed.

    Args:
        keys: of each indexed sample, by the place of its payload.
    """
    found: dict[int, Field] = {}
    extras: dict[int, list[Field]] = {}
    others = 0
    members = (keyed(name, place, size) for kind, name, place, size in scan_members(read, file.path) if kind == FILE)
    for stem, fields in group(filter(None, members)):
        indexed = [field for field in fields if field.place in keys]
        others += not indexed
        for field in indexed:
            found[field.place] = field
        if len(indexed) == 1 and stem.decode("utf-8", "replace") == keys[indexed[0].place]:
            rest = (field for field in fields if field is not indexed[0] and field.ext.lower() != b"cls")
            extras[indexed[0].place] = [field for field in rest if is_extra(field.ext)]
    return found, extras, others


def _facts(source: DatasetSource, rows: Any, extras: list[list[Field]]) -> Any:
    facts = rows.select(_FACTS)
    labels, names = rows["label"], source.dataset.manifest.label_names
    if labels.null_count < len(labels):
        bounds = pc.min_max(labels).as_py()
        if not 0 <= bounds["min"] <= bounds["max"] < len(names):
            raise SourceError(f"{source.path}: {SAMPLES_NAME} has labels that {MANIFEST_NAME} has no names for")
        facts = facts.append_column("label", pa.array(names, pa.string()).take(labels))
    if not source.has_one_cohort:
        facts = facts.append_column("cohort", rows["cohort"])
    return facts.append_column("extras", extras_array(extras)) if any(extras) else facts
