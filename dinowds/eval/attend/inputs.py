"""What is looked at: image files, or samples of a dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.config import Kind
from dinowds.data.dataset import Dataset, Sample
from dinowds.data.location import split_subset
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.data.store.store import open_store
from dinowds.data.subsets.selection import Ids
from dinowds.errors import ConfigError, DatasetError
from dinowds.remote.files import is_remote, shown

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
_DEFAULT_SAMPLES = 8


@dataclass(frozen=True)
class Input:
    """An image, or a region."""

    kind: Kind
    source: str
    """The file as it was given, or the sample's key."""
    title: str
    """The file's name, or the key."""
    name: str
    """Of its pictures, without suffix; no other input has it."""
    where: str
    """What messages call it."""
    read: Callable[[], bytes]
    """Raises SampleError or OSError."""


def find_inputs(sources: Sequence[str], keys: Sequence[str], count: int | None) -> list[Input]:
    """Image files, or samples of one dataset.

    Args:
        sources: image files, or one 'DATASET[:SUBSET]'.
        keys: of samples of the dataset.
        count: samples at even distances, where no keys are given; None for 8.

    Raises:
        ConfigError: files and a dataset together, or options of a dataset with files.
        DatasetError: there is no such dataset or key.
    """
    files = [source for source in sources if _is_image_file(source)]
    others = [source for source in sources if source not in files]
    if not others:
        if keys or count is not None:
            option = "--key" if keys else "--samples"
            raise ConfigError(f"{option}: goes with a dataset, but {sources[0]} is a file; leave it out")
        return [_of_file(path, name) for path, name in zip(files, _names([Path(f).stem for f in files]), strict=True)]
    if len(sources) > 1:
        raise ConfigError(f"{shown(others[0])}: is no image file; expected image files alone, or one dataset alone")
    place = split_subset(others[0])[0]
    if not is_remote(place) and not Path(place).exists():
        raise DatasetError(f"{others[0]}: neither an image file nor a dataset that 'dinowds shard' wrote")
    dataset = Dataset.open(others[0])
    if not len(dataset):
        raise DatasetError(f"{shown(others[0])}: has no samples")
    if keys and count is not None:
        raise ConfigError("--samples: draws samples where no --key is given; leave one of them out")
    ids = find_keys(dataset, keys) if keys else spread_ids(dataset, count or _DEFAULT_SAMPLES)
    return _of_samples(dataset, dataset.samples(ids))


def find_keys(dataset: Dataset, keys: Sequence[str]) -> Ids:
    """int64 [n]: ids of the samples with these keys, in their order, each once. Reads one column of the index.

    Raises:
        DatasetError: one of them is not selected.
    """
    wanted = pa.array(dict.fromkeys(keys))
    found = np.full(len(wanted), -1, np.int64)
    chosen = None if dataset.subset is None else dataset.selection.chosen()
    for first, rows in dataset.batches(["key"]):
        places: Any = pc.index_in(rows["key"], value_set=wanted).combine_chunks()
        at = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        at = at if chosen is None else at[chosen[first + at]]
        found[places.take(pa.array(at)).to_numpy()] = first + at
    if (found < 0).any():
        missing = wanted[int(np.argmin(found))].as_py()
        subset = "" if dataset.subset is None else f", subset {dataset.subset}"
        raise DatasetError(
            f"{shown(dataset.url)}{subset}: no sample has the key {missing!r}; the column 'key' of samples.parquet "
            "lists them"
        )
    return found


def spread_ids(dataset: Dataset, count: int) -> Ids:
    """int64 [n]: ids of `count` selected samples at even distances, or of all."""
    total = len(dataset)
    count = min(count, total)
    return dataset.selection.ids(np.arange(count, dtype=np.int64) * total // count)


def _is_image_file(source: str) -> bool:
    path = Path(source)
    return path.is_file() and path.name != MANIFEST_NAME


def _of_file(path: str, name: str) -> Input:
    return Input("image", path, Path(path).name, name, path, Path(path).read_bytes)


def _of_samples(dataset: Dataset, samples: Sequence[Sample]) -> list[Input]:
    store = open_store(dataset)
    names = _names([sample.key for sample in samples])
    return [
        Input(
            dataset.manifest.kind,
            sample.key,
            sample.key,
            name,
            f"{shown(dataset.shard_url(sample.shard))}: {sample.key}.{sample.ext}",
            partial(store.read, sample),
        )
        for sample, name in zip(samples, names, strict=True)
    ]


def _names(titles: Sequence[str]) -> list[str]:
    """File names of them: letters that are safe everywhere, and a number behind those that would be the same."""
    names: list[str] = []
    used: set[str] = set()
    for title in titles:
        plain = _UNUSUAL.sub("_", title).strip(".") or "image"
        name, number = plain, 1
        while name.lower() in used:  # as on file systems that do not tell the cases apart
            number += 1
            name = f"{plain}-{number}"
        used.add(name.lower())
        names.append(name)
    return names
