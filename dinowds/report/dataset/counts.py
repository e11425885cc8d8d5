"""Sections of what the samples are: cohorts, slides and labels, from the index alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.summary import Summary
from dinowds.files import format_bytes
from dinowds.report.dataset.columns import Columns, labels_per_cohort
from dinowds.report.dataset.duplicates import Duplicates
from dinowds.report.dataset.figures import encode_map, log_histogram_figure, map_cells, swatch
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.slides import SlideCounts, SlideMap, name_slides, read_maps
from dinowds.report.dataset.spread import log_histogram
from dinowds.report.page import Block, Cell, Facts, Gallery, Picture, Plot, Section, Table, Text
from dinowds.report.page import Columns as Beside
from dinowds.report.plots import bar_figure, heat_figure

_MOST_ROWS, _MOST_BARS = 200, 24
_MOST_HEAT = (24, 30)  # rows and columns
_TOP_SLIDES, _SLIDE_MAPS = 12, 6
_BESIDE_LABELS = 8
_MAP_LABELS = 7
"""Labels that maps have colours for."""


def head_facts(summary: Summary, duplicates: Duplicates) -> Facts:
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
    ]
    if (spacing := _spacings(summary.metadata)) is not None:
        facts.append(("mpp", spacing))
    return Facts(facts)


def _spacings(metadata: Mapping[str, Any]) -> str | None:
    cohorts = metadata.get("cohorts")
    found = [about["mpp"] for about in _mappings(cohorts) if "mpp" in about] + [
        metadata[k] for k in ("mpp",) if k in metadata
    ]
    return ", ".join(dict.fromkeys(str(value) for value in found)) or None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Metadata may be of others: whatever is not as expected is passed over."""
    return [about for about in value.values() if isinstance(about, dict)] if isinstance(value, dict) else []


def cohort_section(summary: Summary, columns: Columns) -> Section:
    """A row for each cohort."""
    num_bytes = np.bincount(columns.cohort, columns.size, minlength=len(summary.cohorts))
    on_slides = np.bincount(columns.cohort, columns.slide != 0, minlength=len(summary.cohorts)).tolist()
    rows: list[Sequence[Cell]] = [
        (
            name,
            count,
            share(count, summary.samples),
            summary.slides_per_cohort[name] or None,
            round(on_slides[place] / summary.slides_per_cohort[name], 1) if summary.slides_per_cohort[name] else None,
            round(float(num_bytes[place]) / max(1, count) / 1024, 1),
        )
        for place, (name, count) in enumerate(summary.cohorts.items())
    ]
    head = ("cohort", "samples", "share, %", "slides", "samples a slide", "KiB a sample")
    return Section("Cohorts", "cohorts", long_table("What comes from each cohort", head, rows, "cohorts"))


def slide_section(dataset: Dataset, summary: Summary, columns: Columns, slides: SlideCounts) -> Section | None:
    """How many samples a slide has, the largest, and maps; None where no slide is known."""
    if not len(slides.counts):
        return None
    assert summary.samples_per_slide is not None
    least, median, most = summary.samples_per_slide
    if least == most:
        text = "One slide." if len(slides.counts) == 1 else f"{len(slides.counts):,} slides of {least:,} samples each."
    else:
        text = (
            f"{len(slides.counts):,} slides of {least:,} to {most:,} samples, {median:,g} in the median. The largest "
            f"tenth of them has {100 * slides.share_of_largest(0.1):.3g} % of the samples."
        )
    if summary.samples_without_slide:
        text += f" Of {summary.samples_without_slide:,} samples the slide is unknown."
    beside: list[Block] = []
    groups = main_groups(columns.cohort[slides.first], list(summary.cohorts))
    if most >= 2 * least:
        figure = log_histogram_figure(
            log_histogram(slides.counts, groups.codes, len(groups.names)), groups.names, "samples of a slide", "slides"
        )
        note = "Few very large slides may crowd out the others; see --max-per-slide."
        beside.append(Plot("Samples of a slide", figure, f"Histogram: {text}", note, height=380))
    top = name_slides(dataset, columns, slides, _TOP_SLIDES)
    rows = [(slide, cohort, count, share(count, summary.samples)) for cohort, slide, count in top]
    beside.append(Table("The largest slides", ("slide", "cohort", "samples", "share, %"), rows))
    blocks: list[Block] = [Text(text), Beside(beside)]
    if maps := read_maps(dataset, columns, slides, _SLIDE_MAPS):
        blocks += _map_galleries(maps, dataset.manifest.label_names)
    return Section("Slides", "slides", blocks)


def _map_galleries(maps: Sequence[SlideMap], labels: Sequence[str]) -> list[Block]:
    found = sorted({label for one in maps for label in np.unique(one.labels).tolist() if label >= 0})
    coloured = found if len(found) <= _MAP_LABELS else []
    pictures = [
        Picture(
            encode_map(map_cells(one.labels, coloured)),
            f"Map of the {one.count:,} samples of slide {one.slide}",
            f"{one.slide} · {one.cohort} · {one.count:,} samples",
        )
        for one in maps
    ]
    sides = sorted({one.cell for one in maps})
    width = f"{sides[0]:,.4g}" if len(sides) == 1 else f"{sides[0]:,.4g} to {sides[-1]:,.4g}"
    galleries: list[Block] = [
        Gallery(f"Where the samples of some slides lie; a cell is {width} wide, as x and y count", pictures, 6)
    ]
    if coloured:
        keys = [
            Picture(swatch(place), f"Colour of {labels[label]}", labels[label]) for place, label in enumerate(coloured)
        ]
        galleries.append(Gallery("The maps' colours: labels of the samples, grey for none", keys, 6))
    return galleries


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
    cohorts = [name for name, count in summary.cohorts.items() if count]
    is_narrow = len(order) <= _BESIDE_LABELS
    height = max(90 + 24 * len(bars), _heat_height(len(cohorts)) if is_narrow else 0)
    plots: list[Block] = [Plot("Samples of each label", figure, text, height=height)]
    if len(cohorts) > 1:
        plots.append(_heat(summary, counts, cohorts, order, height if is_narrow else _heat_height(len(cohorts))))
    return Section("Labels", "labels", [Text(text), *([Beside(plots)] if is_narrow else plots)])


def _heat(summary: Summary, counts: Any, cohorts: Sequence[str], labels: Sequence[str], height: int) -> Plot:
    places = {name: place for place, name in enumerate(summary.cohorts)}
    label_places = {name: place + 1 for place, name in enumerate(summary.labels)}
    rows, columns = cohorts[: _MOST_HEAT[0]], labels[: _MOST_HEAT[1]]
    table = counts[np.ix_([places[name] for name in rows], [label_places[name] for name in columns])]
    shares = table / np.maximum(1, counts[[places[name] for name in rows]].sum(axis=1, keepdims=True))
    figure = heat_figure(
        rows, columns, shares.tolist(), [[f"{n:,}" for n in row] for row in table.tolist()], "label", "cohort"
    )
    alone = sum((counts[:, label_places[name]] > 0).sum() == 1 for name in labels)
    from_one = f"{alone} of {len(labels)} labels come from one cohort alone."
    return Plot(
        "Labels of each cohort",
        figure,
        f"Samples of each label in each cohort; {from_one}",
        f"Samples, and as the colour their share of the cohort. {from_one}",
        height=height,
    )


def _heat_height(cohorts: int) -> int:
    return 150 + 30 * min(cohorts, _MOST_HEAT[0])


def share(part: int, total: int) -> float:
    """%, three digits."""
    return float(f"{100 * part / max(1, total):.3g}")


def long_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], what: str) -> list[Block]:
    """A table, and where it has too many rows, a line that says so."""
    table = Table(caption, head, rows[:_MOST_ROWS])
    return [table] if len(rows) <= _MOST_ROWS else [table, Text(f"The first {_MOST_ROWS:,} of {len(rows):,} {what}.")]
