"""A finished dataset, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dinowds.data.index.lookup import Index
from dinowds.data.index.shardrows import ShardRows
from dinowds.data.location import join_url, split_location
from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_NAME, Manifest, read_manifest
from dinowds.data.store.fetch import fetch
from dinowds.data.subsets.selection import Ids, Mask, Selection, pack_mask
from dinowds.data.subsets.subset import Subset, load_mask, read_subset
from dinowds.errors import DatasetError
from dinowds.remote.files import RemoteFiles, is_remote, shown


class Sample(NamedTuple):
    """Where one sample's payload lies, and what it is."""

    id: int
    key: str
    shard: int
    offset: int
    size: int
    ext: str
    digest: bytes
    label: int | None


class Dataset:
    """The index of a dataset, local or remote, or of a subset of it. Opens no shard.

    A sample's id is its row in samples.parquet, counted over all shards; a subset does not renumber them. Look-ups go
    through an index in the cache folder (`index`), which all processes of a host share. Can be pickled.
    """

    def __init__(
        self, url: str, manifest: Manifest, subset: Subset | None = None, files: RemoteFiles | None = None
    ) -> None:
        self.url = url
        """The folder or URL that the shards' URLs are relative to."""
        self.manifest = manifest
        self.subset = None if subset is None else subset.name
        self.files = files or RemoteFiles()
        self._subset = subset
        self.first_ids: Ids = np.concatenate([[0], np.cumsum(self.shard_counts, dtype=np.int64)])
        """int64 [shards + 1]: the id of each shard's first sample, and the number of all samples."""

    @classmethod
    def open(cls, location: str | Path, files: RemoteFiles | None = None) -> Dataset:
        """Open 'DATASET' or 'DATASET:SUBSET': a folder or its manifest.json, or a URL of these.

        The samples.parquet of a remote dataset is copied into the cache folder, once for all processes of a host, and
        its sha256 is checked there. That of a local one is not computed here ('dinowds inspect --verify' does it).

        Raises:
            DatasetError: missing, unfinished, of an unknown version, the index does not fit the manifest, or there is
                no such subset.
            StorageError: it lies remote and cannot be read.
        """
        files = files or RemoteFiles()
        root, name = split_location(location)
        manifest = read_manifest(root, files)
        dataset = cls(root, manifest, None if name is None else read_subset(root, name, manifest, files), files)
        dataset._check()
        return dataset

    def whole(self) -> Dataset:
        """The dataset that this is a subset of."""
        return Dataset(self.url, self.manifest, None, self.files)

    def __reduce__(self) -> tuple[Any, ...]:
        # The selection and what is mapped are made again where they are used.
        return (Dataset, (self.url, self.manifest, self._subset, self.files))

    def __len__(self) -> int:
        """Selected samples."""
        return int(self.first_ids[-1]) if self._subset is None else self._subset.samples

    def __getitem__(self, sample: int) -> Sample:
        """Look a sample up by its id, be it in the subset or not; raises IndexError where there is none."""
        if not 0 <= sample < self.first_ids[-1]:
            raise IndexError(f"sample {sample} of a dataset of {self.first_ids[-1]}")
        shard = int(self.first_ids.searchsorted(sample, side="right")) - 1
        row = self.rows(shard).row(int(sample - self.first_ids[shard]))
        return _sample(int(sample), shard, *row)

    def samples(self, ids: Ids) -> list[Sample]:
        """int64 [n] sample ids → [n]: the same for many at once, which takes a third of the time."""
        found: list[Any] = [None] * len(ids)
        for shard, places, positions in self.by_shard(ids):
            rows = self.rows(shard).take(positions)
            for place, sample, row in zip(places.tolist(), ids[places].tolist(), rows, strict=True):
                found[place] = _sample(sample, shard, *row)
        return found

    def __iter__(self) -> Iterator[Sample]:
        """The selected samples, in the order of their ids."""
        for sample in self.selection.all_ids().tolist():
            yield self[sample]

    @cached_property
    def selection(self) -> Selection:
        """The samples of the subset, or all.

        Raises:
            DatasetError: the subset's mask is missing or damaged.
        """
        counts = np.diff(self.first_ids)
        if self._subset is None:
            return Selection(counts)
        selection = Selection(counts, load_mask(self.url, self._subset, int(counts.sum()), self.files))
        if len(selection) != self._subset.samples:
            raise DatasetError(
                f"{shown(self.url)}: subset {self.subset!r} has {len(selection)} samples, its description says "
                f"{self._subset.samples}; make it again with --overwrite"
            )
        return selection

    @property
    def cohorts(self) -> dict[str, int]:
        """Selected samples of each cohort."""
        return self.manifest.cohorts if self._subset is None else self._subset.cohorts

    @property
    def fingerprint(self) -> str:
        """Of the samples that are selected: sha256 of samples.parquet, and that of the subset's file."""
        if self._subset is None:
            return self.manifest.samples_sha256
        return f"{self.manifest.samples_sha256}:{self._subset.file_sha256}"

    @cached_property
    def index_path(self) -> Path:
        """samples.parquet on this host; that of a remote dataset is fetched if need be."""
        url = join_url(self.url, SAMPLES_NAME)
        if not is_remote(url):
            return Path(url)
        try:
            return fetch(self.files, url, self.manifest.samples_sha256, ".parquet")
        except FileNotFoundError:
            raise DatasetError(
                f"{shown(url)}: no such file, though there is a manifest; copy the dataset again"
            ) from None

    @cached_property
    def index(self) -> Index:
        return Index(self.index_path, self.manifest)

    @property
    def location(self) -> str:
        """DATASET or DATASET:SUBSET, to open it again from another folder: a whole path, or a URL as `shown`."""
        place = shown(self.url) if is_remote(self.url) else str(Path(self.url).absolute())
        return place if self.subset is None else f"{place}:{self.subset}"

    @property
    def shard_counts(self) -> list[int]:
        """Samples of each shard, in the subset or not."""
        return [shard.num_samples for shard in self.manifest.shards]

    def shard_url(self, shard: int) -> str:
        """Path or URL of the tar of shard number `shard`."""
        return join_url(self.url, self.manifest.shards[shard].url)

    def rows(self, shard: int) -> ShardRows:
        """All samples of a shard, as arrays that all processes share.

        Raises:
            DatasetError: its row group in samples.parquet is damaged.
        """
        return self.index.rows(shard)

    def by_shard(self, ids: Ids) -> Iterator[tuple[int, Ids, Ids]]:
        """Group int64 [n] sample ids by shard: (shard, which of `ids` are of it, their rows in it), each shard once.

        Raises:
            IndexError: there is no such sample.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.first_ids[-1]:
            raise IndexError(f"samples {ids.min()} to {ids.max()} of a dataset of {self.first_ids[-1]}")
        shards = np.searchsorted(self.first_ids, ids, side="right") - 1
        order = np.argsort(shards, kind="stable")
        edges = np.flatnonzero(np.diff(shards[order], prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            places = order[start:stop]
            shard = int(shards[places[0]])
            yield shard, places, ids[places] - self.first_ids[shard]

    def slides_of(self, ids: Ids) -> NDArray[np.uint64]:
        """int64 [n] sample ids → uint64 [n]: a number for each sample's cohort and slide; 0 where that is unknown."""
        found = np.empty(len(ids), np.uint64)
        for shard, places, positions in self.by_shard(ids):
            found[places] = self.rows(shard).slide[positions]
        return found

    def cohort_masks(self) -> dict[str, Mask]:
        """All samples of each cohort, in or out of the subset; a bit a sample. Reads one column of the whole index."""
        names = list(self.manifest.cohorts)
        num_bytes = -(-int(self.first_ids[-1]) // 8)
        masks = {name: np.zeros(num_bytes, np.uint8) for name in names}
        rest, done = np.zeros(0, np.int32), 0
        for _, rows in self.batches(["cohort"]):
            found = rows["cohort"].dictionary_encode().combine_chunks()
            codes = self._cohort_codes(found.dictionary.to_pylist())[found.indices.to_numpy()]
            codes = np.concatenate([rest, codes])
            whole = len(codes) // 8
            for position, name in enumerate(names):
                masks[name][done : done + whole] = pack_mask(codes[: 8 * whole] == position)
            rest, done = codes[8 * whole :], done + whole
        for position, name in enumerate(names):
            masks[name][done:] = pack_mask(rest == position)
        return masks

    def batches(self, names: Sequence[str], at_least: int = 1 << 18) -> Iterator[tuple[int, Any]]:
        """Columns of the whole index piece by piece: (first sample id, Arrow table of some row groups).

        Text comes as plain strings. A piece has `at_least` rows, but for the last one.
        """
        groups = self.index.groups
        tables: list[Any] = []
        first = stop = 0
        for group in range(len(groups.counts)):
            tables.append(groups.read(group, names))
            stop += len(tables[-1])
            if stop - first >= at_least or group == len(groups.counts) - 1:
                yield first, pa.concat_tables(tables)
                first, tables = stop, []

    def columns(self, names: list[str]) -> pa.Table:
        """Whole columns of the index, in the order of sample ids. Text comes as plain strings."""
        return pa.concat_tables(table for _, table in self.batches(names))

    def _cohort_codes(self, names: list[str]) -> NDArray[np.int32]:
        position = {name: place for place, name in enumerate(self.manifest.cohorts)}
        if unknown := [name for name in names if name not in position]:
            raise DatasetError(
                f"{self.index_path}: has the cohort {unknown[0]!r}, which {MANIFEST_NAME} does not list; make the "
                "dataset again"
            )
        return np.array([position[name] for name in names], np.int32)

    def _check(self) -> None:
        found, expected = self.index.groups.counts, np.diff(self.first_ids)
        if not np.array_equal(found, expected):
            raise DatasetError(
                f"{self.index_path}: has {found.sum()} rows in {len(found)} row groups, but {MANIFEST_NAME} "
                f"lists {expected.sum()} samples in {len(expected)} shards; make the dataset again"
            )
        _ = self.selection


def _sample(sample: int, shard: int, key: str, offset: int, size: int, ext: str, digest: bytes, label: int) -> Sample:
    return Sample(sample, key, shard, offset, size, ext, digest, None if label < 0 else label)
