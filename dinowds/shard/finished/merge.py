"""One dataset of several: an index over the shards of all, which stay where they are."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.location import join_url, read_beside, split_location
from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from dinowds.data.subsets.subset import list_subsets
from dinowds.data.withdrawn import IN_SHARDS, WITHDRAWN, withdrawn_in_shards, withdrawn_samples
from dinowds.errors import ConfigError, DatasetError, StorageError
from dinowds.files import atomic_write, output_errors, sha256_of
from dinowds.remote.files import is_remote, shown
from dinowds.remote.urls import has_user
from dinowds.shard.outputs.output import Output
from dinowds.shard.outputs.place import check_text, open_output
from dinowds.shard.outputs.workspace import Workspace, claim
from dinowds.shard.write.indexfile import IndexReader, joined_schema, write_index

_COUNTS = ("skipped", "dropped", "quality", "duplicates")
"""Of the metadata; duplicates are those within each dataset."""
_COHORTS = "cohorts"
_BATCH_ROWS = 1 << 17
_MOST_COMPARED = 1 << 20
"""Keys whose hashes are equal that are compared as text; of more it is enough to know the first ones."""

Report = Callable[[str, int, int], None]


def merge_datasets(
    locations: Sequence[str | Path],
    out: str | Path,
    name: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> tuple[Manifest, list[str]]:
    """Write a dataset of all samples of several. No shard is copied or opened: its manifest names theirs.

    Samples stay in the order of the datasets and of their shards. The same arguments go on where a run was ended.

    Args:
        locations: folders or URLs of two datasets or more. Only a dataset in a folder can be made of any in folders.
        report: gets ('keys' or 'index', rows done, all rows) now and then.

    Returns:
        The new manifest, and notices of one line each.

    Raises:
        ConfigError: these cannot be merged by what they are: subsets, one that is given twice or is `out`, or `out`
            is a URL and a dataset is not.
        DatasetError: there is no such dataset; or they differ in kind or in the numbers of labels, or share a key.
        OutputError, StorageError: `out` holds something else, or cannot be read or written.
    """
    report = report or (lambda _what, _done, _all: None)
    output = open_output(out)
    roots = _roots(locations, output)
    datasets = [Dataset.open(root) for root in roots]
    manifests = [dataset.manifest for dataset in datasets]
    _check_alike(datasets)
    dataset_name = name or output.name or "dataset"
    check_text("--name", dataset_name)
    fingerprint = {"command": "dinowds merge", "--name": dataset_name, "datasets": roots}
    digests = {root: manifest.samples_sha256 for root, manifest in zip(roots, manifests, strict=True)}
    with output_errors(output.root), claim(output, overwrite, fingerprint) as workspace:
        if workspace.is_whole:
            manifest, back = workspace.publish_again(), []
        else:
            places = [_places(dataset, output) for dataset in datasets]
            _check_shards(datasets, places)
            _check_keys(datasets, report)
            back = list(_come_back(output))
            workspace.begin(digests, ())
            manifest = _write(workspace, datasets, places, dataset_name, report)
            workspace.publish(manifest)
        workspace.end()
    return manifest, [*_notices(datasets), *back]


def _roots(locations: Sequence[str | Path], output: Output) -> list[str]:
    """Folders (absolute, without links) and URLs of the datasets."""
    if len(locations) < 2:
        raise ConfigError(f"{len(locations)} dataset is given, expected two or more")
    roots: list[str] = []
    for location in locations:
        root, subset = split_location(location)
        if subset is not None:
            raise ConfigError(
                f"{shown(str(location))}: is a subset; merge {shown(root)} and make the subset again of the new dataset"
            )
        if has_user(root):
            raise ConfigError(f"{shown(root)}: has a user or a key before '@', which the manifest must not hold")
        if not is_remote(root):
            root = str(Path(root).resolve())
            if output.is_remote:
                raise ConfigError(
                    f"--out: {output} is remote and {root} is not, so that no one else could read its shards; "
                    "upload the dataset first, or give a folder as --out"
                )
        if root == (str(output) if output.is_remote else str(output.root)):
            raise ConfigError(f"--out: {output} is one of the datasets; give another place")
        if root in roots:
            raise ConfigError(f"{shown(root)}: is given twice; give each dataset once")
        roots.append(root)
    return roots


def _check_alike(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    longest = max(datasets, key=lambda dataset: len(dataset.manifest.label_names))
    for dataset in datasets:
        kind, names = dataset.manifest.kind, dataset.manifest.label_names
        if kind != first.manifest.kind:
            raise DatasetError(
                f"{shown(dataset.url)}: holds samples of kind {kind!r}, {shown(first.url)} of {first.manifest.kind!r}; "
                "merge datasets of one kind"
            )
        if names != longest.manifest.label_names[: len(names)]:
            place = next(
                i for i, pair in enumerate(zip(names, longest.manifest.label_names, strict=False)) if pair[0] != pair[1]
            )
            raise DatasetError(
                f"{shown(dataset.url)}: its label {place} is {names[place]!r}, that of {shown(longest.url)} is "
                f"{longest.manifest.label_names[place]!r}, and shards hold the numbers; {_way_out(datasets)}"
            )


def _way_out(datasets: Sequence[Dataset]) -> str:
    return (
        f"make new shards of them with 'dinowds shard {' '.join(shown(dataset.url) for dataset in datasets)} --out NEW'"
    )


def _check_keys(datasets: Sequence[Dataset], report: Report) -> None:
    """Raise DatasetError where a key comes twice. Holds 8 bytes a sample."""
    num_samples, done = sum(dataset.manifest.num_samples for dataset in datasets), 0
    hashes = np.empty(num_samples, np.uint64)
    for dataset in datasets:
        for keys in _keys(dataset):
            hashes[done : done + len(keys)] = _hashes(keys)
            done += len(keys)
            report("keys", done, num_samples)
    hashes.sort()
    doubtful = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MOST_COMPARED]
    del hashes
    if len(doubtful):
        _compare(datasets, doubtful)


def _compare(datasets: Sequence[Dataset], doubtful: NDArray[np.uint64]) -> None:
    """Compare the keys of these hashes, sorted, themselves."""
    owner: dict[str, Dataset] = {}
    twice: dict[str, tuple[Dataset, Dataset]] = {}
    for dataset in datasets:
        for keys in _keys(dataset):
            hashes = _hashes(keys)
            place = np.searchsorted(doubtful, hashes).clip(max=len(doubtful) - 1)
            for row in np.flatnonzero(doubtful[place] == hashes).tolist():
                other = owner.setdefault(keys[row], dataset)
                if other is not dataset:
                    twice.setdefault(keys[row], (other, dataset))
    if not twice:
        return
    key, (one, two) = next(iter(twice.items()))
    more = "or more " if len(doubtful) == _MOST_COMPARED else ""
    raise DatasetError(
        f"{len(twice)} {more}keys are in more than one dataset, the first is {key!r} in {shown(one.url)} and "
        f"{shown(two.url)}; {_way_out(datasets)}, which makes new keys"
    )


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], np.uint64)


def _keys(dataset: Dataset) -> Iterator[list[str]]:
    for _, rows in dataset.batches(["key"], _BATCH_ROWS):
        yield rows["key"].to_pylist()


def _write(
    workspace: Workspace, datasets: Sequence[Dataset], places: Sequence[Sequence[str]], name: str, report: Report
) -> Manifest:
    """Write index, quarantine and manifest into the work folder; `places` are the shards' of each dataset."""
    manifests = [dataset.manifest for dataset in datasets]
    _write_samples(workspace.folder / SAMPLES_NAME, datasets, report)
    _write_quarantine(workspace.folder / QUARANTINE_NAME, datasets)
    cohorts: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    for manifest in manifests:
        cohorts.update(manifest.cohorts)
        quarantined.update(manifest.quarantined)
    seeds = {manifest.seed for manifest in manifests}
    merged = Manifest(
        name=name,
        kind=manifests[0].kind,
        shards=tuple(
            Shard(place, shard.num_samples, shard.num_bytes, shard.sha256)
            for manifest, of in zip(manifests, places, strict=True)
            for place, shard in zip(of, manifest.shards, strict=True)
        ),
        cohorts=dict(cohorts),
        label_names=max((manifest.label_names for manifest in manifests), key=len),
        seed=seeds.pop() if len(seeds) == 1 else 0,
        samples_sha256=sha256_of(workspace.folder / SAMPLES_NAME),
        samples_footer_sha256=footer_sha256(workspace.folder / SAMPLES_NAME),
        quarantined=dict(sorted(quarantined.items())),
        metadata=_metadata(datasets, places),
        shuffled=False,  # one dataset lies behind the other
    )
    write_manifest(workspace.folder, merged)
    return merged


def _places(dataset: Dataset, output: Output) -> list[str]:
    """Where the new manifest says that the shards are: relative to it between folders, else as they were."""
    found = []
    for shard in dataset.manifest.shards:
        place = join_url(dataset.url, shard.url)
        if not is_remote(place):
            relative = _relative(Path(place), output.root)
            place = place if Path(shard.url).is_absolute() else relative
        found.append(place)
    return found


def _relative(path: Path, folder: Path) -> str:
    """From `folder`, which has no links on its way, so that '..' means what it says."""
    place = os.path.relpath(path, folder)
    if Path(place).parts[0] != "..":
        raise ConfigError(f"--out: {folder} holds {path}, a shard of one of the datasets; give another place")
    check_text("a shard's path", place)
    return place


def _check_shards(datasets: Sequence[Dataset], places: Sequence[Sequence[str]]) -> None:
    """Raise DatasetError where two datasets have a shard in common, as when one was merged of the other."""
    owner: dict[str, Dataset] = {}
    for dataset, of in zip(datasets, places, strict=True):
        for place in of:
            other = owner.setdefault(place, dataset)
            if other is not dataset:
                raise DatasetError(
                    f"{shown(dataset.url)}: names the shard {shown(place)}, as does {shown(other.url)}; leave out the "
                    "one that is merged of the other"
                )


def _write_samples(path: Path, datasets: Sequence[Dataset], report: Report) -> None:
    num_samples, done = sum(dataset.manifest.num_samples for dataset in datasets), 0
    with ExitStack() as stack:
        readers = [
            stack.enter_context(closing(IndexReader(dataset.index_path, dataset.manifest))) for dataset in datasets
        ]
        schema = joined_schema([reader.schema for reader in readers], [shown(dataset.url) for dataset in datasets])
        writer = stack.enter_context(write_index(path, schema))
        for reader, dataset in zip(readers, datasets, strict=True):
            for group, shard in enumerate(dataset.manifest.shards):
                writer.write(reader.read(group))
                done += shard.num_samples
                report("index", done, num_samples)


def _write_quarantine(path: Path, datasets: Sequence[Dataset]) -> None:
    with atomic_write(path) as file:
        for dataset in datasets:
            try:
                if is_remote(dataset.url):
                    file.write(read_beside(dataset.url, QUARANTINE_NAME, dataset.files))
                else:
                    with open(Path(dataset.url) / QUARANTINE_NAME, "rb") as lines:
                        shutil.copyfileobj(lines, cast(Any, file))
            except FileNotFoundError:
                if dataset.manifest.quarantined:
                    raise DatasetError(
                        f"{shown(dataset.url)}: has no {QUARANTINE_NAME}, though its manifest counts lines of it; "
                        "copy the dataset again"
                    ) from None


def _metadata(datasets: Sequence[Dataset], places: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Counts are added up, facts of cohorts joined. What else differs stands under the name of each dataset."""
    manifests = [dataset.manifest for dataset in datasets]
    named = list(zip(_names(datasets), [manifest.metadata for manifest in manifests], strict=True))
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for _, metadata in named for key in metadata):
        values = {name: metadata.get(key) for name, metadata in named}
        if key in _COUNTS and all(map(_is_count, values.values())):
            joined[key] = _added(values.values())
        elif key == _COHORTS and all(isinstance(value or {}, dict) for value in values.values()):
            cohorts = dict.fromkeys(cohort for value in values.values() for cohort in value or {})
            of_each = [{name: (value or {}).get(cohort) for name, value in values.items()} for cohort in cohorts]
            joined[key] = dict(zip(cohorts, map(_alike, of_each), strict=True))
        elif key not in (WITHDRAWN, IN_SHARDS):
            is_of_all = all(key in metadata for _, metadata in named)
            joined[key] = _alike(values) if is_of_all else {name: v for name, v in values.items() if v is not None}
    if withdrawn := sum(map(withdrawn_samples, manifests)):
        joined[WITHDRAWN] = withdrawn
        joined[IN_SHARDS] = {
            place: left[shard.url]
            for manifest, of in zip(manifests, places, strict=True)
            for left in [withdrawn_in_shards(manifest)]
            for place, shard in zip(of, manifest.shards, strict=True)
            if shard.url in left
        }
    return joined


def _alike(values: Mapping[str, Any]) -> Any:
    """The value that all have who have any; where they differ, that of each."""
    known = {name: value for name, value in values.items() if value is not None}
    first = next(iter(known.values()), None)
    return first if all(value == first for value in known.values()) else known


def _is_count(value: Any) -> bool:
    """A number, or numbers by name, at any depth; or nothing."""
    if isinstance(value, dict):
        return all(map(_is_count, value.values()))
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _added(values: Iterable[Any]) -> Any:
    found = [value for value in values if value is not None]
    if any(isinstance(value, dict) for value in found):
        parts = [value for value in found if isinstance(value, dict)]
        return {name: _added(part.get(name) for part in parts) for name in dict.fromkeys(chain(*parts))}
    return sum(found)


def _names(datasets: Sequence[Dataset]) -> list[str]:
    """A name for each dataset: its own, with a number where another one before has it."""
    names: list[str] = []
    for dataset in datasets:
        name, number = dataset.manifest.name, 1
        while name in names:
            number += 1
            name = f"{dataset.manifest.name}-{number}"
        names.append(name)
    return names


def _come_back(output: Output) -> Iterator[str]:
    """A notice where the dataset that is replaced lacks samples that its parts may have."""
    if output.is_remote or not (output.root / MANIFEST_NAME).exists():
        return
    try:
        withdrawn = withdrawn_samples(read_manifest(output.root))
    except DatasetError:
        return
    if withdrawn:
        yield (
            f"{output}: {withdrawn} samples were withdrawn from the dataset that is replaced; those that were "
            "withdrawn from it alone are back: give 'dinowds withdraw' again, for its parts too"
        )


def _notices(datasets: Sequence[Dataset]) -> Iterator[str]:
    for dataset in datasets:
        try:
            names = list_subsets(dataset.url, dataset.files)
        except StorageError:  # readers may be allowed to read, but not to list
            continue
        if names:
            yield (
                f"{shown(dataset.url)}: its subsets are not carried over: {', '.join(names)}; make them again with "
                "'dinowds subset'"
            )
