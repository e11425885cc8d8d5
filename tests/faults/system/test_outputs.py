"""An output that cannot be written any more: one line that names it; once it can, the same command goes on."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import Commands
from tests.faults.disks import disk
from tests.faults.form import IS_FULL, amount, tally
from tests.faults.system.conftest import Inputs
from tests.faults.system.jobs import JOBS, RUN, trained

NAMES = list(JOBS) if IS_FULL else ["train patch", "embed region", "withdraw --rewrite"]
LONG_STEPS = amount(20, 60)
LONG_RUN = (*RUN, f"optim.max_steps={LONG_STEPS}")
"""So that it is still at work when its output is harmed, after its first checkpoint."""


@pytest.mark.parametrize("name", NAMES)
def test_read_only_disk__is_one_line(command: Commands, inputs: Inputs, tmp_path: Path, name: str) -> None:
    job = JOBS[name]
    with disk(tmp_path / "disk") as small:
        out = small.path / "out"
        job.prepare(inputs, out)
        small.read_only()
        error = command.run(*job.arguments(inputs, out)).error
        assert "Read-only file system" in error
        assert "let this user write there, or give another place" in error
        assert str(small.path) in error
        small.read_only(False)
        assert command.run(*job.arguments(inputs, out)).status == 0
        job.whole(out)
    tally("outputs on read-only disks refused")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("root_only")
def test_folder_without_permission__is_one_line(command: Commands, inputs: Inputs, tmp_path: Path, name: str) -> None:
    job, out = JOBS[name], tmp_path / "there" / "out"
    out.parent.mkdir()
    job.prepare(inputs, out)
    closed = [path for path in (out.parent, out, out / "shards") if path.is_dir()]
    for path in closed:
        path.chmod(0o555)
    error = command.run(*job.arguments(inputs, out), harms=[("no_override", None)]).error
    assert "Permission denied" in error
    assert "let this user write there, or give another place" in error
    assert str(out.parent) in error
    for path in closed:
        path.chmod(0o755)
    assert command.run(*job.arguments(inputs, out)).status == 0
    job.whole(out)
    tally("outputs without permission refused")


def lose_permission(out: Path) -> Callable[[], None]:
    folders = [out, out / "checkpoints"]
    files = list(out.glob("*.jsonl"))
    for path in (*folders, *files):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def mend() -> None:
        for path in (*folders, *files):
            path.chmod(0o755)

    return mend


def remove(out: Path) -> Callable[[], None]:
    shutil.rmtree(out, ignore_errors=True)  # the run writes meanwhile
    while out.exists():
        shutil.rmtree(out, ignore_errors=True)
    return lambda: None


@pytest.mark.parametrize("harm", [lose_permission, remove] if IS_FULL else [lose_permission])
@pytest.mark.usefixtures("root_only")
def test_train__output_is_lost_on_the_way(
    command: Commands, inputs: Inputs, tmp_path: Path, harm: Callable[[Path], Callable[[], None]]
) -> None:
    out = tmp_path / "out"
    arguments = ["train", "patch", "--data", inputs.data, "--out", out, *LONG_RUN]
    running = command.start(*arguments, harms=[("no_override", None)])
    wait_until(lambda: (out / "checkpoints" / "step-00000004.pt").exists())
    mend = harm(out)
    error = running.wait().error
    assert str(out) in error
    assert "cannot be written" in error
    mend()
    if harm is lose_permission:
        newest = max((out / "checkpoints").glob("step-*.pt"))
        assert f"the last checkpoint is {newest}" in error
        assert "let this user write there" in error
    else:
        assert "there is no checkpoint yet" in error
    again = command.run("train", "patch", "--data", inputs.data, "--out", out, *LONG_RUN)
    assert again.status == 0, again
    assert ("going on after step" in again.errors + (out / "train.log").read_text()) == (harm is lose_permission)
    trained(out, LONG_STEPS)
    tally("outputs lost on the way")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + 120, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)
