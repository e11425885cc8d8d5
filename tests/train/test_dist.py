"""What ranks say to each other."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from dinowds.config import PatchConfig
from dinowds.errors import ConfigError, TrainingError
from dinowds.train.dist import all_gather_tensors, check_own_gpu, on_rank_0, process_group
from dinowds.train.loop import train
from dinowds.world import World
from tests.train.ranks import start_ranks

Ends = dict[str, list[tuple[int, str]]]
"""Scenario of `failing.py` → exit code and output of rank 0 and rank 1."""

SCRIPT = textwrap.dedent("""
    import os
    import torch
    from dinowds.errors import OutputError
    from dinowds.train import dist
    from dinowds.world import World

    def fail():
        raise OutputError("the disk is full")

    with dist.process_group(World.from_environment(), torch.device("cpu")):
        print("value of rank", dist.on_rank_0(lambda: os.environ["RANK"]))
        try:
            dist.on_rank_0(fail)
        except OutputError as error:
            print(error)
        print("sum", int(dist.all_reduce_sum(torch.tensor(int(os.environ["RANK"]) + 1))))
""")


def test_on_rank_0__every_rank_gets_its_value_and_its_error() -> None:
    ranks = start_ranks([sys.executable, "-c", SCRIPT])
    for process in ranks:
        assert process.communicate(timeout=120)[0].splitlines() == ["value of rank 0", "the disk is full", "sum 3"]
        assert process.returncode == 0


def test_on_rank_0__of_one_process_is_a_call() -> None:
    assert on_rank_0(lambda: 5) == 5


def test_all_gather_tensors__of_one_process_is_its_own() -> None:
    tensor = torch.arange(3)
    (gathered,) = all_gather_tensors(tensor)
    assert torch.equal(gathered, tensor)


@pytest.fixture(scope="module")
def ends() -> Ends:
    """Each within a minute: the script kills what takes longer."""
    result = subprocess.run([sys.executable, "-m", "tests.train.failing"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return {name: [(code, output) for code, output in ranks] for name, ranks in json.loads(result.stdout).items()}


def test_all_gather_tensors__of_other_lengths_and_none(ends: Ends) -> None:
    assert ends["gathers"] == [(0, "[[], [[1, 1], [1, 1]]]\n")] * 2


def test_process_group__error_of_one_rank_is_told_by_all(ends: Ends) -> None:
    (code, other), (own_code, own) = ends["raises"]
    assert (code, own_code) == (1, 1)
    assert own == "OutputError: the disk of this host is full\n"
    assert other == "LostRank: rank 1 failed: the disk of this host is full\n"


def test_process_group__killed_rank_ends_the_other_with_a_line(ends: Ends) -> None:
    (code, output), (killed, _) = ends["killed"]
    assert (code, killed) == (1, -9)
    assert output.startswith("LostRank: rank 0: the connection to another rank was lost (Connection ")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("scenario", "rank", "codes", "line"),
    [
        ("raises beside one that hangs", 0, [1, 1], "dinowds: error: rank 1 failed: the disk of this host is full"),
        ("killed beside one that hangs", 0, [1, -9], "dinowds: error: rank 1 is gone"),
        ("rank 0 killed beside one that hangs", 1, [-9, 1], "dinowds: error: rank 0, or the launcher on its host, is"),
    ],
)
def test_process_group__rank_that_nothing_wakes_is_ended(
    ends: Ends, scenario: str, rank: int, codes: list[int], line: str
) -> None:
    """As the main thread hangs in a call of NCCL whose other side is gone."""
    assert [code for code, _ in ends[scenario]] == codes
    assert line in ends[scenario][rank][1]


@pytest.mark.parametrize("scenario", ["slow", "leaves late"])
def test_process_group__slow_rank_is_waited_for(ends: Ends, scenario: str) -> None:
    """Longer than it takes to find that one is gone: its signs of life go on."""
    assert ends[scenario] == [(0, ""), (0, "")]


def test_process_group__stop_by_a_signal_is_no_failure(ends: Ends) -> None:
    assert ends["stopped"] == [(75, "StoppedBySignal: stopped by SIGUSR1\n")] * 2


def test_process_group__ranks_on_other_devices(ends: Ends) -> None:
    assert [code for code, _ in ends["other device"]] == [1, 1]
    assert all("rank 1 computes on meta, rank 0 on cpu" in output for _, output in ends["other device"])


def test_process_group__rank_without_a_device_ends_all(ends: Ends) -> None:
    assert [code for code, _ in ends["no device"]] == [1, 1]
    assert ends["no device"][1][1] == "ConfigError: local rank 1 has no GPU of its own\n"
    assert ends["no device"][0][1] == "dinowds: error: rank 1 failed: local rank 1 has no GPU of its own\n"


def test_check_own_gpu__two_ranks_on_one_are_told() -> None:
    store = HashStore()
    check_own_gpu(World(0, 3), "a", store)
    check_own_gpu(World(1, 3), "b", store)
    with pytest.raises(ConfigError, match="rank 2 has no GPU of its own"):
        check_own_gpu(World(2, 3), "a", store)


def test_process_group__port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with (
            pytest.raises(TrainingError, match=rf"rank 0: the 2 ranks did not meet at 127.0.0.1:{port} .*EADDRINUSE"),
            process_group(World(0, 2), torch.device("cpu")),
        ):
            pass


def test_train__ranks_meet_before_any_of_them_opens_what_evaluates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the others would wait for one that fails there."""
    with socket.create_server(("", 0)) as taken:
        for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_PORT", taken.getsockname()[1])):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(TrainingError, match="did not meet"):
            train(tmp_path / "data", tmp_path / "run", PatchConfig(), evaluation=lambda: pytest.fail("too early"))
