"""A finished dataset, opened for reading."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, Manifest, read_manifest
from dinowds.errors import DatasetError

_OPEN_SHARDS = 256  # row groups kept per process: about 1 MB each


@dataclass(frozen=True)
class Sample:
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
    """The index of a dataset. Reads row groups of `samples.parquet` as they are needed; opens no shard."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._first_sample = np.concatenate([[0], np.cumsum([shard.num_samples for shard in manifest.shards])])
        self._parquet: Any = None  # kept open: its footer describes every row group and takes long to parse
        self._rows: Callable[[int], pa.Table] = functools.lru_cache(_OPEN_SHARDS)(self._read_rows)

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a dataset folder (or its manifest.json).

        Raises:
            DatasetError: missing, unfinished, of an unknown version, or the index does not fit the manifest.
        """
        folder = Path(path)
        if folder.name == MANIFEST_NAME:
            folder = folder.parent
        dataset = cls(folder, read_manifest(folder))
        dataset._check_index()
        return dataset

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Only what a loader process needs to open the same index again.
        return (Dataset, (self.folder, self.manifest))

    @property
    def index_path(self) -> Path:
        return self.folder / SAMPLES_NAME

    @property
    def shard_counts(self) -> list[int]:
        return [shard.num_samples for shard in self.manifest.shards]

    def shard_path(self, shard: int) -> Path:
        """The tar of shard number `shard`."""
        return self.folder / self.manifest.shards[shard].url

    def __getitem__(self, sample: int) -> Sample:
        """Look a sample up by its id."""
        shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
        rows = self._rows(shard)
        row = sample - int(self._first_sample[shard])
        key, offset, size, ext, digest, label = (column[row].as_py() for column in rows.columns)
        return Sample(sample, key, shard, offset, size, ext, digest, label)

    def columns(self, names: list[str]) -> pa.Table:
        """Whole columns of the index, in the order of sample ids."""
        return pq.read_table(self.index_path, columns=names, partitioning=None)

    def _read_rows(self, shard: int) -> pa.Table:
        columns = ["key", "offset", "size", "ext", "digest", "label"]
        try:
            if self._parquet is None:
                self._parquet = pq.ParquetFile(self.index_path)
            rows = self._parquet.read_row_group(shard, columns=columns, use_threads=False).select(columns)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.index_path}: row group {shard} cannot be read ({error})") from None
        return rows.combine_chunks()

    def _check_index(self) -> None:
        try:
            metadata = pq.read_metadata(self.index_path)
            names = pq.read_schema(self.index_path).names
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.index_path}: cannot be read ({error}); make the dataset again") from None
        if missing := [name for name in SAMPLES_SCHEMA.names if name not in names]:
            raise DatasetError(f"{self.index_path}: has no column {missing[0]!r}; make the dataset again")
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if counts != self.shard_counts:
            raise DatasetError(
                f"{self.index_path}: has {metadata.num_rows} rows in {len(counts)} row groups, but {MANIFEST_NAME} "
                f"lists {len(self)} samples in {len(self.manifest.shards)} shards; make the dataset again"
            )
