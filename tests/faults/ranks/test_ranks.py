"""Two ranks that train together while one of them is disturbed: all end in bounded time, with the cause, or start not.

That one which is killed ends those of a launcher, too, and those of `srun`, is in tests/train/test_launch.py; what the
ranks' own watch does, in tests/train/test_dist.py; a port that is taken, there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.form import tally
from tests.faults.ranks.provoked import BOUND, PLAYED
from tests.support import make_dataset

Ends = dict[str, list[tuple[int | None, str, float]]]
"""Scenario → exit code, output and seconds of rank 0 and rank 1."""

FULL = r"the memory of host \S+ is full, or this process may take no more; lower train.max_batch_per_device or"
ALIKE = "; start all ranks with the same installation and the same command"


def played(*cases: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Those of this form; a case begins with its scenario."""
    return [case for case in cases if case[0] in PLAYED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ends(folder: Path, dataset_path: Path) -> Ends:
    other = make_dataset(folder / "other", 60)
    command = [sys.executable, "-m", "tests.faults.ranks.provoked", dataset_path, other, folder, *PLAYED]
    limit = BOUND * len(PLAYED)
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # as the command has it
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=limit, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return {name: [tuple(rank) for rank in ranks] for name, ranks in json.loads(result.stdout).items()}


@pytest.mark.parametrize("name", [name for name in ("undisturbed", "slow", "late") if name in PLAYED])
def test_ranks__that_only_take_their_time_are_waited_for(ends: Ends, folder: Path, name: str) -> None:
    assert [code for code, *_ in ends[name]] == [0, 0], ends[name]
    run = folder / name / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    undisturbed = (folder / "undisturbed" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line["loss"] for line in lines] == [json.loads(line)["loss"] for line in undisturbed]
    tally("ranks disturbed, and all ended as they should")


@pytest.mark.parametrize(
    ("name", "codes", "told"),
    played(
        ("killed", [1, -9], "rank 0: the connection to another rank was lost"),
        ("stopped", [1, 1], "rank 1 is gone; its output, or its host's log, says why"),
        ("out of memory", [1, 1], rf"rank 1 failed: {FULL}"),
        ("under a limit", [1, 1], rf"rank 1 failed: {FULL}"),
        ("out of GPU memory", [1, 1], "rank 1 failed: the GPU's memory is full"),
        ("no dataset", [1, 1], r"rank 1 failed: \S+missing: no such dataset"),
    ),
)
def test_ranks__one_that_fails_ends_all_with_the_cause(ends: Ends, name: str, codes: list[int], told: str) -> None:
    assert [code for code, *_ in ends[name]] == codes, ends[name]
    assert re.search(told, ends[name][0][1]), ends[name]
    assert max(seconds for *_, seconds in ends[name]) < BOUND
    tally("ranks disturbed, and all ended as they should")


@pytest.mark.parametrize(
    ("name", "told"),
    played(
        ("another dataset", r"rank 1 on \S+ has another dataset at \S+ than rank 0 \(60 samples, there 90\)"),
        ("another configuration", rf"rank 1 on \S+ has optim.lr 0.003, rank 0 0.0005{ALIKE}"),
        ("another torch", rf"rank 1 on \S+ has torch 2.0.0, rank 0 \S+{ALIKE}"),
        ("another code", rf"rank 1 on \S+ has dinowds \S+ code 0123456789ab, rank 0 \S+ code [0-9a-f]{{12}}{ALIKE}"),
    ),
)
def test_ranks__that_are_not_alike_are_refused_at_the_start(ends: Ends, folder: Path, name: str, told: str) -> None:
    assert [code for code, *_ in ends[name]] == [1, 1], ends[name]
    assert re.search(told, ends[name][1][1]), ends[name]
    assert re.search(f"rank 1 failed: {told}", ends[name][0][1]), ends[name]
    assert not (folder / name.replace(" ", "-") / "run").exists(), "nothing was begun"
    tally("ranks disturbed, and all ended as they should")


def test_ranks__one_that_was_stopped_says_in_one_line_that_it_was_left(ends: Ends) -> None:
    output = ends["stopped"][1][1]
    assert len(output.splitlines()) == 1, output
    assert output.startswith("LostRank: "), output


def test_ranks__that_are_not_alike_are_not_told_to_go_on(ends: Ends) -> None:
    assert "goes on" not in "".join(output for _, output, _ in ends["another configuration"])


def test_ranks__one_that_never_comes(ends: Ends) -> None:
    (code, output, _), _ = ends["never"]
    assert code == 1
    assert re.match(r"TrainingError: rank 0: the 2 ranks did not meet at 127.0.0.1:\d+ ", output)
    tally("ranks disturbed, and all ended as they should")


def test_ranks__second_run_in_the_same_folder_is_refused_on_all(ends: Ends) -> None:
    for code, output, _ in ends["second run"]:
        assert code == 1
        assert re.search(r"/run: another run is at work in it; wait for it, or give another --out$", output.strip())
    tally("ranks disturbed, and all ended as they should")
