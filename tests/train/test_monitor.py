"""The files of a run that grow, its sinks, and what is measured by the way."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from dinowds.train.monitor import (
    METRICS_NAME,
    Capacity,
    EpochMeans,
    EpochSummary,
    Journal,
    LogObserver,
    Progress,
    Stopwatch,
    last_figure,
)

CPU = torch.device("cpu")


class Memory:
    """A sink that keeps what it gets, until it is told to fail."""

    name = "memory"

    def __init__(self, fails_at: int | None = None) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self.threads: set[int] = set()
        self._fails_at = fails_at

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self._fails_at:
            raise ConnectionError("no route\nto host")
        self.threads.add(threading.get_ident())
        self.written.append((step, dict(figures)))

    def close(self) -> None:
        self.closed = True


def lines(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / METRICS_NAME).read_text().splitlines()]


def test_journal__figures_that_are_not_finite_are_null_and_no_sink_gets_them(tmp_path: Path) -> None:
    sink = Memory()
    journal = Journal(tmp_path, 0, [sink])
    journal.write(1, {"loss": 2.0, "mfu": math.nan, "kl": math.inf})
    journal.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0, "mfu": None, "kl": None}]
    assert sink.written == [(1, {"loss": 2.0})]


def test_journal__sinks_are_written_to_by_another_thread_in_order_and_closed(tmp_path: Path) -> None:
    sink = Memory()
    journal = Journal(tmp_path, 0, [sink])
    for step in range(1, 20):
        journal.write(step, {"loss": float(step)})
    journal.close()
    assert [step for step, _ in sink.written] == list(range(1, 20))
    assert sink.closed
    assert threading.get_ident() not in sink.threads


def test_journal__a_sink_that_fails_is_told_of_once_and_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    bad, good = Memory(fails_at=2), Memory()
    journal = Journal(tmp_path, 0, [bad, good], told.append)
    for step in (1, 2, 3):
        journal.write(step, {"loss": 1.0})
    journal.close()
    assert told == ["memory failed and gets no more figures of this run (no route to host)"]
    assert [step for step, _ in bad.written] == [1]
    assert [step for step, _ in good.written] == [1, 2, 3]
    assert len(lines(tmp_path)) == 3


def test_journal__takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        journal = Journal(tmp_path, resumed)
        for step in steps:
            journal.write(step, {"loss": float(10 * resumed + step)})
        journal.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 23, 24]
    assert len(list(tmp_path.glob("events.out.tfevents*"))) >= 1


def test_last_figure__newest_that_is_a_number(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, [])
    journal.write(1, {"loss": 3.0})
    journal.write(2, {"loss": math.nan})
    journal.close()
    assert last_figure(tmp_path / METRICS_NAME, "loss") == 3.0
    assert math.isnan(last_figure(tmp_path / METRICS_NAME, "kl"))


def test_stopwatch__rate_utilisation_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stopwatch = Stopwatch(Capacity(CPU, flops_per_image=2e9, peak_flops=1e12))
    stopwatch.add(waited=0.5, images=300)
    stopwatch.add(waited=0.0, images=300)
    now = 105.0
    reading = stopwatch.read()
    assert math.isnan(reading.pop("peak_memory_gib"))
    assert reading == pytest.approx({"images_per_second": 120, "waiting_share": 0.1, "mfu": 0.24})
    now = 106.0
    assert stopwatch.read()["images_per_second"] == 120  # nothing was added
    stopwatch.add(waited=0.0, images=10)
    now = 107.0
    assert stopwatch.read()["images_per_second"] == 5


def test_stopwatch__utilisation_of_an_unknown_device_is_nan() -> None:
    assert math.isnan(Stopwatch(Capacity(CPU, 1e9, None)).read()["mfu"])


def test_epoch_means__of_finite_figures_and_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    means = EpochMeans()
    means.add({"loss": 2.0, "mfu": math.nan})
    means.add({"loss": 4.0, "mfu": 0.25})
    now = 13.0
    assert means.read(20, 1, 5) == EpochSummary(1, 5, 20, 3.0, {"loss": 3.0, "mfu": 0.25})
    means.add({"loss": 1.0})
    now = 15.0
    assert means.read(40, 2, 5) == EpochSummary(2, 5, 40, 2.0, {"loss": 1.0})


def test_log_observer__writes_messages_and_passes_all_on(tmp_path: Path) -> None:
    seen: list[object] = []

    class Inner:
        def message(self, text: str) -> None:
            seen.append(text)

        def progress(self, progress: Progress) -> None:
            seen.append(progress)

        def epoch(self, summary: EpochSummary) -> None:
            seen.append(summary)

    observer = LogObserver(tmp_path, Inner())
    told = ["one line", Progress(1, 2, 1, 1, {}), EpochSummary(1, 1, 2, 3.0, {})]
    observer.message("one line")
    observer.progress(Progress(1, 2, 1, 1, {}))
    observer.epoch(EpochSummary(1, 1, 2, 3.0, {}))
    assert seen == told
    assert (tmp_path / "train.log").read_text().endswith("  one line\n")
