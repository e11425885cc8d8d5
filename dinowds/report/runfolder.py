"""A run's folder as it is: finished, going on, empty or damaged. What cannot be read is said, and the rest is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinowds.config import RunConfig, flatten, kind_of, load_config
from dinowds.errors import ConfigError, DinowdsError
from dinowds.eval.history import EVALUATIONS_NAME, read_evaluations
from dinowds.files import open_regular, read_regular
from dinowds.model.dino import num_prototypes
from dinowds.report.metrics import POINTS, Metrics, Rows, as_floats, read_metrics
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint
from dinowds.train.diagnostics import GRADIENT_NORM
from dinowds.train.folder import CHECKPOINTS_NAME, CONFIG_NAME, read_saved
from dinowds.train.monitor import BAD_SAMPLES_NAME, BAD_STEPS_NAME, LOG_NAME, METRICS_NAME
from dinowds.train.watch import Finding, Watch

_MOST_LOOKS = 10_000
"""Lines that the monitor looks at again; after that, half as many of the following, and again."""
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)")
_PLANNED = re.compile(r"steps [\d,]+ to ([\d,]+), batch")
"""In the line with which a run starts."""


@dataclass(frozen=True)
class Said:
    """A line of train.log."""

    when: str
    text: str


@dataclass(frozen=True)
class Alarm:
    """A finding of the monitor."""

    finding: Finding
    """As it was first."""
    steps: tuple[int, ...]
    """When it was told."""


@dataclass
class RunFolder:
    path: Path
    name: str
    config: RunConfig | None
    """None where it cannot be read, or is of another version."""
    saved: dict[str, Any]
    """Keys of config.yaml with dots → values, read or not."""
    metrics: Metrics
    alarms: list[Alarm]
    log: list[Said]
    evaluations: list[dict[str, Any]]
    checkpoints: list[Path]
    """Oldest first."""
    num_bad_samples: int
    num_bad_steps: int
    hours: float
    """Of training, by the throughput at log points."""
    data: str | None
    """DATASET[:SUBSET] that it is trained on, as its newest checkpoint says; None where none does."""
    data_name: str | None
    """The dataset's own name, and its samples."""
    notices: list[str] = field(default_factory=list)
    """What could not be read, or is not whole."""

    @property
    def ln_k(self) -> float | None:
        """None for a configuration that does not say K."""
        return None if self.config is None else math.log(num_prototypes(self.config.student))

    @property
    def planned_steps(self) -> int | None:
        """By the newest start in the log."""
        found = [match for line in self.log if (match := _PLANNED.search(line.text))]
        return int(found[-1][1].replace(",", "")) if found else None

    @property
    def is_done(self) -> bool:
        """All steps are taken, or the run ended as it should."""
        planned = self.planned_steps
        was_told = any(f"{self.metrics.last_step} steps, " in line.text for line in self.log[-5:])
        return planned is not None and (self.metrics.last_step >= planned or was_told)

    @property
    def last_written(self) -> str:
        """When the newest of its files changed; empty where there are none."""
        times = [path.stat().st_mtime for path in map(self.path.joinpath, (METRICS_NAME, LOG_NAME)) if path.exists()]
        return datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M") if times else ""


def read_run(path: Path, points: int = POINTS) -> RunFolder:
    """Everything but weights. `points`: of a curve, at most.

    Raises:
        OSError: a file is there and cannot be read.
    """
    notices: list[str] = []
    saved, config = _config(path, notices)
    monitor, clock = _Monitor(config), _Clock(config)

    def look(rows: Rows) -> None:
        monitor.look(rows)
        clock.look(rows)

    metrics = read_metrics(path / METRICS_NAME, points, look)
    _tell_of_damage(path, metrics, notices)
    evaluations, num_damaged = read_evaluations(path)
    if num_damaged:
        notices.append(f"{path / EVALUATIONS_NAME}: {num_damaged:,} lines cannot be read and are left out")
    checkpoints = list_checkpoints(path / CHECKPOINTS_NAME)[::-1]
    data, data_name = _data_of(checkpoints, notices)
    return RunFolder(
        path=path,
        name=path.resolve().name,
        config=config,
        saved=saved,
        metrics=metrics,
        alarms=monitor.alarms(),
        log=list(_log(path / LOG_NAME)),
        evaluations=evaluations,
        checkpoints=checkpoints,
        num_bad_samples=_num_lines(path / BAD_SAMPLES_NAME),
        num_bad_steps=_num_lines(path / BAD_STEPS_NAME),
        hours=clock.seconds / 3600,
        data=data,
        data_name=data_name,
        notices=notices,
    )


def _config(folder: Path, notices: list[str]) -> tuple[dict[str, Any], RunConfig | None]:
    try:
        saved = read_saved(folder / CONFIG_NAME)
    except ConfigError as error:
        notices.append(str(error))
        return {}, None
    try:
        config = load_config(folder / CONFIG_NAME, (), kind_of(saved))
        num_prototypes(config.student)
    except DinowdsError as error:
        notices.append(f"{error}; it is shown as it is, without what follows from it")
        config = None
    return flatten(saved), config


def _data_of(checkpoints: Sequence[Path], notices: list[str]) -> tuple[str | None, str | None]:
    """Where the dataset lies, and its name, by the newest checkpoint that can be read."""
    for path in reversed(checkpoints):
        try:
            state = load_checkpoint(path, is_mapped=True)
        except (DinowdsError, OSError) as error:
            notices.append(str(error))
            continue
        data, about = state.get("data"), state.get("about")
        said = about.get("dataset") if isinstance(about, dict) else None
        name = f"{said.get('name')}, {said.get('samples'):,} samples" if isinstance(said, dict) else None
        return data if isinstance(data, str) else None, name
    return None, None


def _tell_of_damage(folder: Path, metrics: Metrics, notices: list[str]) -> None:
    path = folder / METRICS_NAME
    if not metrics.num_lines:
        notices.append(f"{path}: no figures yet")
    if metrics.is_cut:
        notices.append(f"{path}: its last line is cut; it is being written, or its writer was killed. It is left out")
    if metrics.num_damaged:
        notices.append(f"{path}: {metrics.num_damaged:,} lines are no figures of a step and are left out")


class _Monitor:
    """What the monitor of the run finds in its figures, told or not (`monitor.warn`)."""

    def __init__(self, config: RunConfig | None) -> None:
        self._watch = None if config is None else Watch(config, num_prototypes(config.student))
        self._found: dict[str, tuple[Finding, list[int]]] = {}
        self._stride, self._num_seen, self._num_looked = 1, 0, 0

    def look(self, rows: Rows) -> None:
        if self._watch is None or "lr" not in rows.column_names:
            return
        rows = rows.filter(pa.array(np.isfinite(as_floats(rows["lr"]))))  # evaluations have lines of their own
        # A count has always grown between lines that are far apart
        hidden = {"step"} | ({"bad_steps"} if self._stride > 1 else set())
        names = [name for name in rows.column_names if name not in hidden and not _is_of_block(name)]
        offset = -self._num_seen % self._stride
        self._num_seen += len(rows)
        steps = rows["step"].to_numpy()[offset :: self._stride].tolist()
        columns = [as_floats(rows[name])[offset :: self._stride].tolist() for name in names]
        for step, *values in zip(steps, *columns, strict=True):
            for finding in self._watch.look(step, dict(zip(names, values, strict=True))):
                self._found.setdefault(finding.name, (finding, []))[1].append(step)
        self._num_looked += len(steps)
        if self._num_looked > _MOST_LOOKS:
            self._stride, self._num_looked = self._stride * 2, self._num_looked // 2

    def alarms(self) -> list[Alarm]:
        return [Alarm(finding, tuple(steps)) for finding, steps in self._found.values()]


def _is_of_block(name: str) -> bool:
    return name.startswith(f"{GRADIENT_NORM}blocks.")


class _Clock:
    """Seconds of training: samples between log points by the throughput there. Pauses do not count."""

    def __init__(self, config: RunConfig | None) -> None:
        self._batch_size = None if config is None else config.train.batch_size
        self._last_step, self.seconds = 0.0, 0.0

    def look(self, rows: Rows) -> None:
        if self._batch_size is None or "images_per_second" not in rows.column_names:
            return
        steps, rates = rows["step"].to_numpy(), as_floats(rows["images_per_second"])
        there = rates > 0
        if there.any():
            passed = np.diff(steps[there], prepend=self._last_step).clip(min=0)
            self.seconds += float((passed * self._batch_size / rates[there]).sum())
            self._last_step = float(steps[there][-1])


def _log(path: Path) -> Iterator[Said]:
    """Its messages, in their order."""
    if not path.exists():
        return
    for line in read_regular(path).decode("utf-8", "replace").splitlines():
        if match := _LOG_LINE.fullmatch(line):
            yield Said(match[1], match[2])


def _num_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(open_regular(path), "rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
