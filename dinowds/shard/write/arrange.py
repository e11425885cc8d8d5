"""Which sample goes where: all images as columns, their shuffled order, and the cut into shards. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.shard.sources.scanning import Scanned
from dinowds.shard.sources.source import Source, SourceFile
from dinowds.shard.tarheader import BLOCK, padded
from dinowds.shard.ustar import END_BYTES

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The images of all sources, in source order.

    `table` is that of `listing.Listing.images` [N], each column in one piece, and `file` int32 [N], position in
    `files`.
    `cohort_of` is int32 [N], position in `cohorts`.
    """

    table: Any
    files: tuple[SourceFile, ...]
    cohorts: tuple[str, ...]
    cohort_of: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.table)

    def filter(self, kept: npt.NDArray[np.bool_]) -> Images:
        """Those where `kept`, bool [N]."""
        if kept.all():
            return self
        return Images(
            self.table.filter(pa.array(kept)).combine_chunks(), self.files, self.cohorts, self.cohort_of[kept]
        )

    def column(self, name: str) -> Any:
        """A column as one Arrow array."""
        column = self.table[name]
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def numbers(self, name: str) -> Any:
        """A column without nulls as a numpy array [N]."""
        return self.table[name].to_numpy()


def join_listings(sources: Sequence[Source], scanned: Sequence[Sequence[Scanned]]) -> Images:
    """All images of all sources."""
    flat = [file for files in scanned for file in files]
    counts = [len(file.listing.images) for file in flat]
    table = pa.concat_tables([file.listing.images for file in flat], promote_options="default").unify_dictionaries()
    table = table.append_column("file", pa.array(np.repeat(np.arange(len(flat), dtype=np.int32), counts)))
    cohorts = list(dict.fromkeys(source.cohort for source in sources))
    have_own = [any("cohort" in file.listing.images.column_names for file in files) for files in scanned]
    maybe_empty = {source.cohort for source, own in zip(sources, have_own, strict=True) if own}
    of_file = [cohorts.index(source.cohort) for source, files in zip(sources, scanned, strict=True) for _ in files]
    cohort_of = np.repeat(np.array(of_file, np.int32), counts)
    if "cohort" in table.column_names:
        own = table["cohort"].combine_chunks()
        table = table.drop_columns("cohort")
        for name in pc.unique(own.drop_null()).to_pylist():
            if name not in cohorts:
                cohorts.append(name)
            cohort_of[pc.fill_null(pc.equal(own, name), False).to_numpy(zero_copy_only=False)] = cohorts.index(name)
    counted = np.bincount(cohort_of, minlength=len(cohorts))
    named = [at for at, name in enumerate(cohorts) if counted[at] or name not in maybe_empty]
    cohort_of = np.searchsorted(named, cohort_of).astype(np.int32)
    names = tuple(cohorts[at] for at in named)
    return Images(table.combine_chunks(), tuple(file.file for file in flat), names, cohort_of)


def shuffled(count: int, seed: int) -> Int64s:
    """A permutation of `count` that is the same with every version of numpy.

    Sorts Philox's raw numbers: numpy keeps those for ever, but not what its generators make of them.
    """
    keys = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(keys, kind="stable")


def sample_bytes(images: Any, labels: Int64s) -> Int64s:
    """int64 [N]: what each sample takes in a tar: header and padded payload of its image, of its label (two blocks)
    and of its further members.
    """
    num_bytes: Int64s = BLOCK + padded(images["size"].to_numpy()) + np.where(labels >= 0, 2 * BLOCK, 0)
    if "extras" in images.column_names:
        extras = images["extras"].combine_chunks()
        of = pc.list_parent_indices(extras).to_numpy()
        sizes = pc.struct_field(pc.list_flatten(extras), "size").to_numpy()
        np.add.at(num_bytes, of, BLOCK + padded(sizes))
    return num_bytes


def cut_shards(num_bytes: Int64s, shard_size: int, max_count: int | None) -> list[int]:
    """Where each shard begins, and the end: a shard takes samples while its tar is at most `shard_size` bytes long and
    it has at most `max_count` of them. A sample that is larger alone gets a shard of its own.
    """
    ends = np.cumsum(num_bytes)
    bounds = [0]
    while bounds[-1] < len(ends):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + shard_size - END_BYTES, "right"))
        if max_count is not None:
            stop = min(stop, start + max_count)
        bounds.append(max(stop, start + 1))
    return bounds
