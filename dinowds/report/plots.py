"""Plotly figures as plain values. Colours are tokens that the page puts in when it is looked at.

`@0` … `@7` are series that colour-blind readers can tell apart, `@ordered 0.25` is a place (0 to 1) on a scale for what
has an order, `@sequential` a colour scale of amounts; `@text`, `@muted`, `@rule` and `@paper` are the page's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinowds.report.page import Choice, Figure

DIGITS = 6
"""Significant ones of a figure in a plot; more cannot be seen."""
NUM_SERIES = 8
"""Colours that can be told apart."""
MOST_GROUPS = 16
"""Of a map, with colours and shapes of their own."""
MOST_TICKS, LONGEST_TICK = 40, 18
"""Names along an axis, and their letters."""
DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "diamond")


def series_colour(number: int) -> str:
    return f"@{number % NUM_SERIES}"


def ordered_colour(share: float) -> str:
    """`share`: 0 to 1."""
    return f"@ordered {share:.3f}"


@dataclass(frozen=True)
class Line:
    """A curve. Where y is NaN it has a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "@0"
    dash: str = "solid"
    marks: bool = False
    """A dot at each point: for curves of a few."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    y: float
    name: str


def line_figure(
    lines: Sequence[Line], x_title: str, y_title: str, levels: Sequence[Level] = (), log_y: bool = False
) -> Figure:
    """Curves over a common x."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if line.marks else "lines",
            "name": escaped(line.name),
            "x": rounded(line.x),
            "y": rounded(line.y),
            "line": {"color": line.colour, "dash": line.dash, "width": 1.8},
            "marker": {"color": line.colour, "size": 6},
            "hovertemplate": f"%{{y:.{DIGITS}~g}}",
        }
        for line in lines
    ]
    layout = {
        "xaxis": {"title": {"text": escaped(x_title)}},
        "yaxis": {"title": {"text": escaped(y_title)}, **(_logarithmic(lines) if log_y else _room(lines, levels))},
        "hovermode": "x unified" if len(lines) > 1 else "x",
        "showlegend": len(lines) > 1,
        "shapes": [_rule(level) for level in levels],
        "annotations": [_mark(level) for level in levels],
    }
    return {"data": data, "layout": layout}


def _logarithmic(lines: Sequence[Line]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5, or at powers of ten where these would be too many: Plotly's own may cover each other."""
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    decades = math.log10(max(values) / min(values)) if values else 0
    return {"type": "log", "tickformat": ",.3~r", "dtick": "D2" if decades < 3 else math.ceil(decades / 8)}


def _room(lines: Sequence[Line], levels: Sequence[Level]) -> dict[str, Any]:
    """Around curves that are all constant and alike, for which Plotly would show 1 above and below."""
    values = {value for line in lines for value in line.y if math.isfinite(value)} | {level.y for level in levels}
    if len(values) != 1:
        return {}
    value = values.pop()
    return {"range": sorted((0, 2 * value)) if value else [0, 1]}


def bar_figure(names: Sequence[str], values: Sequence[float], x_title: str, y_title: str) -> Figure:
    """A bar for each name, lying, the first on top: names may be long and many."""
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(names))),
        "x": rounded(values),
        "text": [escaped(name) for name in names],
        "textposition": "none",
        "marker": {"color": "@0"},
        "hovertemplate": "%{text}: %{x:,}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": escaped(x_title)}, "exponentformat": "SI"},
        "yaxis": {
            "title": {"text": escaped(y_title)},
            "autorange": "reversed",
            **_named_ticks(names),
            "showgrid": False,
        },
        "showlegend": False,
    }
    return {"data": [bars], "layout": layout}


def histogram_figure(
    edges: Sequence[float], series: Mapping[str, Sequence[float]], x_title: str, y_title: str
) -> Figure:
    """Counts in bins, as steps; a series each.

    Args:
        edges: [B + 1], ascending.
        series: name → counts, [B].
    """
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escaped(name),
            "x": rounded(edges),
            "y": rounded([*counts, counts[-1]]),
            "line": {"color": series_colour(number), "shape": "hv", "width": 1.8, "dash": DASHES[number % len(DASHES)]},
            "fill": "tozeroy" if len(series) == 1 else "none",
            "hovertemplate": "from %{x:.4~g}: %{y:,}",
        }
        for number, (name, counts) in enumerate(series.items())
    ]
    layout = {
        "xaxis": {"title": {"text": escaped(x_title)}},
        "yaxis": {"title": {"text": escaped(y_title)}, "rangemode": "tozero", "exponentformat": "SI"},
        "hovermode": "x unified" if len(series) > 1 else "x",
        "showlegend": len(series) > 1,
    }
    return {"data": data, "layout": layout}


def heat_figure(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    x_title: str,
    y_title: str,
) -> Figure:
    """A matrix as colours, with its values; the first row on top.

    Args:
        shares: [rows][columns], 0 to 1: the colour.
        texts: [rows][columns]: what is written, and shown on hover.
    """
    is_small = len(columns) <= 12
    heat = {
        "type": "heatmap",
        "z": [rounded(row) for row in shares],
        "text": [[escaped(text) for text in row] for row in texts],
        "customdata": [
            [f"{escaped(y_title)} {escaped(row)}<br>{escaped(x_title)} {escaped(column)}" for column in columns]
            for row in rows
        ],
        "texttemplate": "%{text}" if is_small else "",
        "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
        "zmin": 0,
        "zmax": 1,
        "colorscale": "@sequential",
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    layout = {
        "xaxis": {
            "title": {"text": escaped(x_title)},
            **_named_ticks(columns),
            "showgrid": False,
            "ticklabeloverflow": "allow",
        },
        "yaxis": {
            "title": {"text": escaped(y_title)},
            **_named_ticks(rows),
            "autorange": "reversed",
            "showgrid": False,
        },
    }
    return {"data": [heat], "layout": layout}


def escaped(text: str) -> str:
    """A name as Plotly shows it letter by letter: it would take tags, entities and templates for its own."""
    for plain, code in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("{", "&#123;"), ("$", "&#36;")):
        text = text.replace(plain, code)
    return text


def _named_ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names at 0, 1, …; long ones are cut, of many each n-th is shown."""
    step = max(1, -(-len(names) // MOST_TICKS))
    places = list(range(0, len(names), step))
    return {"tickmode": "array", "tickvals": places, "ticktext": [escaped(shortened(names[p])) for p in places]}


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_TICK else f"{name[: LONGEST_TICK - 1]}…"


def rounded(values: Sequence[float]) -> list[float | None]:
    """With `DIGITS` digits, whole numbers as such; None for what is not finite."""
    return [_round(float(value)) for value in values]


def _round(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.{DIGITS}g}")


def _rule(level: Level) -> dict[str, Any]:
    line = {"color": "@muted", "width": 1.2, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level.y, "y1": level.y, "line": line}


def _mark(level: Level) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": level.y,
        "yanchor": "bottom",
        "text": escaped(level.name),
        "showarrow": False,
        "font": {"color": "@muted", "size": 12},
    }


@dataclass(frozen=True)
class Map:
    """Points in a plane, in the colours of their groups."""

    figure: Figure
    choices: tuple[Choice, ...]
    """One for each way of grouping."""


def map_figure(
    x: Sequence[float], y: Sequence[float], groupings: Mapping[str, Sequence[str]], titles: tuple[str, str]
) -> Map:
    """The number of a point is its `customdata`, for thumbnails.

    Args:
        groupings: name → group of each point. The largest groups get colours and shapes of their own, the rest is one.
        titles: of the axes.
    """
    data: list[dict[str, Any]] = []
    choices = []
    for what, groups in groupings.items():
        first = len(data)
        for number, (name, places) in enumerate(_largest(groups).items()):
            is_rest = number == MOST_GROUPS
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": escaped(f"{name} ({len(places):,})"),
                    "x": rounded([x[place] for place in places]),
                    "y": rounded([y[place] for place in places]),
                    "customdata": places,
                    "marker": {
                        "color": "@muted" if is_rest else series_colour(number),
                        "symbol": _SYMBOLS[number // NUM_SERIES % len(_SYMBOLS)],
                        "size": 6,
                        "opacity": 0.75,
                    },
                    "hovertemplate": f"{escaped(name)}<extra></extra>",
                }
            )
        choices.append(Choice(what, range(first, len(data))))
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "showline": False}
    layout = {
        "xaxis": {"title": {"text": escaped(titles[0])}, **bare},
        "yaxis": {"title": {"text": escaped(titles[1])}, **bare, "scaleanchor": "x"},
        "hovermode": "closest",
        "showlegend": True,
    }
    return Map({"data": data, "layout": layout}, tuple(choices))


def _largest(groups: Sequence[str]) -> dict[str, list[int]]:
    """Groups and their points, largest first; those beyond `MOST_GROUPS` as one."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    names = sorted(places, key=lambda name: (-len(places[name]), name))
    kept = {name: places[name] for name in names[:MOST_GROUPS]}
    if rest := [place for name in names[MOST_GROUPS:] for place in places[name]]:
        kept[f"{len(names) - MOST_GROUPS:,} others"] = rest
    return kept
