"""How `dinowds watch` shows a run: pure functions of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from .progress import KNN, duration
from .shared import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

    from dinowds.train.history import Snapshot

_BLOCKS = "▁▂▃▄▅▆▇█"
_MAX_SPARKS = 120
_MAX_FINDINGS = 3
_WITH_RANGE = 64
"""Columns from which there is room for the least and the largest value of a curve."""
_LEAST_BAR = 8
_STYLES = {"running": "green", "finished": "bold", "not running": "yellow", "unknown": "yellow"}


class Row(NamedTuple):
    name: str
    figure: str
    """Its name in metrics.jsonl."""
    form: str


FIGURES = (
    Row("loss ÷ ln K", "loss_share", ".1%"),
    Row("KL", "kl", ".3f"),
    Row("teacher entropy", "teacher_entropy", ".3f"),
    Row("kNN teacher", KNN, ".1%"),
    Row("kNN student", KNN.replace("teacher", "student"), ".1%"),
    Row("images/s", "images_per_second", ",.0f"),
    Row("waiting", "waiting_share", ".1%"),
)
"""With a curve."""

_OTHERS = (
    Row("loss", "loss", ".3f"),
    Row("lr", "lr", ".2e"),
    Row("weight decay", "weight_decay", ".3f"),
    Row("momentum", "momentum", ".4f"),
    Row("gradient", "gradient_norm/all", ".3g"),
    Row("in use", "prototypes_in_use", ",.0f"),
    Row("spread", "teacher_std", ".2f"),
    Row("RankMe", "knn/teacher/rank_me", ",.0f"),
    Row("MFU", "mfu", ".1%"),
    Row("GiB", "peak_memory_gib", ".1f"),
)
"""The newest value alone."""

_BAD = (("bad samples", "bad_samples"), ("steps not applied", "bad_steps"))


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of at most `width` blocks, each the mean of its part of the values; '▁' where all are alike."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [place * len(values) // count for place in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    least, extent = min(means), max(means) - min(means)
    return "".join(_BLOCKS[round((mean - least) / extent * (len(_BLOCKS) - 1)) if extent else 0] for mean in means)


def view_json(run: Snapshot) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "status": run.status,
        "step": run.step,
        "num_steps": run.num_steps,
        "epoch": run.epoch,
        "num_epochs": run.num_epochs,
        "seconds_left": run.seconds_left,
        "written_at": run.written_at,
        "figures": dict(run.figures),
        "findings": [{"step": told.step, **vars(told.finding)} for told in run.findings],
        "checkpoint": run.checkpoint and str(run.checkpoint),
        "log": list(run.log),
    }


class View:
    """A run at `now` (seconds since 1970), in as many columns as the console has."""

    def __init__(self, run: Snapshot, now: float) -> None:
        self._run, self._now = run, now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.console import Group

        width = options.max_width
        parts = (
            *self._head(width),
            *self._progress(width),
            "",
            *self._curves(width),
            "",
            *self._others(width),
            *self._findings(),
            self._checkpoint(),
            *self._log(),
        )
        yield Group(*parts)

    def _head(self, width: int) -> Iterator[RenderableType]:
        """The folder, and at the right or below it whether the run is at work."""
        from rich.text import Text

        run = self._run
        age = "no figures yet" if run.written_at is None else f"last line {_ago(self._now - run.written_at)}"
        name, status = _line(str(run.folder), "bold"), Text.assemble((run.status, _STYLES[run.status]), f", {age}")
        if name.cell_len + status.cell_len + 2 > width:
            yield from (name, status)
            return
        grid = _grid(name_takes_all=True)
        grid.add_row(name, status)
        yield grid

    def _progress(self, width: int) -> Iterator[RenderableType]:
        """Steps, a bar where there is room, and the time left."""
        from rich.progress_bar import ProgressBar

        run = self._run
        steps = f"step {run.step:,}" + (f"/{run.num_steps:,}" if run.num_steps else "")
        place = f"epoch {run.epoch}/{run.num_epochs}  {steps}"
        share = f"{run.step / run.num_steps:.0%}" if run.num_steps else ""
        left = f"{share}  left {duration(run.seconds_left)}" if run.seconds_left is not None else share
        room = width - len(place) - len(left) - 4
        if room < _LEAST_BAR:
            yield from (_line(place), _line(left))
            return
        grid = _grid()
        bar = ProgressBar(total=run.num_steps or 1, completed=run.step if run.num_steps else 0, width=room)
        grid.add_row(_line(place), bar, _line(left))
        yield grid

    def _curves(self, width: int) -> Iterator[Text]:
        """Name, newest value and curve of each figure, and where there is room the curve's least and largest value."""
        from rich.text import Text

        run = self._run
        rows = [row for row in FIGURES if run.series[row.figure]]
        names = _aligned([row.name for row in rows], "<")
        newest = _aligned([f"{run.figures[row.figure]:{row.form}}" for row in rows], ">")
        ranges = [
            f"  {min(run.series[row.figure]):{row.form}} to {max(run.series[row.figure]):{row.form}}"
            if width >= _WITH_RANGE
            else ""
            for row in rows
        ]
        taken = max((len(f"{name}  {value}  ") for name, value in zip(names, newest, strict=True)), default=0)
        room = min(_MAX_SPARKS, width - taken - max(map(len, ranges), default=0))
        for row, name, value, extent in zip(rows, names, newest, ranges, strict=True):
            curve = f"{sparkline(run.series[row.figure], room):{max(room, 0)}}"
            parts = (f"{name}  ", (value, "bold"), "  ", (curve, "cyan"), (extent, "dim"))
            yield Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    def _others(self, width: int) -> Iterator[Text]:
        """As many to a line as there is room for; samples and steps that were bad where there are any."""
        figures = self._run.figures
        parts = [f"{row.name} {figures[row.figure]:{row.form}}" for row in _OTHERS if row.figure in figures]
        lines: list[str] = []
        for part in parts:
            if lines and len(lines[-1]) + len(part) + 2 <= width:
                lines[-1] += f"  {part}"
            else:
                lines.append(part)
        yield from map(_line, lines)
        bad = [f"{figures[figure]:,.0f} {name}" for name, figure in _BAD if figures.get(figure)]
        if bad:
            yield _line("  ".join(bad), "yellow")

    def _findings(self) -> Iterator[Text]:
        from rich.text import Text

        findings = self._run.findings
        if len(findings) > _MAX_FINDINGS:
            yield _line(f"{len(findings) - _MAX_FINDINGS} earlier warnings", "yellow")
        for told in findings[-_MAX_FINDINGS:]:
            yield Text(printable(f"step {told.step:,}: {told.finding}"), style="bold yellow", overflow="fold")

    def _checkpoint(self) -> Text:
        path = self._run.checkpoint
        return _line(f"last checkpoint: {path.name if path else 'none yet'}")

    def _log(self) -> Iterator[Text]:
        yield from (_line(text, "dim") for text in self._run.log)


def _line(text: str, style: str = "") -> Text:
    """One line, whose end is left out where there is no room."""
    from rich.text import Text

    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _aligned(texts: Sequence[str], side: str) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"{text:{side}{width}}" for text in texts]


def _grid(name_takes_all: bool = False) -> Table:
    """Cells side by side, two columns apart; the first may take the room that the others leave."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0), expand=name_takes_all)
    if name_takes_all:
        grid.add_column(ratio=1)
    return grid


def _ago(seconds: float) -> str:
    """`12 s ago`, `1:02:03 ago`."""
    seconds = max(0.0, seconds)  # another host's clock may be ahead
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{duration(seconds)} ago"
