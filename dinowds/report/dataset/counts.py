"""Sections that the index alone tells: cohorts, slides, labels, files, duplicates, what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.subset import describe, list_subsets, read_subset
from dinowds.data.summary import Summary
from dinowds.data.withdrawn import withdrawn_samples
from dinowds.errors import DatasetError, StorageError
from dinowds.files import format_bytes
from dinowds.report.dataset.columns import Columns, labels_per_cohort, read_rows_of
from dinowds.report.dataset.duplicates import Duplicates
from dinowds.report.dataset.figures import encode_map, log_histogram_figure, map_cells, swatch
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.slides import SlideCounts, SlideMap, name_slides, read_maps
from dinowds.report.dataset.spread import log_histogram
from dinowds.report.page import Block, Cell, Facts, Folded, Gallery, Picture, Plot, Section, Table, Text
from dinowds.report.plots import bar_figure, heat_figure

_MOST_ROWS, _MOST_BARS = 200, 24
_MOST_HEAT = (24, 30)  # rows and columns
_TOP_SLIDES, _SLIDE_MAPS, _TOP_DUPLICATES = 12, 6, 12
_MAP_LABELS = 7
"""Labels that maps have colours for."""


def head_facts(dataset: Dataset, summary: Summary, duplicates: Duplicates) -> Facts:
    """The figures at the page's head."""
    cells = "cells" if summary.kind == "region" else "px"
    size, *others = [size.replace("x", " × ") for size in summary.sizes] or ["–"]
    facts: list[tuple[str, Cell]] = [
        ("samples", summary.samples),
        ("cohorts", sum(count > 0 for count in summary.cohorts.values())),
        ("slides", summary.slides or None),
        ("labels", sum(count > 0 for count in summary.labels.values()) or None),
        ("bytes of samples", format_bytes(summary.payload_bytes)),
        ("shards", summary.shards),
        (f"size, {cells}", size + (f" and {len(others):,} others" if others else "")),
        ("formats", ", ".join(summary.formats)),
        ("exact duplicates", duplicates.copies),
        ("quarantined", sum(summary.quarantined.values())),
        ("seed of the shuffle", dataset.manifest.seed if dataset.manifest.shuffled else "not shuffled"),
    ]
    if (spacing := _spacings(summary.metadata)) is not None:
        facts.append(("mpp", spacing))
    return Facts(facts)


def _spacings(metadata: Mapping[str, Any]) -> str | None:
    cohorts = metadata.get("cohorts")
    found = [about["mpp"] for about in _mappings(cohorts) if "mpp" in about] + [metadata[k] for k in ("mpp",) if k in metadata]
    return ", ".join(dict.fromkeys(str(value) for value in found)) or None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Metadata may be of others: whatever is not as expected is passed over."""
    return [about for about in value.values() if isinstance(about, dict)] if isinstance(value, dict) else []


def cohort_section(summary: Summary, columns: Columns) -> Section:
    """A row for each cohort."""
    num_bytes = np.bincount(columns.cohort, columns.size, minlength=len(summary.cohorts))
    rows: list[Sequence[Cell]] = [
        (
            name,
            count,
            100 * count / max(1, summary.samples),
            summary.slides_per_cohort[name] or None,
            count / summary.slides_per_cohort[name] if summary.slides_per_cohort[name] else None,
            num_bytes[place] / max(1, count) / 1024,
        )
        for place, (name, count) in enumerate(summary.cohorts.items())
    ]
    head = ("cohort", "samples", "share, %", "slides", "samples a slide", "KiB a sample")
    return Section("Cohorts", "cohorts", [Table("What comes from each cohort", head, _first(rows)), *_cut(rows, "cohorts")])


def _first(rows: Sequence[Sequence[Cell]]) -> Sequence[Sequence[Cell]]:
    return rows[:_MOST_ROWS]


def _cut(rows: Sequence[object], what: str) -> list[Block]:
    """A line that says so where there are more rows than are shown."""
    return [Text(f"The first {_MOST_ROWS:,} of {len(rows):,} {what}.")] if len(rows) > _MOST_ROWS else []


def slide_section(dataset: Dataset, summary: Summary, columns: Columns, slides: SlideCounts) -> Section | None:
    """How many samples a slide has, the largest, and maps; None where no slide is known."""
    if not len(slides.counts):
        return None
    assert summary.samples_per_slide is not None
    least, median, most = summary.samples_per_slide
    text = (
        f"{len(slides.counts):,} slides of {least:,} to {most:,} samples, {median:,g} in the median. The largest tenth "
        f"of them has {_percent(slides.share_of_largest(0.1))} of the samples."
    )
    if summary.samples_without_slide:
        text += f" Of {summary.samples_without_slide:,} samples the slide is unknown."
    blocks: list[Block] = [Text(text)]
    groups = main_groups(columns.cohort[slides.first], list(summary.cohorts))
    if most > least:
        figure = log_histogram_figure(
            log_histogram(slides.counts, groups.codes, len(groups.names)), groups.names, "samples of a slide", "slides"
        )
        blocks.append(
            Plot("Samples of a slide", figure, f"Histogram of the samples of a slide: {text}", "Few very large slides may crowd out the others; see --max-per-slide.")
        )
    top = name_slides(dataset, columns, slides, _TOP_SLIDES)
    rows = [(slide, cohort, count, 100 * count / summary.samples) for cohort, slide, count in top]
    blocks.append(Table("The largest slides", ("slide", "cohort", "samples", "share, %"), rows))
    if maps := read_maps(dataset, columns, slides, _SLIDE_MAPS):
        blocks.append(_map_gallery(maps, list(summary.labels)))
    return Section("Slides", "slides", blocks)


def _map_gallery(maps: Sequence[SlideMap], labels: Sequence[str]) -> Gallery:
    found = sorted({label for one in maps for label in np.unique(one.labels).tolist() if label >= 0})
    by_label = 0 < len(found) <= _MAP_LABELS
    pictures = [
        Picture(
            encode_map(map_cells(one.labels, found if by_label else [])),
            f"Map of the {one.count:,} samples of slide {one.slide}",
            f"{one.slide} · {one.cohort} · {one.count:,} samples, a cell is {one.cell:,.4g} wide",
        )
        for one in maps
    ]
    keys = [
        Picture(swatch(place), f"Colour of the label {labels[label]}", labels[label])
        for place, label in enumerate(found if by_label else [])
    ]
    colours = ", in the colours of their labels" if by_label else ""
    return Gallery(f"Where the samples of some slides lie, by their x and y{colours}", [*pictures, *keys], 4)


def label_section(summary: Summary, columns: Columns) -> Section | None:
    """How often each label is, also in each cohort; None where no sample has one."""
    names = list(summary.labels)
    used = [name for name in names if summary.labels[name]]
    if not used:
        return None
    counts = labels_per_cohort(columns, len(summary.cohorts), len(names))
    order = sorted(used, key=lambda name: -summary.labels[name])
    most, least = order[0], order[-1]
    ratio = summary.labels[most] / summary.labels[least]
    text = f"{len(used):,} labels. {most!r} has {summary.labels[most]:,} samples, {least!r} {summary.labels[least]:,}"
    text += f": {ratio:,.3g} times as many." if ratio > 1 else ": as many."
    if summary.samples_without_label:
        text += f" {summary.samples_without_label:,} samples have no label."
    bars = [(name, summary.labels[name]) for name in order[:_MOST_BARS]]
    if rest := order[_MOST_BARS:]:
        bars.append((f"{len(rest):,} others", sum(summary.labels[name] for name in rest)))
    if summary.samples_without_label:
        bars.append(("no label", summary.samples_without_label))
    figure = bar_figure([name for name, _ in bars], [count for _, count in bars], "samples", "")
    blocks: list[Block] = [Text(text), Plot("Samples of each label", figure, text, height=90 + 24 * len(bars))]
    cohorts = [name for name, count in summary.cohorts.items() if count]
    if len(cohorts) > 1:
        blocks += _heat(summary, counts, cohorts, order)
    return Section("Labels", "labels", blocks)


def _heat(summary: Summary, counts: Any, cohorts: Sequence[str], labels: Sequence[str]) -> list[Block]:
    places = {name: place for place, name in enumerate(summary.cohorts)}
    label_places = {name: place + 1 for place, name in enumerate(summary.labels)}
    rows, columns = cohorts[: _MOST_HEAT[0]], labels[: _MOST_HEAT[1]]
    table = counts[np.ix_([places[name] for name in rows], [label_places[name] for name in columns])]
    shares = table / np.maximum(1, counts[[places[name] for name in rows]].sum(axis=1, keepdims=True))
    figure = heat_figure(rows, columns, shares.tolist(), [[f"{n:,}" for n in row] for row in table.tolist()], "label", "cohort")
    alone = sum((counts[:, label_places[name]] > 0).sum() == 1 for name in labels)
    alt = f"Samples of each label in each cohort; {alone} of {len(labels)} labels come from one cohort alone."
    return [
        Plot(
            "Labels of each cohort",
            figure,
            alt,
            f"Samples, and as the colour their share of the cohort. {alone} of {len(labels)} labels come from one cohort alone.",
            height=130 + 30 * len(rows),
        )
    ]


def file_section(summary: Summary, columns: Columns) -> Section:
    """Sizes, formats and bytes."""
    region = summary.kind == "region"
    unit = "cells" if region else "px"
    blocks: list[Block] = []
    sizes = np.array([[*map(int, size.split("x")), count] for size, count in summary.sizes.items()], np.int64)
    sizes = sizes.reshape(-1, 3)
    longer = np.repeat(sizes[:, :2].max(axis=1), sizes[:, 2])
    if len(np.unique(longer)) > 1:
        figure = log_histogram_figure(log_histogram(longer, np.zeros(len(longer), np.int64), 1), ("samples",), f"longer side, {unit}", "samples")
        alt = f"Histogram of the longer side: {longer.min():,} to {longer.max():,} {unit}."
        blocks.append(Plot("Size of the longer side", figure, alt, height=240))
    groups = main_groups(columns.cohort, list(summary.cohorts))
    if len(np.unique(columns.size)) > 1:
        figure = log_histogram_figure(log_histogram(columns.size, groups.codes, len(groups.names)), groups.names, "bytes of a sample", "samples")
        low, middle, high = np.quantile(columns.size, (0.05, 0.5, 0.95))
        alt = f"Histogram of the bytes of a sample: {middle:,.0f} in the median, nine tenths from {low:,.0f} to {high:,.0f}."
        note = "Cohorts that differ were compressed otherwise, or show more detail."
        blocks.append(Plot("Bytes of a sample", figure, alt, note if len(groups.names) > 1 else "", height=260))
    rows = [(size.replace("x", " × "), count, 100 * count / summary.samples) for size, count in list(summary.sizes.items())[:_TOP_SLIDES]]
    blocks.append(Table(f"The most frequent sizes, width × height, {unit}", ("size", "samples", "share, %"), rows))
    blocks.append(Table("Formats", ("format", "samples", "share, %"), [(name, n, 100 * n / summary.samples) for name, n in summary.formats.items()]))
    return Section("Regions as files" if region else "Images as files", "files", blocks)


def duplicate_section(dataset: Dataset, duplicates: Duplicates) -> Section:
    """Samples with the same bytes."""
    if not duplicates.groups:
        return Section("Duplicates", "duplicates", [Text("No two samples have the same bytes.")])
    text = (
        f"{duplicates.groups:,} payloads are there several times: {duplicates.copies:,} samples are copies of another, "
        "byte for byte ('dinowds shard --drop-duplicates' leaves them out)."
    )
    counts = (("in several slides", duplicates.across_slides), ("in several cohorts", duplicates.across_cohorts), ("with different labels", duplicates.across_labels))
    rows: list[Sequence[Cell]] = []
    names = dataset.manifest.label_names
    for ids in duplicates.largest:
        found = read_rows_of(dataset, ids[:1000], ("key", "cohort", "slide", "label"))
        labels = {None if row["label"] is None else names[row["label"]] for row in found}
        rows.append(
            (found[0]["key"], len(ids), *(_some({row[name] for row in found}) for name in ("cohort", "slide")), _some(labels))
        )
    blocks: list[Block] = [
        Text(text),
        Facts([(f"payloads {name}", count) for name, count in counts]),
        Table("The most frequent payloads", ("first key", "samples", "cohorts", "slides", "labels"), rows),
    ]
    return Section("Duplicates", "duplicates", blocks)


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
        rows.append(("withdrawn", "but still in the shards; see 'dinowds withdraw --rewrite'", summary.withdrawn_in_shards))
    if not rows:
        return Section("Left out", "left-out", [Text("Everything that was given was taken.")])
    blocks: list[Block] = [Table("Files that are not in the dataset", ("what", "reason", "files"), rows)]
    if summary.quarantined:
        blocks.append(Text("quarantine.jsonl beside the manifest names each of the quarantined."))
    return Section("Left out", "left-out", blocks)


def _counts(metadata: Mapping[str, Any], name: str) -> list[tuple[str, int]]:
    found = metadata.get(name)
    return [(str(k), v) for k, v in found.items() if isinstance(v, int)] if isinstance(found, dict) else []


def about_section(dataset: Dataset, summary: Summary) -> Section:
    """Subsets and metadata."""
    blocks: list[Block] = [*_subsets(dataset)]
    rows = _flat(summary.metadata)
    if rows:
        table = Table("The manifest's metadata", ("name", "value"), _first(rows))
        blocks += [table, *_cut(rows, "entries")] if len(rows) <= _TOP_SLIDES else [Folded(f"The manifest's metadata, {len(rows):,} entries", [table, *_cut(rows, "entries")])]
    facts: list[tuple[str, Cell]] = [("name", dataset.manifest.name), ("kind", summary.kind), ("bytes of all shards", format_bytes(summary.num_bytes)), ("sha256 of samples.parquet", dataset.manifest.samples_sha256)]
    return Section("Subsets and metadata", "about", [*blocks, Facts(facts)])


def _subsets(dataset: Dataset) -> list[Block]:
    try:
        names = list_subsets(dataset.url, dataset.files)
    except (StorageError, OSError):
        return [Text("The subsets cannot be listed here.")]
    rows: list[Sequence[Cell]] = []
    total = int(dataset.first_ids[-1])
    for name in names[:_MOST_ROWS]:
        try:
            subset = read_subset(dataset.url, name, dataset.manifest, dataset.files)
        except DatasetError as error:
            rows.append((name, None, None, None, str(error)))
            continue
        rows.append((name, subset.samples, 100 * subset.samples / max(1, total), subset.slides, describe(subset.definition)))
    if not rows:
        return [Text("There are no subsets; 'dinowds subset' makes them.")]
    return [Table("Subsets", ("subset", "samples", "share, %", "slides", "made with"), rows), *_cut(names, "subsets")]


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


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
