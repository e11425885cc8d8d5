"""Checkpoints are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dinowds.errors import CheckpointError, OutputError
from dinowds.train import checkpoint
from dinowds.train.checkpoint import (
    Writer,
    checkpoint_path,
    find_latest,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def state(step: int, size: int = 10) -> dict[str, Any]:
    """Nested as that of a run; every value says which step it is of."""
    optimizer = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"betas": (0.9, step)}]}
    return {
        "format_version": 1,
        "step": step,
        "student": {"w": torch.full((size,), float(step))},
        "optimizer": optimizer,
        "none": None,
    }


def ignore(_: str) -> None: ...


def step_of(path: Path) -> int:
    """Of a checkpoint whose values are all of one step."""
    loaded = load_checkpoint(path)
    step = int(loaded["step"])
    assert (loaded["student"]["w"] == step).all()
    assert loaded["optimizer"] == {
        "state": {0: {"step": torch.tensor(float(step))}},
        "param_groups": [{"betas": (0.9, step)}],
    }
    assert path.name in (checkpoint.BEST_NAME, checkpoint_path(path.parent, step).name)
    return step


class HeldSave:
    """In the place of `torch.save`: waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self._save = torch.save
        monkeypatch.setattr(torch, "save", self)

    def __call__(self, content: object, file: Any) -> None:
        self.begun.set()
        assert self.let_go.wait(60)
        self._save(content, file)


def test_save__returns_while_the_file_is_written_and_keeps_the_values_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, writer, live = HeldSave(monkeypatch), Writer(tmp_path, keep=3), state(1)
    writer.save(live)
    assert held.begun.wait(60)
    live["student"]["w"] += 1  # the next step
    live["optimizer"]["state"][0]["step"] += 1
    live["optimizer"]["param_groups"][0]["betas"] = (0.0, 0)
    assert not list_checkpoints(tmp_path)
    held.let_go.set()
    writer.wait()
    assert step_of(checkpoint_path(tmp_path, 1)) == 1


def test_save__waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, writer = HeldSave(monkeypatch), Writer(tmp_path, keep=3)
    writer.save(state(1))
    second = threading.Thread(target=writer.save, args=(state(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    held.let_go.set()
    second.join(60)
    assert checkpoint_path(tmp_path, 1).exists()
    writer.wait()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 1]


def test_save__keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "new", keep=2)
    for step in range(1, 7):
        writer.save(state(step), best=step in (1, 3))
    writer.wait()
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["best.pt", "step-00000005.pt", "step-00000006.pt"]
    assert step_of(tmp_path / "new" / "best.pt") == 3


def test_save__best_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    writer = Writer(tmp_path, keep=1)
    for step in (1, 2):
        writer.save(state(step), best=step == 1)
    writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-00000002.pt"]
    assert step_of(tmp_path / "best.pt") == 1


def test_save__killed_between_its_two_names_leaves_no_step_that_is_better_than_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise SystemExit

    save_checkpoint(tmp_path, state(3), keep=2)
    monkeypatch.setattr(os, "link", kill)
    with pytest.raises(SystemExit):
        save_checkpoint(tmp_path, state(4), keep=2, best=True)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3]
    assert step_of(tmp_path / "best.pt") == 4


@pytest.mark.parametrize("damage", ["one bit", "a hole", "cut short", "empty", "no zip", "other pickle"])
def test_find_latest__passes_over_a_damaged_one(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step, 1 << 16), keep=3)
    newest = checkpoint_path(tmp_path, 2)
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    if damage == "one bit":
        content[middle] ^= 1
    elif damage == "a hole":
        content[middle : middle + 4096] = bytes(4096)
    elif damage == "other pickle":
        torch.save({"model": torch.zeros(3)}, newest)
        content = bytearray(newest.read_bytes())
    else:
        content = {"cut short": content[:middle], "empty": bytearray(), "no zip": bytearray(b"none" * 99)}[damage]
    newest.write_bytes(content)
    warnings: list[str] = []
    found = find_latest(tmp_path, warnings.append)
    assert found is not None
    assert step_of(found) == 1
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert newest.with_name(newest.name + ".damaged").exists()


def test_find_latest__names_the_best_where_all_steps_are_damaged(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=1)
    writer.save(state(3), best=True)
    writer.save(state(4))
    writer.wait()
    for path in list_checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best\.pt is kept"):
        find_latest(tmp_path, ignore)


def test_find_latest__is_never_the_best(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=2)
    writer.save(state(3), best=True)
    writer.save(state(4))
    writer.wait()
    found = find_latest(tmp_path, ignore)
    assert found is not None
    assert step_of(found) == 4


@pytest.mark.parametrize("how", ["wait", "save"])
def test_writer__error_comes_with_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def fail(_content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        writer = Writer(tmp_path, keep=3)
        writer.save(state(7))
        message = r"checkpoint of step 7 cannot be written \(.*No space left on device\); free space there and run"
        with pytest.raises(OutputError, match=message):
            writer.wait() if how == "wait" else writer.save(state(8))
    assert not list(tmp_path.iterdir())
    writer.save(state(9))  # said once
    writer.wait()
    assert step_of(checkpoint_path(tmp_path, 9)) == 9


SCRIPT = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import torch
    from dinowds.train.checkpoint import Writer
    from tests.train.test_checkpoint import state

    folder, die_inside = Path(sys.argv[1]), int(sys.argv[2])
    save = torch.save
    def die(content, file):
        save(content, file)
        if content["step"] == die_inside:
            file.truncate(file.tell() // 2)
            file.flush()
            os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save = die
    writer = Writer(folder, keep=2)
    for step in range(1, 100_000):
        writer.save(state(step, 1 << 20), best=step % 3 == 0)
        print(step, flush=True)
""")


def run_until(folder: Path, die_inside: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(die_inside)], stdout=subprocess.PIPE, text=True
    )


def assert_resumable(folder: Path, at_least: int) -> None:
    """The newest is whole, nothing was damaged, the best is whole, and what was half-written is gone."""
    warnings: list[str] = []
    found = find_latest(folder, warnings.append)
    assert found is not None
    assert step_of(found) >= at_least
    assert not warnings
    if (folder / "best.pt").exists():
        assert step_of(folder / "best.pt") % 3 == 0
    names = {path.name for path in folder.iterdir()} - {"best.pt"}
    assert names <= {checkpoint_path(folder, step_of(found) - back).name for back in range(3)}


def test_killed_in_the_middle_of_a_write__leaves_the_one_before(tmp_path: Path) -> None:
    with run_until(tmp_path, die_inside=5) as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert_resumable(tmp_path, at_least=4)


def test_killed_at_any_time__leaves_a_resumable_folder(tmp_path: Path) -> None:
    """Three kills at random moments; the writer is at work all the time."""
    moments = random.Random(0)
    for number in range(3):
        folder = tmp_path / str(number)
        with run_until(folder, die_inside=-1) as process:
            assert process.stdout
            for _ in range(4):
                process.stdout.readline()
            threading.Event().wait(moments.uniform(0, 0.05))
            process.kill()
        assert_resumable(folder, at_least=3)
