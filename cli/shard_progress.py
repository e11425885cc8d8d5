"""How sharding looks: a bar on a terminal, a line every few seconds elsewhere; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .shared import printable

if TYPE_CHECKING:
    from dinowds.shard.build import ShardProgress

_PLAIN_SECONDS = 5.0


@contextmanager
def show_progress() -> Iterator[Callable[[ShardProgress], None]]:
    """A bar on a terminal, a line every few seconds elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _PlainLines().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress).report


class _Bar:
    """Shows one phase at a time."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None
        self._phase = ""

    def report(self, state: ShardProgress) -> None:
        if self._phase != state.phase:
            self._phase = state.phase
            if self._task is not None:
                self._progress.remove_task(self._task)
            # A run that goes on begins with samples: they are no part of its speed.
            self._task = self._progress.add_task(
                state.phase,
                total=state.total_samples or None,
                completed=state.samples,
                rate="",
            )
            return
        speed = self._progress.tasks[-1].speed
        rate = f"{speed:,.0f} samples/s" if speed and state.phase in ("deal", "write") else ""
        self._progress.update(self._task, completed=state.samples, rate=rate)


class _PlainLines:
    """A line when a phase begins, and every few seconds of writing."""

    def __init__(self) -> None:
        self._phase = ""
        self._began = self._printed = 0.0
        self._samples_before = 0

    def report(self, state: ShardProgress) -> None:
        now = time.monotonic()
        if state.phase != self._phase:
            self._phase, self._began, self._printed, self._samples_before = state.phase, now, now, state.samples
            self._print(f"{state.phase}: {state.total_samples:,} samples" if state.total_samples else state.phase)
        elif now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            speed = (state.samples - self._samples_before) / (now - self._began)
            if state.total_samples and speed:
                left = (state.total_samples - state.samples) / speed
                done = f"{state.samples:,} of {state.total_samples:,} samples"
                self._print(f"{state.phase}: {done}, {speed:,.0f} samples/s, {left:,.0f} s left")
            else:
                self._print(f"{state.phase}: {state.samples:,} members")

    @staticmethod
    def _print(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
