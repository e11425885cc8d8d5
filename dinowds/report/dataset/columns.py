"""The numbers of all samples, from the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import open_samples, read_rows
from dinowds.data.manifest import STATISTICS
from dinowds.data.subsets.selection import Ids
from dinowds.errors import DatasetError
from dinowds.remote.urls import shown


@dataclass(frozen=True)
class Columns:
    """Of the N selected samples, in the order of their ids: 48 bytes each."""

    ids: Ids
    cohort: NDArray[np.int32]
    """[N]: positions in the manifest's cohorts."""
    label: NDArray[np.int32]
    """[N]: positions in the manifest's label names; -1 for none."""
    slide: NDArray[np.uint64]
    """[N]: a number for each cohort and slide; 0 where it is unknown."""
    size: NDArray[np.int64]
    """[N]: bytes of the payload."""
    digest: NDArray[np.uint8]
    """[N, 16]: of the payload."""

    def __len__(self) -> int:
        return len(self.ids)


def read_columns(dataset: Dataset) -> Columns:
    """Of the selected samples, shard by shard.

    Raises:
        DatasetError: the index cannot be read, or has a label without a name.
    """
    ids = dataset.selection.all_ids()
    count = len(ids)
    found = Columns(
        ids,
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.uint64),
        np.empty(count, np.int64),
        np.empty((count, 16), np.uint8),
    )
    for shard, places, positions in dataset.by_shard(ids):
        rows = dataset.rows(shard)
        found.cohort[places] = rows.cohort[positions]
        found.label[places] = rows.label[positions]
        found.slide[places] = rows.slide[positions]
        found.size[places] = rows.size[positions]
        found.digest[places] = rows.digest[positions]
    if found.label.max(initial=-1) >= len(dataset.manifest.label_names):
        raise DatasetError(f"{shown(dataset.url)}: label {found.label.max()} has no name; make the dataset again")
    return found


def read_rows_of(dataset: Dataset, ids: Ids, names: Sequence[str]) -> list[dict[str, Any]]:
    """int64 [n] sample ids → [n]: these columns of samples.parquet. Reads the row groups that the samples are in."""
    found: list[Any] = [None] * len(ids)
    for shard, places, positions in dataset.by_shard(ids):
        rows = dataset.index.groups.read(shard, names).take(positions).to_pylist()
        for place, row in zip(places.tolist(), rows, strict=True):
            found[place] = row
    return found


def labels_per_cohort(columns: Columns, num_cohorts: int, num_labels: int) -> NDArray[np.int64]:
    """int64 [cohorts, 1 + labels]: samples of each cohort without a label, and with each."""
    width = num_labels + 1
    codes = columns.cohort.astype(np.int64) * width + columns.label + 1
    return np.bincount(codes, minlength=num_cohorts * width).reshape(num_cohorts, width)


def read_statistics(dataset: Dataset) -> dict[str, NDArray[np.float32]]:
    """`white`, `black` and `sharpness` of the selected samples, float32 [N] each, where the index has them.

    NaN for samples that came without. Raises DatasetError where the index cannot be read.
    """
    chosen = dataset.selection.chosen()
    with open_samples(dataset.index_path, dataset.manifest.samples_footer_sha256) as file:
        names = [name for name in STATISTICS if name in file.schema_arrow.names]
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        for group in range(file.num_row_groups if names else 0):
            try:
                rows = read_rows(file, group, names)
            except ValueError as error:
                raise DatasetError(f"{dataset.index_path}: row group {group} {error}; make the dataset again") from None
            is_chosen = chosen[dataset.first_ids[group] : dataset.first_ids[group + 1]]
            for name in names:
                parts[name].append(rows[name].to_numpy().astype(np.float32)[is_chosen])
    return {name: np.concatenate(found) for name, found in parts.items()}
