"""Ranks of one run: the same samples, crops and losses as a single process, and errors in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinowds.errors import ConfigError
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint
from dinowds.train.devices import micro_batch_size
from dinowds.world import World, available_cores, first_host, rendezvous
from tests.support import TINY_RUN, dinowds_command, free_port, run_dinowds, started, wait_until_gone

ARGUMENTS = [*TINY_RUN, "student.drop_path_rate=0"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "single"
    result = run_dinowds("train", "patch", "--data", dataset_path, "--out", run, *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    return run


def test_train__two_processes_agree_with_one(single: Path, dataset_path: Path, tmp_path: Path) -> None:
    """Each accumulates its share in three parts: gradients are averaged once, over the whole batch."""
    arguments = ["train", "patch", "--data", dataset_path, "--out", tmp_path / "run", "--nproc", 2, *ARGUMENTS]
    result = run_dinowds(*arguments, "train.max_batch_per_device=2")
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stderr
    assert len(losses(single)) == 20
    assert losses(tmp_path / "run") == pytest.approx(losses(single), abs=1e-4)
    assert len(set(losses(single))) == 20


def test_train__one_process_goes_on_where_two_stopped(single: Path, dataset_path: Path, tmp_path: Path) -> None:
    arguments = ["train", "patch", "--data", dataset_path, "--out", tmp_path / "run", *ARGUMENTS]
    assert run_dinowds(*arguments, "--nproc", 2, "optim.max_steps=9").returncode == 0
    assert run_dinowds(*arguments).returncode == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(single), abs=1e-4)


def test_train__torchrun_s_own_variables_make_ranks(single: Path, dataset_path: Path, tmp_path: Path) -> None:
    command = dinowds_command("train", "patch", "--data", dataset_path, "--out", tmp_path / "run", *ARGUMENTS)
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert losses(tmp_path / "run") == pytest.approx(losses(single), abs=1e-4)
    assert b"training" in outputs[0]
    assert b"training" not in outputs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--nproc", 2, "train.batch_size=9", "data.partitions=3"],
            "batch_size is 9, expected a multiple of the 2 proc",
        ),
        (["--nproc", 2, "student.use_bn_in_head=true"], "student.use_bn_in_head needs one process on the CPU"),
        (["--nproc", 0], "--nproc is 0, expected at least 1"),
    ],
)
def test_train__failing_rank_ends_all_with_one_line(
    dataset_path: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    result = run_dinowds("train", "patch", "--data", dataset_path, "--out", tmp_path / "run", *ARGUMENTS, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("number", "extra"),
    [
        (signal.SIGINT, ["--nproc", 2, "speed.num_workers=1"]),
        (signal.SIGTERM, ["speed.num_workers=1"]),
        (signal.SIGUSR1, ["--nproc", 2, "speed.num_workers=1"]),
    ],
)
def test_train__signal_to_all_processes_saves_and_exits_75(
    dataset_path: Path, tmp_path: Path, number: signal.Signals, extra: list[object]
) -> None:
    """As a terminal's Ctrl-C and a batch system's time limit reach every process: launcher, ranks, loaders."""
    run = tmp_path / "run"
    arguments = ["train", "patch", "--data", dataset_path, "--out", run, *ARGUMENTS, "train.save_every_steps=0"]
    command = dinowds_command(*arguments, *extra, "optim.epochs=2000", "optim.max_steps=null")
    with started(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr
        assert "training vit_tiny" in process.stderr.readline()
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
            assert process.poll() is None
        os.killpg(process.pid, number)
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert f"stopped by {number.name}" in rest
    assert "run the same command again to go on" in rest
    assert "Traceback" not in rest
    (checkpoint,) = (run / "checkpoints").iterdir()  # the one of the signal, and nothing half-written
    assert load_checkpoint(checkpoint)["step"] > 0
    wait_until_gone(str(tmp_path))


def test_train__signal_to_one_rank_stops_all_of_them(dataset_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "patch", "--data", dataset_path, "--out", run, *ARGUMENTS, "train.save_every_steps=0"]
    command = dinowds_command(*arguments, "--nproc", 2, "optim.epochs=2000", "optim.max_steps=null")
    with started(command, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert "training vit_tiny" in process.stderr.readline()
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(ranks) == 2
        os.kill(int(ranks[1]), signal.SIGUSR1)
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "run the same command again to go on" in rest
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert load_checkpoint(checkpoint)["step"] > 0


def test_launch__error_of_the_rank_that_fails_is_told_not_of_those_that_lose_it() -> None:
    script = """if True:
        from dinowds.errors import TrainingError
        from dinowds.train.launch import launch
        from tests.train.failing import fail_on_rank_1
        if __name__ == "__main__":
            try:
                launch(fail_on_rank_1, (), 2)
            except TrainingError as error:
                print(error)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout == "the disk of this host is full\n", result.stderr


def start_long_run(command: list[str], run: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A run without end, of which a checkpoint and more has been written."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    while not (list_checkpoints(run / "checkpoints") and (run / "metrics.jsonl").exists() and len(losses(run)) > 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def assert_goes_on(data: Path, run: Path, *arguments: object) -> None:
    """With a checkpoint of the killed run, for one step more."""
    step = load_checkpoint(list_checkpoints(run / "checkpoints")[0])["step"]
    again = run_dinowds("train", "patch", "--data", data, "--out", run, *arguments, f"optim.max_steps={step + 1}")
    assert again.returncode == 0, again.stderr
    assert f"going on after step {step} " in again.stderr
    assert len(losses(run)) == step + 1


LONG = [*ARGUMENTS, "optim.epochs=2000"]


def test_train__killed_rank_of_nproc_ends_all_within_a_minute(dataset_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "patch", "--data", dataset_path, "--out", run, *LONG, "optim.max_steps=null", "--nproc", 2]
    process = start_long_run(dinowds_command(*arguments), run, {})
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1, output
    last = output.splitlines()[-1]
    assert last.startswith("dinowds: error: rank 1 ended with signal 9"), output
    assert "Traceback" not in output
    wait_until_gone(str(run))
    assert_goes_on(dataset_path, run, *LONG, "--nproc", 2)


def test_train__killed_rank_of_srun_ends_the_other_within_a_minute(dataset_path: Path, tmp_path: Path) -> None:
    """No launcher is above them: rank 0 sees to it itself."""
    run = tmp_path / "run"
    command = dinowds_command("train", "patch", "--data", dataset_path, "--out", run, *LONG, "optim.max_steps=null")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    other = subprocess.Popen(command, env={**os.environ, **common, "RANK": "1", "LOCAL_RANK": "1"})
    process = start_long_run(command, run, {**common, "RANK": "0", "LOCAL_RANK": "0"})
    other.kill()
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert other.wait() == -signal.SIGKILL
    last = output.splitlines()[-1]
    assert last.startswith("dinowds: error: rank 0: the connection to another rank was lost (Connection "), output
    assert last.endswith("the same command goes on from the last checkpoint")
    assert "Traceback" not in output
    assert_goes_on(dataset_path, run, *LONG)


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, World(3, 8, 1, 2, 4)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, World(5, 8, 1, 1)),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
            World(5, 8, num_hosts=2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, World()),  # a batch script, not a step
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, World()),
        # The shell of `salloc --ntasks 8`
        ({"SLURM_STEP_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, World()),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
            World(0, 2, num_hosts=2),
        ),
    ],
)
def test_world__from_environment(environment: dict[str, str], world: World) -> None:
    assert World.from_environment(environment) == world


def test_available_cores__the_tightest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32), raising=False)
    monkeypatch.setattr("dinowds.world._cgroup_cores", lambda: 12)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert available_cores() == 12
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert available_cores() == 5


@pytest.mark.parametrize(("name", "text"), [("RANK", ""), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "0.5")])
def test_world__no_number(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"the environment says {name}={text}, expected a whole number"):
        World.from_environment({"RANK": "0", "WORLD_SIZE": "2", name: text})


def test_world__rank_outside() -> None:
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        World.from_environment({"RANK": "2", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-09,12],x1", "gpu07"),
        ("a,gpu[1-2]", "a"),
        ("r[1,3]n", "r1n"),
        ("c[5]", "c5"),
    ],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_rendezvous__master_variables_then_slurm() -> None:
    slurm = {"SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_JOB_ID": "1020007"}
    assert rendezvous(slurm) == ("gpu3", 20007)
    ports = [rendezvous({**slurm, "SLURM_JOB_ID": str(job)})[1] for job in range(11_990, 40_000, 7)]
    assert min(ports) >= 20_000
    assert max(ports) < 32_768, "from there on the system gives ports to whoever asks for any"
    assert rendezvous({**slurm, "MASTER_ADDR": "h", "MASTER_PORT": "5"}) == ("h", 5)
    with pytest.raises(ConfigError, match="MASTER_PORT=http, expected a whole number"):
        rendezvous({"MASTER_ADDR": "h", "MASTER_PORT": "http"})
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set"):
        rendezvous({"MASTER_ADDR": "h"})


@pytest.mark.parametrize(
    ("share", "limit", "size"), [(256, 128, 128), (251, 128, 126), (96, 40, 32), (7, 5, 4), (12, 100, 12)]
)
def test_micro_batch_size__fewest_parts_nearly_equal(share: int, limit: int, size: int) -> None:
    assert micro_batch_size(share, limit) == size
    assert -(-share // size) == -(-share // limit)
