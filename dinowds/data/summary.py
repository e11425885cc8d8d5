"""What a dataset holds, from its index alone. Streams one row group at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.dataset import Dataset
from dinowds.data.withdrawn import withdrawn_in_shards

__all__ = ["Summary", "summarize"]

_MERGE_ROWS = 1 << 20
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Summary:
    """Counts are of samples unless their name says otherwise. Dictionaries are ordered: cohorts and labels as in the
    manifest, sizes ('WIDTHxHEIGHT') and formats with the most frequent first.

    A slide is counted once for each cohort that it comes in; `samples_per_slide` is (min, median, max), None where no
    slide is known.
    """

    name: str
    kind: str
    subset: str | None
    """Name of the subset that is counted; None for the whole dataset."""
    shards: int
    """That hold samples of it."""
    samples: int
    num_bytes: int
    """Of all shards of the dataset."""
    payload_bytes: int
    cohorts: dict[str, int]
    slides: int
    slides_per_cohort: dict[str, int]
    samples_without_slide: int
    samples_per_slide: tuple[int, float, int] | None
    labels: dict[str, int]
    samples_without_label: int
    sizes: dict[str, int]
    formats: dict[str, int]
    quarantined: dict[str, int]
    metadata: dict[str, Any]
    withdrawn_in_shards: int
    """Samples that are no longer in the index, but whose bytes are still in the shards."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def summarize(location: str | Path | Dataset) -> Summary:
    """Read the manifest and the index of a dataset, or of a subset of it ('DATASET:SUBSET'); no shard is opened.

    Raises:
        DatasetError: there is no dataset, or its index cannot be read or does not fit the manifest.
        StorageError: it lies remote and cannot be read.
    """
    dataset = location if isinstance(location, Dataset) else Dataset.open(location)
    manifest = dataset.manifest
    counts = _Counts()
    chosen = None if dataset.subset is None else dataset.selection.chosen()
    for first, rows in dataset.batches(("cohort", "slide", "label", "width", "height", "ext", "size"), _BATCH_ROWS):
        counts.add(rows if chosen is None else rows.filter(pa.array(chosen[first : first + len(rows)])))
    slides, labels, sizes, formats = (counts.finish(names) for names in _GROUPS)
    known = {pair: count for pair, count in slides.items() if pair[1] is not None}
    per_slide = np.array(list(known.values()))
    cohorts: Counter[str] = Counter()
    for (cohort, _), count in slides.items():
        cohorts[cohort] += count
    slides_of = Counter(cohort for cohort, _ in known)
    return Summary(
        name=manifest.name,
        kind=manifest.kind,
        subset=dataset.subset,
        shards=int(np.count_nonzero(dataset.selection.counts)),
        samples=counts.samples,
        num_bytes=manifest.num_bytes,
        payload_bytes=counts.payload_bytes,
        cohorts={name: cohorts[name] for name in manifest.cohorts},
        slides=len(known),
        slides_per_cohort={name: slides_of[name] for name in manifest.cohorts},
        samples_without_slide=counts.samples - sum(known.values()),
        samples_per_slide=(int(per_slide.min()), float(np.median(per_slide)), int(per_slide.max())) if known else None,
        labels={name: labels.get((position,), 0) for position, name in enumerate(manifest.label_names)},
        samples_without_label=labels.get((None,), 0),
        sizes=_by_frequency({f"{pair[0]}x{pair[1]}": count for pair, count in sizes.items()}),
        formats=_by_frequency({str(single[0]): count for single, count in formats.items()}),
        quarantined=manifest.quarantined,
        metadata=manifest.metadata,
        withdrawn_in_shards=sum(withdrawn_in_shards(manifest).values()),
    )


_GROUPS = (("cohort", "slide"), ("label",), ("width", "height"), ("ext",))


class _Counts:
    """Samples for each value of `_GROUPS`, kept as Arrow tables of (values, count) that are merged when they grow."""

    def __init__(self) -> None:
        self.samples = 0
        self.payload_bytes = 0
        self._tables: dict[tuple[str, ...], list[Any]] = {names: [] for names in _GROUPS}

    def add(self, rows: Any) -> None:
        self.samples += len(rows)
        self.payload_bytes += int(pc.sum(rows["size"]).as_py() or 0)
        for names, tables in self._tables.items():
            counted = rows.select(names).group_by(list(names)).aggregate([([], "count_all")])
            tables.append(counted)
            if sum(len(table) for table in tables) > _MERGE_ROWS:
                self._tables[names] = [_merged(tables, names)]

    def finish(self, names: Sequence[str]) -> dict[tuple[Any, ...], int]:
        """(values) → number of samples."""
        tables = self._tables[tuple(names)]
        if not tables:
            return {}
        columns = _merged(tables, names).to_pydict()
        return dict(zip(zip(*(columns[name] for name in names), strict=True), columns["count_all"], strict=True))


def _merged(tables: Sequence[Any], names: Sequence[str]) -> Any:
    summed = pa.concat_tables(tables).group_by(list(names)).aggregate([("count_all", "sum")])
    return summed.rename_columns(["count_all" if name == "count_all_sum" else name for name in summed.column_names])


def _by_frequency(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
