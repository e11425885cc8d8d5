"""`dinowds` and `dinowds train patch` as a user meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TINY_RUN, dinowds_command, run_dinowds, started

HEAVY = ("torch", "torchvision", "timm", "webdataset", "numpy", "pyarrow", "simplejpeg", "omegaconf", "PIL")


def test_help__imports_nothing_heavy() -> None:
    """What keeps `dinowds --help` under 0.3 s; measured by benchmarks/help.py."""
    script = "import sys; from dinowds.cli.main import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "command", [[], ["shard"], ["inspect"], ["train"], ["train", "patch"], ["train", "region"], ["demo"], ["doctor"]]
)
def test_help__of_every_command(command: list[str]) -> None:
    result = run_dinowds(*command, "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["region"], "holds image samples, 'dinowds train region' needs regions; give another --data, or use"),
        (["region", "student.patch_size=16"], "unknown key 'student.patch_size': a region's cells are as the dataset"),
        (["patch", "student.input_dim=384"], "unknown key 'student.input_dim': a key of regions"),
    ],
)
def test_train__command_and_data_of_two_kinds(
    dataset_path: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    kind, *overrides = arguments
    result = run_dinowds("train", kind, "--data", dataset_path, "--out", tmp_path / "run", *overrides)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_train__on_a_terminal_s_pipe_writes_plain_lines(dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_dinowds("train", "patch", "--data", dataset_path, "--out", out, *TINY_RUN, "optim.max_steps=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "training vit_tiny/8" in result.stderr
    assert "step 3/3" in result.stderr
    assert "\x1b" not in result.stderr


def test_train__yaml_file_and_overrides(dataset_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("student: {depth: 1}\n")
    arguments = ["--config", tmp_path / "mine.yaml", *(a for a in TINY_RUN if "depth" not in a), "optim.max_steps=1"]
    result = run_dinowds("train", "patch", "--data", dataset_path, "--out", tmp_path / "run", *arguments)
    assert result.returncode == 0, result.stderr
    assert "depth: 1" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("data", "out", "extra", "code", "message"),
    [
        ("none", "run", [], 1, "none: no such dataset; give the folder that 'dinowds shard --out' wrote"),
        ("file", "run", [], 1, "file: is a file, expected a dataset folder"),
        ("empty", "run", [], 1, "empty: has no manifest.json"),
        ("dataset", "full", [], 1, "full: is not empty and not a run's folder"),
        ("dataset", "file", [], 1, "file: is a file, expected a folder"),
        ("dataset", "run", ["optim.lrr=1"], 1, "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("dataset", "run", ["--config", "none.yaml"], 1, "none.yaml: no such configuration file"),
        ("dataset", "run", ["train.batch_size=200"], 1, "train.batch_size is 200, but the dataset has only 90 samples"),
        ("dataset", "run", ["data.partitions=5"], 1, "data.partitions is 5, which does not divide train.batch_size 12"),
        ("dataset", "run", ["crops.renderer=gpu"], 1, "crops.renderer"),
        ("dataset", "run", ["--nprocs", "2"], 2, "No such option"),
    ],
)
def test_train__mistake_is_one_clear_line(
    dataset_path: Path, tmp_path: Path, data: str, out: str, extra: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    path = dataset_path if data == "dataset" else tmp_path / data
    result = run_dinowds("train", "patch", "--data", path, "--out", tmp_path / out, *TINY_RUN, *extra)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert result.stdout == ""
    if code == 1:
        assert result.stderr.startswith("dinowds: error: ")
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "run").exists()


def test_train__ctrl_c_saves_and_exits_75(dataset_path: Path, tmp_path: Path) -> None:
    arguments = ["train", "patch", "--data", dataset_path, "--out", tmp_path / "run", *TINY_RUN]
    command = dinowds_command(*arguments, "optim.max_steps=null", "optim.epochs=1000", "speed.num_workers=1")
    with started(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr
        assert "training" in process.stderr.readline()
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "stopped by SIGINT after step" in rest
    assert "Traceback" not in rest
