"""Figures of a run: `metrics.jsonl` in pieces, each figure as a thinned curve. Files may be large, cut or damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from dinowds.files import open_regular
from dinowds.report.thin import Thinner, Values

_PIECE = 1 << 24
"""Bytes that are read at once."""
POINTS = 1600
"""Of a curve: two a pixel of a wide window."""

Rows = Any
"""Arrow table: a column for each figure of some lines; `step` is int64 without nulls."""


@dataclass(frozen=True)
class Curve:
    """A figure over steps; NaN are left out."""

    steps: Values
    """[n], ascending: optimizer steps done. Of a long run not all, see `thin`."""
    values: Values
    """[n], finite."""
    count: int
    """Lines that have it."""

    @property
    def last(self) -> float:
        return float(self.values[-1])

    def least(self) -> tuple[float, int]:
        """Value and step."""
        return self._at(int(self.values.argmin()))

    def most(self) -> tuple[float, int]:
        """Value and step."""
        return self._at(int(self.values.argmax()))

    def _at(self, place: int) -> tuple[float, int]:
        return float(self.values[place]), int(self.steps[place])


@dataclass
class Metrics:
    curves: dict[str, Curve] = field(default_factory=dict)
    """Figure → curve, in the order of their first appearance; those that are nowhere finite are left out."""
    num_lines: int = 0
    """Whole ones."""
    last_step: int = 0
    num_damaged: int = 0
    """Lines that are not figures of a step, but for one that is cut at the end."""
    is_cut: bool = False
    """The last line is not whole: it is being written, or its writer was killed."""


def read_metrics(path: Path, points: int = POINTS, look: Callable[[Rows], None] = lambda _: None) -> Metrics:
    """Read a file of a run once, from its beginning.

    Args:
        points: of a curve, at most.
        look: sees all lines too, some at a time, in their order.

    Raises:
        OSError: it is there and cannot be read.
    """
    metrics, thinners, counts = Metrics(), dict[str, Thinner](), dict[str, int]()
    if not path.exists():
        return metrics
    for rows in _tables(path, metrics):
        steps = rows["step"].to_numpy().astype(np.float64)
        metrics.num_lines += len(steps)
        metrics.last_step = int(max(metrics.last_step, steps.max()))
        look(rows)
        for name in rows.column_names:
            values = as_floats(rows[name])
            there = np.isfinite(values)
            if name != "step" and there.any():
                thinners.setdefault(name, Thinner(points)).add(steps[there], values[there])
                counts[name] = counts.get(name, 0) + int(there.sum())
    metrics.curves = {name: Curve(*thinner.points(), counts[name]) for name, thinner in thinners.items()}
    return metrics


def as_floats(column: Any) -> Values:
    """float64 of an Arrow column; NaN for what is missing or no number."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.full(len(column), np.nan)
    values: Values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _tables(path: Path, metrics: Metrics) -> Iterator[Rows]:
    """Tables of whole lines with a step; counts the others in `metrics`."""
    with open(open_regular(path), "rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield from _table(whole + newline, metrics)
    if rest.strip():
        metrics.is_cut = True


def _table(text: bytes, metrics: Metrics) -> Iterator[Rows]:
    try:
        rows = pyarrow.json.read_json(pa.BufferReader(text))
    except pa.ArrowInvalid:  # a damaged line spoils them all
        rows = _line_by_line(text, metrics)
    if not _has_steps(rows):
        rows = _line_by_line(text, metrics)
    if len(rows):
        yield rows


def _has_steps(rows: Rows) -> bool:
    """Whether each line is of a step."""
    if "step" not in rows.column_names or not pa.types.is_integer(rows["step"].type) or rows["step"].null_count:
        return False
    return bool(len(rows) == 0 or pc.min(rows["step"]).as_py() >= 0)


def _line_by_line(text: bytes, metrics: Metrics) -> Rows:
    """Of the lines that are figures of a step."""
    good = []
    for line in text.splitlines():
        entry = _parse(line)
        if entry is not None:
            good.append(entry)
        elif line.strip():
            metrics.num_damaged += 1
    names = dict.fromkeys(name for entry in good for name in entry)
    columns = {name: [entry.get(name) for entry in good] for name in names if name != "step"}
    steps = pa.array([entry["step"] for entry in good], pa.int64())
    return pa.table({"step": steps, **{name: pa.array(values, pa.float64()) for name, values in columns.items()}})


def _parse(line: bytes) -> dict[str, Any] | None:
    """Its numbers; None for what is no object with a step."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or not 0 <= entry["step"] < 1 << 62:
        return None
    return {name: value for name, value in entry.items() if type(value) is float or _is_whole_number(value)}


def _is_whole_number(value: Any) -> bool:
    return type(value) is int and abs(value) <= sys.float_info.max
