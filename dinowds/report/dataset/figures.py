"""Figures and pictures of a dataset's page. Pure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dinowds.report.dataset.groups import Groups
from dinowds.report.dataset.slides import NO_SAMPLE
from dinowds.report.dataset.spread import Box, Histogram
from dinowds.report.page import Choice, Figure, Sprite
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
_LEAST_TICKS, _MOST_TICKS = 3, 10
_MAP_SIDE = 320
"""Pixels of a map along its longer side, about."""


def box_figure(
    rows: Sequence[str], groups: Mapping[str, Sequence[Box | None]], x_title: str, log: bool = False
) -> Figure:
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
        "xaxis": {"title": {"text": escaped(x_title)}, **(_log_axis(_ends(groups)) if log else {})},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "showlegend": len(groups) > 1,
        "legend": {"traceorder": "normal"},
    }
    return {"data": data, "layout": layout}


def scatter_figure(
    x: NDArray[np.floating], y: NDArray[np.floating], groupings: Mapping[str, Groups], titles: tuple[str, str]
) -> tuple[Figure, tuple[Choice, ...]]:
    """Points [n], in the colours of their groups, and a choice for each way of grouping.

    The number of a point is its `customdata`, for thumbnails.
    """
    data: list[dict[str, Any]] = []
    choices = []
    for what, groups in groupings.items():
        choices.append(Choice(what, range(len(data), len(data) + len(groups.names))))
        for code, name in enumerate(groups.names):
            places = np.flatnonzero(groups.codes == code)
            trace = {
                "type": "scatter",
                "mode": "markers",
                "name": escaped(name),
                "x": rounded(x[places].tolist()),
                "y": rounded(y[places].tolist()),
                "customdata": places.tolist(),
                "marker": {"color": series_colour(code), "size": 7, "opacity": 0.75},
                "hovertemplate": f"{escaped(name)}<extra></extra>",
            }
            data.append(trace)
    layout = {
        "xaxis": {"title": {"text": escaped(titles[0])}},
        "yaxis": {"title": {"text": escaped(titles[1])}},
        "hovermode": "closest",
        "showlegend": True,
    }
    return {"data": data, "layout": layout}, tuple(choices)


def box_height(rows: int, groups: int) -> int:
    """Height of a `box_figure`, px."""
    return 110 + rows * (14 + 17 * groups) + 24 * ((groups + 3) // 4)


def log_histogram_figure(histogram: Histogram, names: Sequence[str], x_title: str, y_title: str) -> Figure:
    """A series for each group that has anything, over a logarithmic axis."""
    series = {name: counts.tolist() for name, counts in zip(names, histogram.counts, strict=True) if counts.any()}
    figure = histogram_figure(histogram.edges.tolist(), series, x_title, y_title)
    axis = {**figure["layout"]["xaxis"], **_log_axis((histogram.edges[0], histogram.edges[-1]))}
    return {**figure, "layout": {**figure["layout"], "xaxis": axis}}


def _ends(groups: Mapping[str, Sequence[Box | None]]) -> tuple[float, float]:
    boxes = [box for boxes in groups.values() for box in boxes if box is not None]
    return min((box.low for box in boxes), default=1.0), max((box.high for box in boxes), default=1.0)


def _log_axis(ends: tuple[float, float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 of each power of ten; at every digit where these are few, in full where there are none."""
    low, high = np.floor(np.log10(ends[0])), np.ceil(np.log10(ends[1]))
    powers = 10.0 ** np.arange(low, high + 1)
    for digits in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), np.arange(1, 10, 0.1)):
        ticks = [tick for tick in np.outer(powers, digits).ravel().tolist() if ends[0] <= tick <= ends[1]]
        if len(ticks) >= _LEAST_TICKS:
            break
    else:
        ticks = [float(f"{end:.3g}") for end in ends]
    step = -(-len(ticks) // _MOST_TICKS)
    return {"type": "log", "tickvals": ticks[::step], "ticktext": [_compact(tick) for tick in ticks[::step]]}


def _compact(value: float) -> str:
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:g}{letter}"
    return f"{value:.3g}"


def encode(pixels: Pixels) -> bytes:
    """uint8 RGB [H, W, 3] → WebP."""
    return _saved(pixels, quality=_QUALITY)


def encode_map(cells: Pixels) -> bytes:
    """uint8 RGBA [rows, columns, 4] → WebP without loss: cells are squares, in the middle of a square."""
    rows, columns = cells.shape[:2]
    side = max(rows, columns)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = cells
    times = max(1, _MAP_SIDE // side)
    return _saved(square.repeat(times, axis=0).repeat(times, axis=1), lossless=True)


def map_cells(labels: NDArray[np.int32], coloured: Sequence[int]) -> Pixels:
    """Labels of cells, as in `SlideMap`, → RGBA, transparent where there is no sample.

    Args:
        coloured: labels, at most 7, that have the colours of `PALETTE` in turn; all else is grey. None at all: all has
            the first colour.
    """
    codes = np.full(labels.shape, len(PALETTE) - 1 if coloured else 0)
    for place, label in enumerate(coloured):
        codes[labels == label] = place
    cells = np.zeros((*labels.shape, 4), np.uint8)
    cells[..., :3] = PALETTE[codes]
    cells[..., 3] = np.where(labels == NO_SAMPLE, 0, 255)
    return cells


def swatch(place: int) -> bytes:
    """The colour of a map's label, as a small picture."""
    return _saved(np.broadcast_to(PALETTE[place], (8, 96, 3)).copy(), lossless=True)


def sprite_of(thumbnails: Sequence[Pixels], side: int, columns: int = 25) -> Sprite:
    """Small squares from the middle of pictures, in one picture."""
    rows = -(-len(thumbnails) // columns)
    sheet = np.zeros((rows * side, columns * side, 3), np.uint8)
    for number, pixels in enumerate(thumbnails):
        top, left = (side * place for place in divmod(number, columns))
        sheet[top : top + side, left : left + side] = np.asarray(ImageOps.fit(Image.fromarray(pixels), (side, side)))
    return Sprite(encode(sheet), side, columns)


def _saved(pixels: Pixels, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", method=2, **options)
    return content.getvalue()
