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
import pyarrow.parquet as pq

from dinowds.data.manifest import SAMPLES_NAME, SAMPLES_SCHEMA, read_manifest
from dinowds.errors import DatasetError

_MERGE_ROWS = 1 << 20


@dataclass(frozen=True)
class Summary:
    """Counts are of samples unless their name says otherwise. Dictionaries are ordered: cohorts and labels as in the
    manifest, sizes ('WIDTHxHEIGHT') and formats with the most frequent first.

    A slide is counted once for each cohort that it comes in; `samples_per_slide` is (min, median, max), None where no
    slide is known.
    """

    name: str
    kind: str
    shards: int
    samples: int
    num_bytes: int
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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def summarize(folder: Path) -> Summary:
    """Read the manifest and the index of the dataset in `folder`; no shard is opened.

    Raises:
        DatasetError: there is no dataset, or its index cannot be read or does not fit the manifest.
    """
    manifest = read_manifest(folder)
    counts = _Counts()
    with open_index(folder) as index:
        for group in range(index.num_row_groups):
            try:
                counts.add(read_rows(index, group, ("cohort", "slide", "label", "width", "height", "ext", "size")))
            except ValueError as error:
                raise DatasetError(f"{folder / SAMPLES_NAME}: {error}; make the dataset again") from None
    slides, labels, sizes, formats = (counts.finish(names) for names in _GROUPS)
    if counts.samples != manifest.num_samples:
        raise DatasetError(
            f"{folder / SAMPLES_NAME}: has {counts.samples} rows, the manifest says {manifest.num_samples}; "
            "run 'dinowds inspect --verify'"
        )
    known = {pair: count for pair, count in slides.items() if pair[1] is not None}
    per_slide = np.array(list(known.values()))
    cohorts: Counter[str] = Counter()
    for (cohort, _), count in slides.items():
        cohorts[cohort] += count
    slides_of = Counter(cohort for cohort, _ in known)
    return Summary(
        name=manifest.name,
        kind=manifest.kind,
        shards=len(manifest.shards),
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
    )


def open_index(folder: Path) -> pq.ParquetFile:
    """Open `folder/samples.parquet`; raises DatasetError where it is no index of this format."""
    path = folder / SAMPLES_NAME
    try:
        index = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, though there is a manifest; make the dataset again") from None
    except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: is not a Parquet file ({_one_line(error)}); make the dataset again") from None
    found = {field.name: _plain_type(field.type) for field in index.schema_arrow}
    for field in SAMPLES_SCHEMA:
        if found.get(field.name) != _plain_type(field.type):
            index.close()
            was = f"a column {field.name!r} of type {found[field.name]}" if field.name in found else "no such column"
            expected = f"a column {field.name!r} of type {_plain_type(field.type)}"
            raise DatasetError(f"{path}: has {was}, expected {expected}; make the dataset again")
    return index


def read_rows(index: pq.ParquetFile, group: int, columns: Sequence[str]) -> Any:
    """A table of one row group, whose text is UTF-8 and where nothing is missing that must be there.

    Raises ValueError, in one line, where it cannot be read as that.
    """
    try:
        rows = index.read_row_group(group, columns=list(columns))
        rows.validate(full=True)
    except (OSError, ValueError, TypeError, IndexError, pa.ArrowException) as error:
        raise ValueError(f"cannot be read ({_one_line(error)})") from None
    for name in columns:
        if not SAMPLES_SCHEMA.field(name).nullable and rows[name].null_count:
            raise ValueError(f"has rows without {name!r}")
    return rows


def _plain_type(data_type: Any) -> Any:
    """Which columns are dictionaries is up to whoever wrote them."""
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


_GROUPS = (("cohort", "slide"), ("label",), ("width", "height"), ("ext",))


class _Counts:
    """Samples for each value of `_GROUPS`, kept as Arrow tables of (values, count) that are merged when they grow."""

    def __init__(self) -> None:
        self.samples = 0
        self.payload_bytes = 0
        self._tables: dict[tuple[str, ...], list[Any]] = {names: [] for names in _GROUPS}

    def add(self, rows: Any) -> None:
        self.samples += len(rows)
        self.payload_bytes += sum(rows["size"].to_numpy().tolist())
        for names, tables in self._tables.items():
            counted = _plain(rows.select(names)).group_by(list(names)).aggregate([([], "count_all")])
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


def _plain(rows: Any) -> Any:
    """Dictionary columns as text: row groups have dictionaries of their own."""
    fields = [pa.field(f.name, _plain_type(f.type)) for f in rows.schema]
    return rows.cast(pa.schema(fields))


def _by_frequency(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
