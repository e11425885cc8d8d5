"""Sections of a dataset of regions: cells that are missing, lengths of features, pictures of a few regions."""

from __future__ import annotations

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.report.dataset.columns import Columns, read_rows_of
from dinowds.report.dataset.draw import draw_evenly
from dinowds.report.dataset.figures import box_figure, box_height, encode_map
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.images import unreadable_notice
from dinowds.report.dataset.regions import colours_of_cells, measure_regions
from dinowds.report.dataset.spread import boxes_of
from dinowds.report.page import Block, Facts, Gallery, Picture, Plot, Section, Text
from dinowds.report.page import Columns as Beside

_SHOWN = 12
_MOST_BYTES = 256 << 20


def region_section(dataset: Dataset, columns: Columns, count: int, seed: int) -> Section:
    """Of `count` regions spread over the cohorts, fewer where they are large.

    Raises:
        StorageError: a remote shard cannot be reached.
    """
    mean_bytes = float(columns.size.mean())
    count = min(count, max(_SHOWN, int(_MOST_BYTES / max(1.0, mean_bytes))))
    places = draw_evenly(columns.cohort, count, seed)
    shown = draw_evenly(columns.cohort[places], _SHOWN, seed)
    regions = measure_regions(dataset, columns.ids[places], shown.tolist())
    notice = unreadable_notice(regions.unreadable, len(places))
    blocks: list[Block] = [] if notice is None else [notice]
    if not len(regions.places):
        return Section("Regions", "regions", [*blocks, Text("No region could be read.")])
    groups = main_groups(columns.cohort[places[regions.places]], list(dataset.manifest.cohorts))
    sides, channels = (sorted(set(found.tolist())) for found in (regions.sides, regions.channels))
    cells = regions.sides**2
    existing = cells * (1 - regions.missing)
    norm = np.average(np.nan_to_num(regions.norms), weights=existing) if existing.any() else np.nan
    facts = Facts(
        [
            ("regions that were read", len(regions.places)),
            ("cells along a side", ", ".join(map(str, sides))),
            ("features of a cell", ", ".join(map(str, channels))),
            ("cells that are missing, %", float(100 * np.average(regions.missing, weights=cells))),
            ("regions without a missing cell", int((regions.missing == 0).sum())),
            ("length of a cell's features, mean", float(norm)),
        ]
    )
    blocks.append(facts)
    plots: list[Block] = []
    for title, values, x_title in (
        ("Cells that are missing", 100 * regions.missing, "% of a region"),
        ("Length of the features", regions.norms, "mean length of a region's cells"),
    ):
        boxes = boxes_of(values, groups.codes, len(groups.names))
        medians = ", ".join(f"{name} {box.median:.3g}" for name, box in zip(groups.names, boxes, strict=True) if box)
        figure = box_figure([""], {name: [box] for name, box in zip(groups.names, boxes, strict=True)}, x_title)
        alt = f"Boxes of each cohort, {x_title}. Medians: {medians}."
        plots.append(Plot(title, figure, alt, height=box_height(1, len(groups.names))))
    blocks.append(Beside(plots))
    kept = [region for region in regions.shown if region.cells.shape[-1] == regions.shown[0].cells.shape[-1]]
    if kept:
        rows = read_rows_of(dataset, columns.ids[places[[region.place for region in kept]]], ("cohort", "slide"))
        pictures = [
            Picture(
                encode_map(cells_of),
                f"Cells of region {region.key}: {100 * region.missing:.0f} % are missing",
                f"{row['slide'] or region.key} · {row['cohort']} · {100 * region.missing:.0f} % missing",
            )
            for region, row, cells_of in zip(kept, rows, colours_of_cells(kept), strict=True)
        ]
        caption = "Cells of some regions: alike in colour where alike in features, none where missing"
        blocks.append(Gallery(caption, pictures, 6))
        blocks.append(
            Text("Red, green and blue are the first three principal components of the features of these cells.")
        )
    return Section("Regions", "regions", blocks)
