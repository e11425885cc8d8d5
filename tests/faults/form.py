"""How much: a little of everything in `make test`, all of it in `make faults`; and a count of what was done."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

IS_FULL = os.environ.get("DINOWDS_FAULTS") == "full"
_TALLY = os.environ.get("DINOWDS_FAULTS_TALLY")
"""A file that every test process appends to."""


def amount(short: int, full: int) -> int:
    """Of kills, inputs, executions or seconds."""
    return full if IS_FULL else short


def tally(what: str, number: int = 1) -> None:
    """Count what a test has done and found right: a figure of docs/reliability.md.

    Args:
        what: the same words in all tests that do the same, such as "kills of shard survived".
    """
    if _TALLY:
        with open(_TALLY, "a") as file:  # one short write: lines of other processes do not come between
            file.write(json.dumps([what, number]) + "\n")


def tallied(path: Path) -> dict[str, int]:
    """The sums, in the order of their names."""
    sums: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        what, number = json.loads(line)
        sums[what] += number
    return dict(sorted(sums.items()))
