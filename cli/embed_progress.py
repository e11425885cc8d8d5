"""How embedding looks: a bar on a terminal, a line every few seconds elsewhere; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PLAIN_SECONDS = 10.0

Report = Callable[[int, int], None]
"""(done, in all); the first call says what was done before."""


@contextmanager
def show_progress(unit: str) -> Iterator[Report]:
    """`unit`: plural of what is counted."""
    if not sys.stderr.isatty():
        yield _Lines(unit).report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", start=False)
        pace = _Pace()

        def report(done: int, total: int) -> None:
            progress.start_task(task)
            progress.update(task, completed=done, total=total, description=f"{pace.of(done):,.0f} {unit}/s")

        yield report


class _Pace:
    """Since the first call: what was done before says nothing of the speed."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def of(self, done: int) -> float:
        now = time.monotonic()
        self._first = self._first or (done, now)
        count, began = self._first
        return (done - count) / max(now - began, 1e-9) if done > count else 0.0


class _Lines:
    def __init__(self, unit: str) -> None:
        self._unit, self._pace = unit, _Pace()
        self._printed_at = time.monotonic()

    def report(self, done: int, total: int) -> None:
        speed, now = self._pace.of(done), time.monotonic()
        if done < total and now - self._printed_at < _PLAIN_SECONDS:
            return
        self._printed_at = now
        left = f", {(total - done) / speed:,.0f} s left" if speed and done < total else ""
        line = f"{done:,} of {total:,} {self._unit}, {speed:,.0f} {self._unit}/s{left}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201
