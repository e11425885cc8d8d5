"""A run read from its folder while it grows."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from dinowds.config import load_config, to_yaml
from dinowds.errors import ConfigError
from dinowds.files import lock_file
from dinowds.train.folder import is_at_work, own_folder
from dinowds.train.history import History, Series
from dinowds.train.monitor import keep_steps_until

STEPS_PER_EPOCH = 100
LN_K = math.log(128)


def write_run(folder: Path, *overrides: str) -> Path:
    """A run that has begun: 128 prototypes, 3 epochs of 100 steps."""
    folder.mkdir()
    values = [
        "student.out_dim=128",
        "train.batch_size=256",
        "optim.epochs=3",
        "optim.warmup_epochs=0",
        "optim.lr=1e-3",
        *overrides,
    ]
    (folder / "config.yaml").write_text(to_yaml(load_config(None, values)))
    return folder


def line(step: int, **figures: float | None) -> dict[str, Any]:
    """A line of metrics.jsonl of a run that is stuck at ln K."""
    flat = {"loss": LN_K, "loss_share": 1.0, "teacher_entropy": LN_K - 1e-3, "kl": 1e-3, "lr": 1e-3, "momentum": 0.99}
    pace = {"epoch": (step - 1) / STEPS_PER_EPOCH, "images_per_second": 128.0}
    return {"step": step, **flat, **pace, **figures}


def append(folder: Path, *entries: dict[str, Any]) -> None:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1000])
def test_series__keeps_the_mean_in_little_memory(count: int) -> None:
    series = Series(capacity=8)
    for value in range(count):
        series.add(float(value))
    values = series.values()
    assert len(values) <= 8
    assert len(values) >= min(count, 4)
    assert values == sorted(values)
    if count in (8, 1000):  # each value is the mean of as many
        assert sum(values[:-1]) / len(values[:-1]) < (count - 1) / 2 < values[-1] + 1
    assert series.values() == values


def test_history__before_the_first_figures(run: Path) -> None:
    history = History(run, ["kl"])
    history.advance()
    snapshot = history.snapshot()
    assert (snapshot.step, snapshot.num_steps, snapshot.epoch, snapshot.num_epochs) == (0, None, 1, 3)
    assert (snapshot.seconds_left, snapshot.written_at, snapshot.checkpoint) == (None, None, None)
    assert snapshot.status == "not running"
    assert snapshot.series == {"kl": []}
    assert not snapshot.log


def test_history__where_a_run_stands(run: Path) -> None:
    append(run, line(1, kl=0.5), line(50, kl=None), line(120, kl=0.25), {"step": 120, "knn/teacher/accuracy": 0.4})
    (run / "checkpoints").mkdir()
    for name in ("step-00000100.pt", "step-00000050.pt", "best.pt", ".step-00000120.pt.x.tmp"):
        (run / "checkpoints" / name).touch()
    (run / "train.log").write_text("a\nb\nc\nd\n")
    history = History(run, ["kl", "knn/teacher/accuracy"])
    history.advance()
    snapshot = history.snapshot()
    assert (snapshot.step, snapshot.num_steps, snapshot.epoch) == (120, 300, 2)
    assert snapshot.seconds_left == pytest.approx(180 * 256 / 128)
    assert snapshot.series == {"kl": [0.5, 0.25], "knn/teacher/accuracy": [0.4]}
    assert snapshot.figures["kl"] == 0.25
    assert snapshot.checkpoint == run / "checkpoints" / "step-00000100.pt"
    assert snapshot.log == ["b", "c", "d"]


def test_history__steps_that_are_fewer_than_the_epochs_have(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "optim.max_steps=120")
    append(run, line(2), line(120))
    history = History(run, [])
    history.advance()
    snapshot = history.snapshot()
    assert (snapshot.num_steps, snapshot.seconds_left, snapshot.status) == (120, None, "finished")


def test_history__follows_a_growing_file(run: Path) -> None:
    """Only what is new is taken, and a line that is cut short when it is whole."""
    history = History(run, ["kl"])
    append(run, line(1))
    history.advance()
    whole = json.dumps(line(2, kl=0.7)) + "\n"
    with open(run / "metrics.jsonl", "a") as file:
        file.write(whole[:20])
        file.flush()
        history.advance()
        assert history.snapshot().step == 1
        file.write(whole[20:])
    for _ in range(2):
        history.advance()
        assert history.snapshot().series["kl"] == [1e-3, 0.7]


def test_history__a_file_that_a_resume_wrote_anew_is_read_anew(run: Path) -> None:
    history = History(run, ["kl"])
    append(run, *(line(step, kl=step / 100) for step in range(1, 11)))
    history.advance()
    keep_steps_until(run / "metrics.jsonl", 4)
    append(run, *(line(step, kl=0.5) for step in range(5, 30)))  # longer than before
    history.advance()
    snapshot = history.snapshot()
    assert snapshot.step == 29
    assert snapshot.series["kl"] == [0.01, 0.02, 0.03, 0.04, *[0.5] * 25]


def test_history__a_file_that_was_cut_is_read_anew(run: Path) -> None:
    history = History(run, ["kl"])
    append(run, line(1), line(2), line(3))
    history.advance()
    (run / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n")
    history.advance()
    assert history.snapshot().step == 1


@pytest.mark.parametrize("text", ["nonsense", "[1]", '{"kl": 1}', '{"step": "1"}', "\\xff"])
def test_history__lines_that_are_none_are_passed_over(run: Path, text: str) -> None:
    append(run, line(1))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(text.encode().replace(b"\\xff", b"\xff") + b"\n")
    append(run, line(2))
    history = History(run, ["kl"])
    history.advance()
    assert history.snapshot().series["kl"] == [1e-3, 1e-3]


def test_history__finds_what_the_monitor_finds(run: Path) -> None:
    append(run, *(line(step) for step in range(10, 301, 10)))
    history = History(run, [])
    history.advance()
    (told,) = history.snapshot().findings
    assert told.finding.name == "stuck_at_ln_k"
    assert 200 <= told.step <= 250
    history.advance()
    assert len(history.snapshot().findings) == 1


def test_history__a_run_at_work_has_the_lock(run: Path) -> None:
    append(run, line(2), line(300))
    history = History(run, [])
    history.advance()
    with lock_file(run / ".lock"):
        assert history.snapshot().status == "running"
        assert history.snapshot().status == "running"
    assert history.snapshot().status == "finished"


def test_own_folder__waits_for_somebody_who_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_at_work` holds the lock for an instant, in which a run may begin."""
    config = load_config(None, [])
    (tmp_path / ".lock").touch()
    looking = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: os.close(looking))
    with own_folder(tmp_path, config):
        assert is_at_work(tmp_path)


def test_history__of_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml, so it is no run's folder; give the --out of"):
        History(tmp_path, [])
    (tmp_path / "config.yaml").write_text("nonsense: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        History(tmp_path, [])


def test_history__a_loss_that_is_not_finite_is_told_and_shown_as_none(run: Path) -> None:
    append(run, *(line(step, loss=5.0, bad_steps=0.0) for step in range(1, 201)))
    append(run, *(line(step, loss=None, bad_steps=float(step - 200)) for step in range(201, 212)))
    history = History(run, ("loss",))
    history.advance()
    snapshot = history.snapshot()
    assert "non_finite_steps" in [told.finding.name for told in snapshot.findings]
    assert "loss" not in snapshot.figures
