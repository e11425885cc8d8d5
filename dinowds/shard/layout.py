"""Which sample goes where: all candidates as columns, their shuffled order, and the cut into shards. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .listing import Listing
from .records import choose_salts
from .tarheader import BLOCK
from .ustar import END_BYTES


@dataclass(frozen=True)
class Candidates:
    """The images of all sources, in source order; arrays are [N].

    `names` is a large_binary Arrow array; `labels` are positions in `label_names`, -1 for none; `salts` go into
    `records.sample_key`.
    """

    names: Any
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    source_of: npt.NDArray[np.int32]
    salts: npt.NDArray[np.int32]
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, which: npt.NDArray[np.int64]) -> Any:
        """An Arrow table of the candidates `which`, in that order."""
        columns = {
            "name": self.names.take(pa.array(which)),
            "place": self.places[which],
            "size": self.sizes[which],
            "label": self.labels[which],
            "source": self.source_of[which],
            "salt": self.salts[which],
        }
        return pa.table(columns)


def join_listings(listings: Sequence[Listing], cohorts: Sequence[str]) -> Candidates:
    """All images of all sources. Labels are numbered in the order of their integers, over all sources."""
    names = pa.concat_arrays([listing.names for listing in listings])
    source_of = np.repeat(np.arange(len(listings), dtype=np.int32), [len(listing.names) for listing in listings])
    values = np.concatenate([listing.labels for listing in listings])
    has_label = np.concatenate([listing.has_label for listing in listings])
    classes = np.unique(values[has_label])
    return Candidates(
        names=names,
        places=np.concatenate([listing.places for listing in listings]),
        sizes=np.concatenate([listing.sizes for listing in listings]),
        labels=np.where(has_label, np.searchsorted(classes, values), -1),
        source_of=source_of,
        salts=choose_salts(names, source_of, cohorts),
        label_names=tuple(str(value) for value in classes.tolist()),
    )


def shuffled(count: int, seed: int) -> npt.NDArray[np.int64]:
    """A permutation of `count` that is the same with every version of numpy.

    Sorts Philox's raw numbers: numpy keeps those for ever, but not what its generators make of them.
    """
    keys = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(keys, kind="stable")


def member_bytes(sizes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[N]: what each sample takes in a tar: header, padded payload, and a label's member of two blocks."""
    payload: npt.NDArray[np.int64] = BLOCK + -(-sizes // BLOCK) * BLOCK
    return payload + np.where(labels >= 0, 2 * BLOCK, 0)


def cut_shards(num_bytes: npt.NDArray[np.int64], shard_size: int, max_count: int | None) -> list[int]:
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
