"""How a training run looks: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from dinowds.train.monitor import Observer
    from dinowds.train.monitor import Progress as RunProgress

_SECONDS_BETWEEN_LINES = 10.0


def describe(progress: RunProgress) -> str:
    """The figures of a line of progress."""
    m = progress.metrics
    parts = [f"epoch {progress.epoch}/{progress.num_epochs}"]
    if "loss" in m:
        parts += [f"loss {m['loss']:.3f}", f"lr {m['lr']:.2e}", f"{m['images_per_second']:.0f} img/s"]
        parts += [f"waiting {m['waiting_share']:.0%}"]
    parts += [f"kNN {m['knn_teacher']:.3f}"] if "knn_teacher" in m else []
    return "  ".join(parts)


class BarObserver:
    """rich's progress bar."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._bar = Progress(*columns, console=console, refresh_per_second=4)
        self._task = self._bar.add_task("starting", total=None)
        self._first: int | None = None

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def progress(self, progress: RunProgress) -> None:
        if self._first is None:  # steps of an earlier call are done already and say nothing of the speed
            self._first = progress.step
            self._bar.reset(self._task, total=progress.num_steps, completed=progress.step)
            self._bar.start()
        self._bar.update(self._task, completed=progress.step, description=describe(progress))
        if progress.step == progress.num_steps:
            self._bar.stop()

    def close(self) -> None:
        self._bar.stop()


class LineObserver:
    """A line every ten seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = self._written_at = time.monotonic()
        self._first: int | None = None
        self._unwritten: RunProgress | None = None

    def message(self, text: str) -> None:
        if self._unwritten and self._unwritten.step == self._unwritten.num_steps:
            self._write(self._unwritten, time.monotonic())
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: RunProgress) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = progress.step, now
        self._unwritten = progress
        if now - self._written_at >= _SECONDS_BETWEEN_LINES:
            self._write(progress, now)

    def close(self) -> None:
        if self._unwritten:
            self._write(self._unwritten, time.monotonic())

    def _write(self, progress: RunProgress, now: float) -> None:
        assert self._first is not None
        self._written_at, self._unwritten = now, None
        pace = (now - self._start) / max(1, progress.step - self._first)
        left = time.strftime("%H:%M:%S", time.gmtime(pace * (progress.num_steps - progress.step)))
        self.message(f"step {progress.step}/{progress.num_steps}  {describe(progress)}  left {left}")


def run_observer(console: Console | None = None) -> BarObserver | LineObserver:
    """A bar on a terminal, lines elsewhere; on stderr, so that stdout stays for results."""
    console = console or Console(stderr=True)
    return BarObserver(console) if console.is_terminal and sys.stderr.isatty() else LineObserver(console)


if TYPE_CHECKING:
    _: tuple[type[Observer], ...] = (BarObserver, LineObserver)
