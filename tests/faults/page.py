"""The figures of the last full run, as docs/reliability.md shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("last_full_run.json")
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: python -m tests.faults.full -->\n", "<!-- end of the figures -->\n"


def read_result() -> dict[str, Any]:
    """Room → date, commit, machine, minutes and figures; empty where there was no full run."""
    content: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return content


def table(result: dict[str, Any]) -> str:
    """One row for each figure; rooms in their order. A line that says so where there are none."""
    if not result:
        return "There are no figures of a full run yet.\n"
    rows = ["| room | what | number |", "|---|---|---|"]
    for room, run in sorted(result.items()):
        rows += [f"| {room} | {what} | {number:,} |" for what, number in run["figures"].items()]
    rows += ["", "| room | date | minutes | commit | machine |", "|---|---|---|---|---|"]
    for room, run in sorted(result.items()):
        rows.append(f"| {room} | {run['date']} | {run['minutes']} | {run['commit']} | {run['machine']} |")
    return "\n".join(rows) + "\n"


def with_figures(text: str, result: dict[str, Any]) -> str:
    """The page's text with this table in it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no line {BEGIN!r}"
    assert end, f"{PAGE} has no line {END!r}"
    return f"{before}{BEGIN}\n{table(result)}\n{END}{after}"
