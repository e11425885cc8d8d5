"""How a training run looks: a live bar on a terminal, plain lines elsewhere; a table that grows by a row an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .shared import printable

if TYPE_CHECKING:
    from dinowds.train.monitor import EpochSummary, Observer
    from dinowds.train.monitor import Progress as RunProgress

_SECONDS_BETWEEN_LINES = 10.0
_ROWS_BETWEEN_HEADS = 20
KNN = "knn/teacher/accuracy"


class _Column(NamedTuple):
    head: str
    figure: str
    """Its name in metrics.jsonl."""
    width: int
    form: str


_COLUMNS = (
    _Column("loss", "loss", 7, ".3f"),
    _Column("÷ ln K", "loss_share", 7, ".1%"),
    _Column("KL", "kl", 6, ".3f"),
    _Column("in use", "prototypes_in_use", 6, ",.0f"),
    _Column("spread", "teacher_std", 6, ".2f"),
    _Column("gradient", "gradient_norm/all", 8, ".3g"),
    _Column("kNN", KNN, 6, ".1%"),
    _Column("img/s", "images_per_second", 7, ",.0f"),
    _Column("waiting", "waiting_share", 7, ".1%"),
    _Column("MFU", "mfu", 6, ".1%"),
    _Column("GiB", "peak_memory_gib", 5, ".1f"),
)


class EpochTable:
    """Lines of a table of epochs: its head at first, after some rows, and when there are other columns."""

    def __init__(self) -> None:
        self._shown: tuple[_Column, ...] = ()
        self._rows = 0

    def head(self, figures: Mapping[str, float]) -> str | None:
        """The head, if it is due before a row of these figures."""
        columns = tuple(column for column in _COLUMNS if column.figure in figures or column in self._shown)
        is_due = columns != self._shown or self._rows % _ROWS_BETWEEN_HEADS == 0
        self._shown = columns
        return (
            "  ".join([f"{'epoch':>9}", f"{'time':>8}", *(f"{c.head:>{c.width}}" for c in columns)]) if is_due else None
        )

    def row(self, summary: EpochSummary) -> str:
        self._rows += 1
        cells = [_cell(column, summary.figures) for column in self._shown]
        return "  ".join([f"{f'{summary.epoch}/{summary.num_epochs}':>9}", f"{duration(summary.seconds):>8}", *cells])


def _cell(column: _Column, figures: Mapping[str, float]) -> str:
    return f"{figures[column.figure]:>{column.width}{column.form}}" if column.figure in figures else " " * column.width


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def duration(seconds: float) -> str:
    """h:mm:ss, also of more than a day."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


def describe(progress: RunProgress) -> str:
    """The figures of a line of progress."""
    m = progress.metrics
    parts = [f"epoch {progress.epoch}/{progress.num_epochs}"]
    if "loss" in m:
        share = f" ({m['loss_share']:.0%} of ln K)" if "loss_share" in m else ""
        parts += [f"loss {m['loss']:.3f}{share}", f"lr {m['lr']:.2e}", f"{m['images_per_second']:.0f} img/s"]
        parts += [f"waiting {m['waiting_share']:.0%}"]
    parts += [f"kNN {m[KNN]:.1%}"] if KNN in m else []
    return "  ".join(parts)


class BarObserver:
    """rich's progress bar."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._bar = Progress(*columns, console=console, refresh_per_second=4)
        self._task = self._bar.add_task("starting", total=None)
        self._first: int | None = None
        self._table = EpochTable()

    def message(self, text: str) -> None:
        self._console.print(_lines(text), markup=False, highlight=False)

    def epoch(self, summary: EpochSummary) -> None:
        if head := self._table.head(summary.figures):
            self._console.print(head, markup=False, highlight=False, style="bold", overflow="ellipsis", no_wrap=True)
        row = self._table.row(summary)
        self._console.print(row, markup=False, highlight=False, overflow="ellipsis", no_wrap=True)

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
        self._table = EpochTable()

    def message(self, text: str) -> None:
        if self._unwritten and self._unwritten.step == self._unwritten.num_steps:
            self._write(self._unwritten, time.monotonic())
        self._console.print(_lines(text), markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: RunProgress) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = progress.step, now
        self._unwritten = progress
        if now - self._written_at >= _SECONDS_BETWEEN_LINES:
            self._write(progress, now)

    def epoch(self, summary: EpochSummary) -> None:
        for line in (self._table.head(summary.figures), self._table.row(summary)):
            if line:
                self.message(line)

    def close(self) -> None:
        if self._unwritten:
            self._write(self._unwritten, time.monotonic())

    def _write(self, progress: RunProgress, now: float) -> None:
        assert self._first is not None
        self._written_at, self._unwritten = now, None
        pace = (now - self._start) / max(1, progress.step - self._first)
        left = duration(pace * (progress.num_steps - progress.step))
        self.message(f"step {progress.step}/{progress.num_steps}  {describe(progress)}  left {left}")


def run_observer(console: Console | None = None) -> BarObserver | LineObserver:
    """A bar on a terminal, lines elsewhere; on stderr, so that stdout stays for results."""
    console = console or Console(stderr=True)
    return BarObserver(console) if console.is_terminal and sys.stderr.isatty() else LineObserver(console)


if TYPE_CHECKING:
    _: tuple[type[Observer], ...] = (BarObserver, LineObserver)
