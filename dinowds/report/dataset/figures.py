"""Figures and pictures of a dataset's page. Pure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dinowds.report.dataset.spread import Box, Histogram
from dinowds.report.page import Figure, Sprite
from dinowds.report.plots import escaped, histogram_figure, rounded, series_colour

Pixels: TypeAlias = NDArray[np.uint8]

PALETTE = np.array(
    [
        (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (148, 132, 34),
        (140, 140, 140),
    ],
    np.uint8,
)  # fmt: skip
"""Of labels on maps, which stand on white and on black: Okabe and Ito (2008), its yellow darker."""

_QUALITY = 78
_MAP_SIDE = 320
"""Pixels of a map along its longer side, about."""


def box_figure(rows: Sequence[str], groups: Mapping[str, Sequence[Box | None]], x_title: str, log: bool = False) -> Figure:
    """Boxes from the first to the third quartile with whiskers to the quantiles 0.05 and 0.95, the first row on top.

    Args:
        groups: name → a box for each row; None for nothing.
    """
    data = []
    for number, (name, boxes) in enumerate(groups.items()):
        known = [(row, box) for row, box in zip(rows, boxes, strict=True) if box is not None]
        trace: dict[str, Any] = {
            "type": "box",
            "orientation": "h",
            "name": escaped(name),
            "y": [escaped(row) for row, _ in known],
            "lowerfence": rounded([box.low for _, box in known]),
            "q1": rounded([box.first for _, box in known]),
            "median": rounded([box.median for _, box in known]),
            "q3": rounded([box.third for _, box in known]),
            "upperfence": rounded([box.high for _, box in known]),
            "line": {"color": series_colour(number), "width": 1.6},
        }
        data.append(trace)
    layout = {
        "boxmode": "group",
        "boxgap": 0.25,
        "boxgroupgap": 0.2,
        "xaxis": {"title": {"text": escaped(x_title)}, **({"type": "log", "dtick": "D2"} if log else {})},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "showlegend": len(groups) > 1,
        "legend": {"traceorder": "normal"},
    }
    return {"data": data, "layout": layout}


def box_height(rows: int, groups: int) -> int:
    """Height of a `box_figure`, px."""
    return 110 + rows * (14 + 17 * groups) + 24 * ((groups + 3) // 4)


def log_histogram_figure(histogram: Histogram, names: Sequence[str], x_title: str, y_title: str) -> Figure:
    """A series for each group that has anything, over a logarithmic axis."""
    series = {
        name: counts.tolist() for name, counts in zip(names, histogram.counts, strict=True) if counts.any()
    }
    figure = histogram_figure(histogram.edges.tolist(), series, x_title, y_title)
    axis = {**figure["layout"]["xaxis"], "type": "log", "dtick": "D2"}
    return {**figure, "layout": {**figure["layout"], "xaxis": axis}}


def encode(pixels: Pixels) -> bytes:
    """uint8 RGB [H, W, 3] → WebP."""
    return _saved(pixels, quality=_QUALITY)


def encode_map(cells: Pixels) -> bytes:
    """uint8 RGBA [rows, columns, 4] → WebP without loss, each cell a square of some pixels."""
    times = max(1, _MAP_SIDE // max(cells.shape[:2]))
    return _saved(cells.repeat(times, axis=0).repeat(times, axis=1), lossless=True)


def map_cells(labels: NDArray[np.int32], by_label: bool) -> Pixels:
    """Labels of cells, as in `SlideMap`, → RGBA, transparent where there is no sample."""
    codes = np.where(by_label & (labels >= 0), labels % (len(PALETTE) - 1), len(PALETTE) - 1 if by_label else 0)
    cells = np.zeros((*labels.shape, 4), np.uint8)
    cells[..., :3] = PALETTE[codes]
    cells[..., 3] = np.where(labels == -2, 0, 255)
    return cells


def sprite_of(thumbnails: Sequence[Pixels], side: int, columns: int = 25) -> Sprite:
    """Small squares from the middle of pictures, in one picture."""
    rows = -(-len(thumbnails) // columns)
    sheet = np.zeros((rows * side, columns * side, 3), np.uint8)
    for number, pixels in enumerate(thumbnails):
        top, left = (side * place for place in divmod(number, columns))
        sheet[top : top + side, left : left + side] = ImageOps.fit(Image.fromarray(pixels), (side, side))
    return Sprite(encode(sheet), side, columns)


def _saved(pixels: Pixels, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", method=4, **options)
    return content.getvalue()
