"""A run that is killed and given again ends with the bytes of an undisturbed run, whenever it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

COMMAND = [str(Path(sys.executable).with_name("dinowds")), "shard"]
NUM_KILLS = 10

KILL_AT_EVERY_OPERATION = """
import os, signal, shutil, sys
from pathlib import Path
from dinowds.shard.build import ShardOptions, build_dataset

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
sources, out = [Path(path) for path in sys.argv[2:]], Path(sys.argv[1])
reference = Path(str(out) + "-reference")

def run(out, kill_at=0):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event in OPERATIONS:
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        build_dataset(sources, out, ShardOptions(name="same", max_count=4))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

assert run(reference) == 0
expected = tree(reference)
kill_at = 0
while True:
    kill_at += 1
    if run(out, kill_at) == 0:
        break
    looks_finished = (out / "manifest.json").exists()
    assert not looks_finished or tree(out).items() >= expected.items(), kill_at
    status = run(out)
    if status and looks_finished:  # killed in the very last steps: complete, and so refused
        assert not (out / ".unfinished" / "state.json").exists(), kill_at
        (out / ".unfinished").exists() and (out / ".unfinished").rmdir()
    else:
        assert status == 0, kill_at
    assert tree(out) == expected, (kill_at, sorted(tree(out)), sorted(expected))
    shutil.rmtree(out)
print(kill_at)
"""


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_build__killed_at_each_file_operation_ends_with_the_same_bytes(
    tmp_path: Path, make_tar: Callable[..., Path]
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 9), make_tar(tmp_path / "b.tar", 4, 50)]
    arguments = [sys.executable, "-c", KILL_AT_EVERY_OPERATION, str(tmp_path / "out"), *map(str, sources)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    # Not one of these operations may have been left out: 4 shards with their rows, notes, index, names, removals.
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30


def test_shard__killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, make_tar: Callable[..., Path], make_image: Callable[..., bytes]
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 400), tmp_path / "folder"]
    (tmp_path / "folder" / "slide").mkdir(parents=True)
    for index in range(100):
        (tmp_path / "folder" / "slide" / f"{index}_0.png").write_bytes(make_image(1000 + index, kind="PNG"))
    options = ["--name", "same", "--max-count", "10", "--workers", "2"]
    arguments = [*COMMAND, *map(str, sources), *options, "--out"]
    began = time.monotonic()
    subprocess.run([*arguments, str(tmp_path / "reference")], check=True, capture_output=True)
    duration = time.monotonic() - began
    expected = _tree(tmp_path / "reference")
    assert len(expected) == 3 + 1 + 50
    random = np.random.default_rng(0)
    killed = rounds = 0
    while killed < NUM_KILLS or rounds < 2:
        out = tmp_path / f"out-{rounds}"
        while not _run_or_kill([*arguments, str(out)], float(random.uniform(0.2, 1.1)) * duration):
            killed += 1
            assert not (out / "manifest.json").exists() or expected.items() <= _tree(out).items()
        assert _tree(out) == expected
        rounds += 1


def _run_or_kill(arguments: list[str], seconds: float) -> bool:
    """Whether the command finished before it was killed. Its group is not killed: workers must end by themselves."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()  # returns once no worker holds the pipe either
        return False
    assert process.returncode == 0 or b"already holds a dataset" in errors, errors
    return True


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_shard__interrupted_ends_its_workers_quietly(tmp_path: Path, make_tar: Callable[..., Path]) -> None:
    source = make_tar(tmp_path / "a.tar", 2000)
    arguments = [*COMMAND, str(source), "--max-count", "2", "--workers", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("write"):
            break
    while not any((tmp_path / "out" / ".unfinished").glob("shard-*.arrow")):
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children:
        os.kill(int(child), signal.SIGINT)
    done = len(list((tmp_path / "out" / ".unfinished").glob("shard-*.arrow")))
    while len(list((tmp_path / "out" / ".unfinished").glob("shard-*.arrow"))) < done + 10:
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.count("\n") == 1
    assert "interrupted; give the same command again to go on" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()
