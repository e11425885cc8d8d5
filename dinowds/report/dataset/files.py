"""Sections of what the files are: sizes and formats, duplicates, what was left out, subsets and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.subset import describe, list_subsets, read_subset
from dinowds.data.summary import Summary
from dinowds.data.withdrawn import withdrawn_samples
from dinowds.errors import DatasetError, StorageError
from dinowds.files import format_bytes
from dinowds.report.dataset.columns import Columns, read_rows_of
from dinowds.report.dataset.counts import long_table, share
from dinowds.report.dataset.duplicates import Duplicates
from dinowds.report.dataset.figures import log_histogram_figure
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.spread import log_histogram
from dinowds.report.page import Block, Cell, Facts, Folded, Plot, Section, Table, Text
from dinowds.report.page import Columns as Beside

_TOP = 12
_LEAST = 8
"""Samples that a histogram is made of."""
_OF_GROUP = 100
"""Samples of a group of duplicates that are looked at."""


def file_section(summary: Summary, columns: Columns) -> Section:
    """Sizes, formats and bytes."""
    region = summary.kind == "region"
    unit = "cells" if region else "px"
    plots: list[Block] = []
    sizes = np.array([[*map(int, size.split("x")), count] for size, count in summary.sizes.items()], np.int64)
    sizes = sizes.reshape(-1, 3)
    longer = np.repeat(sizes[:, :2].max(axis=1), sizes[:, 2])
    if len(longer) >= _LEAST and len(np.unique(longer)) > 1:
        figure = log_histogram_figure(
            log_histogram(longer, np.zeros(len(longer), np.int64), 1), ("samples",), f"longer side, {unit}", "samples"
        )
        alt = f"Histogram of the longer side: {longer.min():,} to {longer.max():,} {unit}."
        plots.append(Plot("Longer side", figure, alt, height=260))
    groups = main_groups(columns.cohort, list(summary.cohorts))
    if len(columns) >= _LEAST and len(np.unique(columns.size)) > 1:
        figure = log_histogram_figure(
            log_histogram(columns.size, groups.codes, len(groups.names)), groups.names, "bytes of a sample", "samples"
        )
        low, middle, high = np.quantile(columns.size, (0.05, 0.5, 0.95))
        alt = f"Histogram of the bytes: {middle:,.0f} in the median, nine tenths from {low:,.0f} to {high:,.0f}."
        note = "Cohorts that differ were compressed otherwise, or show more detail."
        plots.append(Plot("Bytes of a sample", figure, alt, note if len(groups.names) > 1 else "", height=260))
    rows = [
        (size.replace("x", " × "), count, share(count, summary.samples))
        for size, count in list(summary.sizes.items())[:_TOP]
    ]
    formats = [(name, count, share(count, summary.samples)) for name, count in summary.formats.items()]
    tables: list[Block] = [
        Table(f"The most frequent sizes, {unit}", ("width × height", "samples", "share, %"), rows),
        Table("Formats", ("format", "samples", "share, %"), formats),
    ]
    blocks: list[Block] = [*([Beside(plots)] if plots else []), Beside(tables)]
    return Section("Regions as files" if region else "Images as files", "files", blocks)


def duplicate_section(dataset: Dataset, duplicates: Duplicates) -> Section:
    """Samples with the same bytes."""
    if not duplicates.groups:
        return Section("Duplicates", "duplicates", [Text("No two samples have the same bytes.")])
    payloads = "One payload is" if duplicates.groups == 1 else f"{duplicates.groups:,} payloads are"
    text = (
        f"{payloads} there several times, byte for byte. Samples that 'dinowds shard --drop-duplicates' would leave "
        f"out: {duplicates.copies:,}."
    )
    counts = (
        ("in several slides", duplicates.across_slides),
        ("in several cohorts", duplicates.across_cohorts),
        ("with different labels", duplicates.across_labels),
    )
    rows = _largest(dataset, duplicates)
    blocks: list[Block] = [
        Text(text),
        Facts([(f"payloads {name}", count) for name, count in counts]),
        Table("The most frequent payloads", ("first key", "samples", "cohorts", "slides", "labels"), rows),
    ]
    return Section("Duplicates", "duplicates", blocks)


def _largest(dataset: Dataset, duplicates: Duplicates) -> list[Sequence[Cell]]:
    """A row for each of the largest groups: what its first samples are."""
    names = dataset.manifest.label_names
    looked_at = [ids[:_OF_GROUP] for ids in duplicates.largest]
    found = iter(read_rows_of(dataset, np.concatenate(looked_at), ("key", "cohort", "slide", "label")))
    rows: list[Sequence[Cell]] = []
    for ids, looked in zip(duplicates.largest, looked_at, strict=True):
        members = list(islice(found, len(looked)))
        labels = {None if row["label"] is None else names[row["label"]] for row in members}
        cohorts, slides = ({row[name] for row in members} for name in ("cohort", "slide"))
        rows.append((members[0]["key"], len(ids), *map(_some, (cohorts, slides, labels))))
    return rows


def _some(names: set[str | None]) -> str | None:
    known = sorted(name for name in names if name is not None)
    if not known:
        return None
    more = f" and {len(known) - 3:,} more" if len(known) > 3 else ""
    return ", ".join(known[:3]) + more


def left_out_section(dataset: Dataset, summary: Summary) -> Section:
    """What was not taken, and what is no longer there."""
    rows: list[Sequence[Cell]] = [("quarantined", reason, count) for reason, count in summary.quarantined.items()]
    rows += [("dropped", reason, count) for reason, count in _counts(summary.metadata, "dropped")]
    rows += [("skipped", reason, count) for reason, count in _counts(summary.metadata, "skipped")]
    if withdrawn := withdrawn_samples(dataset.manifest):
        rows.append(("withdrawn", "no longer in the index", withdrawn))
    if summary.withdrawn_in_shards:
        rows.append(
            ("withdrawn", "but still in the shards; see 'dinowds withdraw --rewrite'", summary.withdrawn_in_shards)
        )
    if not rows:
        return Section("Left out", "left-out", [Text("Everything that was given was taken.")])
    blocks: list[Block] = [Table("Not in the dataset", ("what", "reason", "files"), rows)]
    if summary.quarantined:
        blocks.append(Text("quarantine.jsonl beside the manifest names each of the quarantined."))
    return Section("Left out", "left-out", blocks)


def _counts(metadata: Mapping[str, Any], name: str) -> list[tuple[str, int]]:
    found = metadata.get(name)
    return [(str(k), v) for k, v in found.items() if isinstance(v, int)] if isinstance(found, dict) else []


def about_section(dataset: Dataset, summary: Summary) -> Section:
    """Subsets and metadata."""
    blocks: list[Block] = [*_subsets(dataset)]
    if rows := _flat(summary.metadata):
        table = long_table("The manifest's metadata", ("name", "value"), rows, "entries")
        blocks += table if len(rows) <= _TOP else [Folded(f"The manifest's metadata, {len(rows):,} entries", table)]
    facts: list[tuple[str, Cell]] = [
        ("name", dataset.manifest.name),
        ("kind", summary.kind),
        ("seed of the shuffle", dataset.manifest.seed if dataset.manifest.shuffled else "not shuffled"),
        ("bytes of all shards", format_bytes(summary.num_bytes)),
        ("sha256 of samples.parquet", dataset.manifest.samples_sha256),
    ]
    return Section("Subsets and metadata", "about", [*blocks, Facts(facts)])


def _subsets(dataset: Dataset) -> list[Block]:
    try:
        names = list_subsets(dataset.url, dataset.files)
    except (StorageError, OSError):
        return [Text("The subsets cannot be listed here.")]
    rows: list[Sequence[Cell]] = []
    total = int(dataset.first_ids[-1])
    for name in names:
        try:
            subset = read_subset(dataset.url, name, dataset.manifest, dataset.files)
        except DatasetError as error:
            rows.append((name, None, None, None, str(error)))
            continue
        about = describe(subset.definition)
        rows.append((name, subset.samples, share(subset.samples, total), subset.slides, about))
    if not rows:
        return [Text("There are no subsets; 'dinowds subset' makes them.")]
    return long_table("Subsets", ("subset", "samples", "share, %", "slides", "made with"), rows, "subsets")


def _flat(metadata: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested names joined by dots; values as JSON where they are no text."""
    rows: list[tuple[str, str]] = []
    for name, value in metadata.items():
        full = f"{before}{name}"
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{full}.")
        else:
            rows.append((full, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)))
    return rows
