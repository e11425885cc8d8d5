"""Few open files, a small /dev/shm, little memory, a clock that goes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.verify import verify_dataset
from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import coded_image, png, write_tar, write_weights
from tests.faults.clocks import clock_that_goes_back
from tests.faults.commands import Commands
from tests.faults.form import IS_FULL, tally
from tests.faults.system.conftest import Inputs
from tests.faults.system.jobs import JOBS, RUN, trained
from tests.faults.system.test_outputs import LONG_STEPS, wait_until
from tests.support import dinowds_command, processes_of, write_cohort

FILES = 64


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 patches in 200 shards."""
    root = tmp_path_factory.mktemp("many")
    build_dataset([write_cohort(root / "a.tar", 400)], root / "dataset", ShardOptions(max_count=2))
    assert len(list((root / "dataset" / "shards").iterdir())) == 200
    return root / "dataset"


def one_image(path: Path, number: int) -> Path:
    return write_tar(path, {f"s{number}/{number}_0.png": png(coded_image(number, number))})


def test_open_files__shard_of_many_sources_says_what_to_raise(tmp_path: Path) -> None:
    """Sources are opened together; with more of them than files it ends, and goes on with a higher limit."""
    sources = [one_image(tmp_path / f"{number}.tar", number) for number in range(100)]
    given = dinowds_command("shard", *sources, "--out", tmp_path / "out", "--name", "x")
    few = subprocess.run(
        ["prlimit", f"--nofile={FILES}:{FILES}", *given], capture_output=True, text=True, timeout=240, check=False
    )
    assert few.returncode == 1, few
    assert "(Too many open files); raise the limit of open files ('ulimit -n')" in few.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    subprocess.run(given, capture_output=True, timeout=240, check=True)
    assert verify_dataset(tmp_path / "out") == []
    tally("commands with 64 open files")


@pytest.mark.parametrize("workers", [0, 2] if IS_FULL else [2])
def test_open_files__train_over_many_shards(command: Commands, many_shards: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    steps = ("train.batch_size=20", "optim.max_steps=18")  # 360 of the samples: each process reads more than 64 shards
    arguments = ["train", "patch", "--data", many_shards, "--out", out, *RUN, f"speed.num_workers={workers}", *steps]
    ended = command.run(*arguments, harms=[("open_files", FILES)])
    assert ended.status == 0, ended
    trained(out, 18)
    tally("commands with 64 open files")


def test_open_files__embed_over_many_shards(command: Commands, many_shards: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.pt")
    arguments = ["embed", "patch", many_shards, "--checkpoint", weights, "--out", tmp_path / "out", "--workers", 0]
    ended = command.run(*arguments, "--image-size", 32, harms=[("open_files", FILES)])
    assert ended.status == 0, ended
    tally("commands with 64 open files")


@pytest.mark.usefixtures("root_only")
def test_small_shm__training_with_loader_processes_does_without_it(
    command: Commands, inputs: Inputs, tmp_path: Path
) -> None:
    """Batches of loader processes go through memory of their own (memfd): 64 kB of /dev/shm, less than one, do."""
    out = tmp_path / "out"
    arguments = ["train", "patch", "--data", inputs.data, "--out", out, *RUN, "speed.num_workers=2"]
    ended = command.run(*arguments, "train.batch_size=48", "optim.epochs=9", harms=[("small_shm", 1 << 16)])
    assert ended.status == 0, ended
    trained(out)
    tally("runs with a small /dev/shm")


def loaders_of(pid: int) -> list[int]:
    """Loader processes that have begun to work, of a run."""
    found = []
    for one in processes_of(pid) - {pid}:
        command = Path(f"/proc/{one}/cmdline").read_bytes() if Path(f"/proc/{one}").exists() else b""
        try:
            parent = int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"forkserver" in command and parent != pid:
            found.append(one)
    return found


def with_large_images(folder: Path) -> Path:
    """A dataset of 40 patches, of which 4 take 48 MB: more than a process keeps for later."""
    small = {f"s/{number}_0.png": png(coded_image(number, number)) for number in range(36)}
    large = {f"s/{number}_1.png": png(np.full((4000, 4000, 3), number, np.uint8)) for number in range(4)}
    build_dataset([write_tar(folder / "large.tar", small | large)], folder / "large", ShardOptions())
    return folder / "large"


@pytest.mark.parametrize("how", ["killed", "memory"] if IS_FULL else ["killed"])
def test_loader_process_without_memory__ends_the_run_in_one_line(
    command: Commands, inputs: Inputs, tmp_path: Path, how: str
) -> None:
    """SIGKILL, as the system sends where memory runs out; or an allocation that fails, which no image is blamed for."""
    out, data = tmp_path / "out", inputs.data if how == "killed" else with_large_images(tmp_path)
    arguments = [
        "train",
        "patch",
        "--data",
        data,
        "--out",
        out,
        *RUN,
        "optim.epochs=20",
        f"optim.max_steps={LONG_STEPS}",
        "speed.num_workers=2",
    ]
    running = command.start(*arguments)
    wait_until(lambda: (out / "checkpoints" / "step-00000002.pt").exists())
    victim = max(loaders_of(running.pid))
    if how == "killed":
        os.kill(victim, signal.SIGKILL)
    else:
        import resource

        resource.prlimit(victim, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    error = running.wait(120).error
    assert "memory" in error
    assert "speed.num_workers" in error
    assert not (out / "bad_samples.jsonl").exists()
    again = command.run(*arguments)
    assert again.status == 0, again
    assert "going on after step" in (out / "train.log").read_text()
    trained(out, LONG_STEPS)
    tally("loader processes without memory")


@pytest.mark.parametrize("name", ["train patch", "embed patch", "inspect --html"] if IS_FULL else ["embed patch"])
def test_clock_that_goes_back__changes_nothing(command: Commands, inputs: Inputs, tmp_path: Path, name: str) -> None:
    """In all its processes, and in what libraries see of it."""
    job, whole, back = JOBS[name], tmp_path / "whole", tmp_path / "back"
    whole.mkdir()
    back.mkdir()
    environment = clock_that_goes_back(tmp_path, 7200)

    def under_it(*arguments: object) -> str:
        given = dinowds_command(*arguments)
        ended = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert ended.returncode == 0, ended
        return ended.stdout + ended.stderr

    assert command.run(*job.arguments(inputs, whole / "out")).status == 0
    assert "-0:" not in under_it(*job.arguments(inputs, back / "out"))
    assert job.whole(back / "out") == job.whole(whole / "out")
    if name == "train patch":
        for line in (back / "out" / "metrics.jsonl").read_text().splitlines():
            content = json.loads(line)
            assert 0 < content["images_per_second"] < 1e6
            assert 0 <= content["waiting_share"] <= 1
        if IS_FULL:
            assert "-1 " not in under_it("watch", back / "out", "--once") + under_it("report", back / "out")
    tally("commands under a clock that goes back")
