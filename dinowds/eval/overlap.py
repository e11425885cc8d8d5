"""Whether what is tested on was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.selection import Ids
from dinowds.embed.patches.stream import shard_ids
from dinowds.eval.labelled import Labelled, some


@dataclass(frozen=True)
class Overlap:
    """What of labelled samples is in another dataset too."""

    slides: list[str]
    num_slides: int
    """Of all labelled samples."""
    keys: list[str]
    """Of samples with the same payload; looked for where slides are unknown, or where it was asked for."""
    num_samples: int
    """All labelled ones, without repeats."""
    is_unknown: bool
    """The slide of some sample, on either side."""

    def describe(self) -> str:
        """Part of a sentence; '' for nothing."""
        slides = f"{len(self.slides):,} of its {self.num_slides:,} slides ({some(self.slides)})"
        samples = f"{len(self.keys):,} of its {self.num_samples:,} samples ({some(self.keys)})"
        found = [text for text, parts in ((slides, self.slides), (samples, self.keys)) if parts]
        return " and ".join(found)

    def describe_nothing(self) -> str:
        """The same where nothing was found."""
        if not self.num_slides:
            return "slides are not known"
        return "no slide in common" + (", of those that are known" if self.is_unknown else "")


def find_overlap(labelled: Labelled, other: Dataset, with_payloads: bool = False) -> Overlap:
    """Slides that have samples both among `labelled` and among the selected ones of `other`.

    Slides are compared by name, whatever their cohort: a dataset of labelled patches calls its cohort as it likes.
    Where the slide of some sample is unknown, or `with_payloads`, payloads are compared too, by their digests. Reads
    these columns of the index.
    """
    own = [name for values in _of_labelled(labelled, "slide") for name in values.unique().to_pylist()]
    slides = set(own) - {None}
    wanted = pa.array(sorted(slides), pa.string())
    found: set[str] = set()
    is_unknown = None in own
    for values in _of_selected(other, "slide"):
        distinct = values.unique()
        found.update(distinct.filter(pc.is_in(distinct, wanted)).to_pylist())
        is_unknown |= distinct.null_count > 0
    keys, num_samples = _same_payloads(labelled, other) if is_unknown or with_payloads else ([], len(labelled.ids))
    return Overlap(sorted(found), len(slides), keys, num_samples, is_unknown)


def _same_payloads(labelled: Labelled, other: Dataset) -> tuple[list[str], int]:
    """Keys of labelled samples whose payloads `other` has too, and the number of different payloads."""
    digests = pa.concat_arrays([chunk for values in _of_labelled(labelled, "digest") for chunk in values.chunks])
    places: set[int] = set()
    for values in _of_selected(other, "digest"):
        places.update(pc.index_in(values, digests).drop_null().unique().to_pylist())
    ids = labelled.ids[np.array(sorted(places), np.int64)]
    return [sample.key for sample in labelled.dataset.samples(ids)], len(digests.unique())


def _of_labelled(labelled: Labelled, column: str) -> Iterator[Any]:
    """Values of a column of the index, shard by shard, in the order of ids."""
    for shard, _, positions in labelled.dataset.by_shard(labelled.ids):
        yield _column(labelled.dataset, shard, column, positions)


def _of_selected(dataset: Dataset, column: str) -> Iterator[Any]:
    for shard in np.flatnonzero(dataset.selection.counts).tolist():
        yield _column(dataset, shard, column, shard_ids(dataset, shard) - dataset.first_ids[shard])


def _column(dataset: Dataset, shard: int, column: str, positions: Ids) -> Any:
    values = dataset.index.groups.read(shard, [column]).column(0)
    return values if len(positions) == len(values) else values.take(pa.array(positions))
