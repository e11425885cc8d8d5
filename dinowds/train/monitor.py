"""What a run tells: metrics.jsonl, sinks, bad_samples.jsonl, and progress and epochs for whoever watches."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dinowds.files import fsync_folder, output_errors, write_atomic
from dinowds.train.sinks import Sink, TensorBoard, describe_failure

METRICS_NAME = "metrics.jsonl"
BAD_SAMPLES_NAME = "bad_samples.jsonl"
BAD_STEPS_NAME = "bad_steps.jsonl"
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


@dataclass(frozen=True)
class EpochSummary:
    """An epoch that is done, or the part of it since the run last started."""

    epoch: int
    """From 1."""
    num_epochs: int
    step: int
    """Optimizer steps done."""
    seconds: float
    figures: Mapping[str, float]
    """Means of what was written in the epoch, figures of evaluations too."""


class Observer(Protocol):
    """Whoever watches a run on rank 0: a progress bar, plain lines, a test."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def progress(self, progress: Progress) -> None:
        """Called after every step."""

    def epoch(self, summary: EpochSummary) -> None:
        """Called at each epoch's end."""


class SilentObserver:
    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def epoch(self, summary: EpochSummary) -> None: ...


class LogObserver:
    """Writes messages to `train.log` with the time, and passes everything on."""

    def __init__(self, folder: Path, inner: Observer) -> None:
        self._path, self._inner = folder / LOG_NAME, inner

    def message(self, text: str) -> None:
        append_text(self._path, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self._inner.message(text)

    def progress(self, progress: Progress) -> None:
        self._inner.progress(progress)

    def epoch(self, summary: EpochSummary) -> None:
        self._inner.epoch(summary)


class EpochMeans:
    """Means of figures over an epoch, and the time it took."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._figures: dict[str, list[float]] = {}

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self._figures.setdefault(name, []).append(value)

    def read(self, step: int, epoch: int, num_epochs: int) -> EpochSummary:
        """Of what was added since the last reading; starts anew. `epoch`: the one that has ended, from 1."""
        means = {name: statistics.fmean(values) for name, values in self._figures.items()}
        summary = EpochSummary(epoch, num_epochs, step, time.perf_counter() - self._start, means)
        self._start, self._figures = time.perf_counter(), {}
        return summary


@dataclass(frozen=True)
class Capacity:
    """What throughput is compared with."""

    device: torch.device
    flops_per_image: float
    """Of one step, as `diagnostics.step_flops`."""
    peak_flops: float | None
    """FLOP/s of all ranks' devices together at best; None where that is not known."""

    def use(self, images_per_second: float) -> dict[str, float]:
        """`mfu` and `peak_memory_gib`; NaN for what is not known."""
        is_gpu = self.device.type == "cuda"
        return {
            "mfu": images_per_second * self.flops_per_image / self.peak_flops if self.peak_flops else math.nan,
            "peak_memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30 if is_gpu else math.nan,
        }


class Stopwatch:
    """Throughput and the share of time spent waiting for data, since the last reading."""

    def __init__(self, capacity: Capacity | None = None) -> None:
        """`capacity`: None where utilisation is not asked for."""
        self._capacity = capacity
        self._start = time.perf_counter()
        self._waited, self._images = 0.0, 0
        self._reading: dict[str, float] | None = None

    def add(self, waited: float, images: int) -> None:
        """`waited`: seconds until the batch was there; `images`: its size over all ranks."""
        self._waited += waited
        self._images += images

    def read(self) -> dict[str, float]:
        """`images_per_second`; `waiting_share`, 0 to 1. With a capacity also `mfu`, model FLOP/s utilisation, 0 to 1:
        how much of the devices' peak the model's operations make, NaN where the peak is not known; and
        `peak_memory_gib`, the most that tensors of this rank took on its GPU so far, NaN without one. Starts anew; if
        nothing was added, the last reading holds.
        """
        if self._reading is not None and not self._images:
            return self._reading
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        rate, waiting_share = self._images / elapsed, self._waited / elapsed
        self._start, self._waited, self._images = now, 0.0, 0
        reading = {"images_per_second": rate, "waiting_share": waiting_share}
        self._reading = reading | (self._capacity.use(rate) if self._capacity else {})
        return self._reading


class Journal:
    """The files of a run that grow. Written by rank 0 alone, but for `bad_samples.jsonl`.

    Sinks are written to by a thread, so that no step waits for them. One that fails is told of and left out:
    `metrics.jsonl` has all figures in any case.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        sinks: Sequence[Sink] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Goes on after `resumed_step`: what a killed run wrote after its last checkpoint is taken back.

        `sinks`: TensorBoard alone if none are given. `tell`: takes a line on a sink that failed, in another thread.
        """
        for name in (METRICS_NAME, BAD_SAMPLES_NAME, BAD_STEPS_NAME):
            keep_steps_until(folder / name, resumed_step)
        self._metrics = folder / METRICS_NAME
        append_text(self._metrics, "")  # is there from the start
        with output_errors(folder):
            fsync_folder(folder)
        self._sinks, self._tell = list([TensorBoard(folder, resumed_step)] if sinks is None else sinks), tell
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="dinowds-sinks")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` counts from 1: the number of optimizer steps done. Figures that are not finite are null on disk."""
        line = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_lines(self._metrics, [{"step": step, **line}])
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._sender.submit(self._each_sink, lambda sink: sink.write(step, finite))

    def close(self) -> None:
        """Waits until sinks have everything."""
        self._sender.submit(self._each_sink, lambda sink: sink.close())
        self._sender.shutdown()

    def _each_sink(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except Exception as error:  # of a package or a server of others
                self._sinks.remove(sink)
                self._tell(describe_failure(sink.name, error))


def keep_steps_until(path: Path, last_step: int) -> None:
    """Drop the lines of `path` that are of later steps, or cut short. Raises OutputError where it cannot be."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (entry := parse_entry(line)) is not None and entry["step"] <= last_step]
    with output_errors(path):
        write_atomic(path, "".join(line + "\n" for line in kept).encode())


def last_figure(path: Path, name: str) -> float:
    """The newest value of a metric in `metrics.jsonl`; NaN where there is none."""
    entries = (parse_entry(line) for line in reversed(path.read_text(encoding="utf-8").splitlines()))
    return next((float(entry[name]) for entry in entries if entry and entry.get(name) is not None), math.nan)


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines, if there are any."""
    if text := "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries):
        append_text(path, text)


def append_text(path: Path, text: str) -> None:
    """Append in one write, so that lines of several ranks do not mix. Raises OutputError where it cannot be."""
    left = memoryview(text.encode())
    with output_errors(path), open(path, "ab", buffering=0) as file:
        while left := left[file.write(left) :]:  # a disk that is nearly full takes a part, and says nothing
            pass


def parse_entry(line: str | bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl` and its like; None for what is none, such as one that is cut short."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None
