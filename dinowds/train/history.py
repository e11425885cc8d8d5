"""A run as its folder shows it, whoever writes there: read as it grows, in memory that does not."""

from __future__ import annotations

import os
import statistics
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from dinowds.config import RunConfig
from dinowds.files import open_regular
from dinowds.train.checkpoint import list_checkpoints
from dinowds.train.folder import CHECKPOINTS_NAME, is_at_work, read_config
from dinowds.train.monitor import LOG_NAME, METRICS_NAME, parse_entry
from dinowds.train.watch import Finding, Watch

Status: TypeAlias = Literal["running", "finished", "not running", "unknown"]
"""unknown: the file system has no locks, and not all steps are done."""

_PACE_POINTS = 20
"""Log points whose mean pace the time left is of: evaluations and checkpoints are among them."""
_LOG_BYTES = 1 << 16
"""The end of `train.log` that is looked at."""


class Told(NamedTuple):
    """Something that the monitor found, and after which step."""

    step: int
    finding: Finding


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    folder: Path
    status: Status
    step: int
    """Optimizer steps done, as of the newest line of `metrics.jsonl`; 0 without one."""
    num_steps: int | None
    """That the run will do; None while nothing tells how many an epoch has."""
    epoch: int
    """The one that this step is in, from 1."""
    num_epochs: int
    seconds_left: float | None
    """At the recent pace; None where it is not known, or nothing is left."""
    figures: Mapping[str, float]
    """The newest value of each."""
    series: Mapping[str, Sequence[float]]
    """Of the figures that were asked for, over the steps: means of equally many log points, first to last."""
    findings: Sequence[Told]
    """Of the monitor, oldest first."""
    checkpoint: Path | None
    """The newest."""
    written_at: float | None
    """When `metrics.jsonl` last grew, seconds since 1970."""
    log: Sequence[str]
    """The last lines of `train.log`."""


class Series:
    """Values in their order, as means of equally many: between half of `capacity` and all of it, however many come."""

    def __init__(self, capacity: int = 1024) -> None:
        """`capacity`: even."""
        self._capacity = capacity
        self._means: list[float] = []
        self._each = 1
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum += value
        self._count += 1
        if self._count < self._each:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == self._capacity:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means, self._each = [(one + other) / 2 for one, other in pairs], self._each * 2

    def values(self) -> list[float]:
        """The means; the last one is of those that came since."""
        return [*self._means, self._sum / self._count] if self._count else list(self._means)


class History:
    """Follows the folder of a run: `advance` takes in what is new, `snapshot` says where the run stands."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """`names`: figures whose series are kept.

        Raises:
            ConfigError: the folder is no run's, or its `config.yaml` cannot be read.
        """
        self._folder, self._names = folder, names
        self._begin(None)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self._config = read_config(self._folder)
        self._identity, self._offset = identity, 0
        self._watch = _watch_of(self._config)
        self._step = 0
        self._steps_per_epoch: int | None = None
        self._pace: deque[float] = deque(maxlen=_PACE_POINTS)
        self._figures: dict[str, float] = {}
        self._series = {name: Series() for name in self._names}
        self._findings: list[Told] = []

    def advance(self) -> None:
        """Take in the whole lines that were added to `metrics.jsonl`; a last one that is cut short waits for its rest.

        A file that was written anew, by a run that goes on from a checkpoint, is read from its beginning.
        """
        try:
            file = open(open_regular(self._folder / METRICS_NAME), "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if identity != self._identity or found.st_size < self._offset:
                self._begin(identity)
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        entry = parse_entry(line)
        if entry is None:
            return
        step = entry.pop("step")
        figures = {name: float(value) for name, value in entry.items() if _is_figure(value)}
        self._step = max(self._step, step)
        for name in entry:  # one that is not finite has no value now
            self._figures.pop(name, None)
        self._figures |= figures
        for name in self._names:
            if name in figures:
                self._series[name].add(figures[name])
        if "loss" not in entry:  # of an evaluation; the monitor looks at steps alone, as in the run
            return
        if figures.get("epoch", 0.0) > 0:
            self._steps_per_epoch = round((step - 1) / figures["epoch"])
        if figures.get("images_per_second", 0.0) > 0:
            self._pace.append(self._config.train.batch_size / figures["images_per_second"])
        if self._watch:
            self._findings += [Told(step, finding) for finding in self._watch.look(step, figures)]

    def snapshot(self, log_lines: int = 3) -> Snapshot:
        """`log_lines`: how many of `train.log`."""
        checkpoints = list_checkpoints(self._folder / CHECKPOINTS_NAME)
        num_steps = self._num_steps()
        left = None if num_steps is None else num_steps - self._step
        return Snapshot(
            folder=self._folder,
            status=self._status(left),
            step=self._step,
            num_steps=num_steps,
            epoch=self._epoch(),
            num_epochs=self._config.optim.epochs,
            seconds_left=left * statistics.fmean(self._pace) if left and self._pace else None,
            figures=dict(self._figures),
            series={name: series.values() for name, series in self._series.items()},
            findings=tuple(self._findings),
            checkpoint=checkpoints[0] if checkpoints else None,
            written_at=_modified(self._folder / METRICS_NAME),
            log=_last_lines(self._folder / LOG_NAME, log_lines),
        )

    def _status(self, steps_left: int | None) -> Status:
        at_work = is_at_work(self._folder)
        if at_work:
            return "running"
        if steps_left == 0:
            return "finished"
        return "unknown" if at_work is None else "not running"

    def _num_steps(self) -> int | None:
        if self._steps_per_epoch is None:
            return None
        optim = self._config.optim
        all_steps = optim.epochs * self._steps_per_epoch
        return min(all_steps, optim.max_steps or all_steps)

    def _epoch(self) -> int:
        return max(0, self._step - 1) // (self._steps_per_epoch or max(1, self._step)) + 1


def _watch_of(config: RunConfig) -> Watch | None:
    """None for a run that has not said yet how many prototypes it has."""
    out_dim = config.student.out_dim
    return None if out_dim == "auto" else Watch(config, int(out_dim))


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with open(open_regular(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:] if count else []
