"""What a run tells: metrics.jsonl, TensorBoard, bad_samples.jsonl, and a line of progress for whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dinowds.files import write_atomic

METRICS_NAME = "metrics.jsonl"
BAD_SAMPLES_NAME = "bad_samples.jsonl"
LOG_NAME = "train.log"


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    """Optimizer steps done."""
    num_steps: int
    epoch: int
    num_epochs: int
    metrics: Mapping[str, float]
    """loss, teacher_entropy, kl, lr, …; of the newest line of metrics.jsonl."""


class Observer(Protocol):
    """Whoever watches a run on rank 0: a progress bar, plain lines, a test."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def progress(self, progress: Progress) -> None:
        """Called after every step."""


class SilentObserver:
    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...


class LogObserver:
    """Writes messages to `train.log` with the time, and passes everything on."""

    def __init__(self, folder: Path, inner: Observer) -> None:
        self._path, self._inner = folder / LOG_NAME, inner

    def message(self, text: str) -> None:
        append_text(self._path, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self._inner.message(text)

    def progress(self, progress: Progress) -> None:
        self._inner.progress(progress)


class Stopwatch:
    """Throughput and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited, self._images = 0.0, 0

    def add(self, waited: float, images: int) -> None:
        """`waited`: seconds until the batch was there; `images`: its size over all ranks."""
        self._waited += waited
        self._images += images

    def read(self) -> dict[str, float]:
        """`images_per_second` and `waiting_share` (0 to 1); starts anew."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        reading = {"images_per_second": self._images / elapsed, "waiting_share": self._waited / elapsed}
        self._start, self._waited, self._images = now, 0.0, 0
        return reading


class Journal:
    """The files of a run that grow. Written by rank 0 alone, but for `bad_samples.jsonl`."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        """Goes on after `resumed_step`: what a killed run wrote after its last checkpoint is taken back."""
        from torch.utils.tensorboard import SummaryWriter

        for name in (METRICS_NAME, BAD_SAMPLES_NAME):
            keep_steps_until(folder / name, resumed_step)
        self._metrics = (folder / METRICS_NAME).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` counts from 1: the number of optimizer steps done."""
        self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._metrics.close()
        self._board.close()


def keep_steps_until(path: Path, last_step: int) -> None:
    """Drop the lines of `path` that are of later steps, or cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (entry := _parse(line)) is not None and entry["step"] <= last_step]
    write_atomic(path, "".join(line + "\n" for line in kept).encode())


def last_figure(path: Path, name: str) -> float:
    """The newest value of a metric in `metrics.jsonl`; NaN where there is none."""
    entries = (_parse(line) for line in reversed(path.read_text(encoding="utf-8").splitlines()))
    return next((float(entry[name]) for entry in entries if entry and name in entry), float("nan"))


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines, if there are any."""
    if text := "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries):
        append_text(path, text)


def append_text(path: Path, text: str) -> None:
    """Append in one write, so that lines of several ranks do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(text.encode())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None
