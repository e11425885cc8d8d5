"""`dinowds` and `dinowds train patch` as a user meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from dinowds.cli.train import patch

from dinowds.data.dataset import Dataset
from dinowds.errors import Interrupted
from tests.reference_root import make_root
from tests.support import TINY_RUN, dinowds_command, run_dinowds, started
from tests.train.regions import make_region, make_regions

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


def reference_yaml(folder: Path, text: str) -> Path:
    """A file of the reference system."""
    path = folder / "ref.yaml"
    path.write_text(text)
    return path


def test_train__reference_s_yaml_is_all_that_is_needed(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    text = f"""
        train: {{dataset_path: "Pathology:root={root}", batch_size_per_gpu: 8, output_dir: {tmp_path}/out}}
        tune:
          tune_every: 1
          knn:
            query_dataset_path: KNN:root={root}:split=query
            test_dataset_path: KNN:root={root}:split=test
            use_cuda: true
        student: {{arch: vit_tiny, patch_size: 8, out_dim: 64}}
        optim: {{epochs: 1, warmup_epochs: 0, weight_decay: 1e-5}}
        crops: {{global_crops_size: 24, local_crops_size: 16, local_crops_number: 2}}
        speed: {{use_fp16: true, num_workers: 0}}
        wandb: {{enable: false, username: me}}
    """
    command = ("train", "patch", "--config", reference_yaml(tmp_path, text), "student.depth=1", "optim.max_steps=3")
    result = run_dinowds(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "train.batch_size is 8 (one process)" in result.stderr
    assert "not used: tune.knn.use_cuda, optim.weight_decay, wandb.username\n" in result.stderr
    assert result.stderr.count("it is made now") == 3
    assert "40 samples, 5 steps an epoch, steps 0 to 3, batch 8" in result.stderr
    assert list((tmp_path / "out" / "checkpoints").glob("step-*3.pt"))
    assert "knn/teacher/accuracy" in (tmp_path / "out" / "metrics.jsonl").read_text()
    tune = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["tune"]["knn"]
    assert len(Dataset.open(tune["query_dataset_path"])) == len(Dataset.open(tune["test_dataset_path"])) == 10
    again = run_dinowds(*command)
    assert again.returncode == 0, again.stderr
    assert "nothing left to do: 3 of 3 steps are done" in again.stderr
    assert "it is made now" not in again.stderr


def test_train__reference_s_yaml_of_regions(tmp_path: Path) -> None:
    data = make_regions(tmp_path, [make_region(seed) for seed in range(16)])
    text = f"""
        train: {{dataset_path: {data}, batch_size_per_gpu: 4, output_dir: {tmp_path}/elsewhere}}
        student: {{arch: hvit_xs, region_size: 1536, patch_size: 256, out_dim: 64}}
        crops: {{global_crops_scale: 0.7, local_crops_scale: 0.4, local_crops_number: 2}}
        optim: {{epochs: 1, warmup_epochs: 0}}
        speed: {{use_fp16: false, num_workers: 0}}
    """
    config = reference_yaml(tmp_path, text)
    overrides = ("student.depth=1", "student.embed_dim=64", "optim.max_steps=1")
    result = run_dinowds("train", "region", "--config", config, "--out", tmp_path / "out", *overrides)
    assert result.returncode == 0, result.stderr
    assert "crops.global.size is 4 (0.7 of 6 cells), crops.local.size is 2 (0.4 of 6 cells)" in result.stderr
    assert list((tmp_path / "out" / "checkpoints").glob("step-*1.pt"))
    assert not (tmp_path / "elsewhere").exists()


def test_train__name_of_a_root_as_data(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    arguments = ("--data", f"Pathology:root={root}:subset=fold_0", "--out", tmp_path / "out", *TINY_RUN)
    result = run_dinowds("train", "patch", *arguments, "train.batch_size=24")
    assert result.returncode == 1
    assert "train.batch_size is 24, but the dataset has only 20 samples" in result.stderr


def test_train__what_is_missing_is_one_line(dataset_path: Path, tmp_path: Path) -> None:
    config = reference_yaml(tmp_path, "train: {batch_size_per_gpu: 4}")
    for arguments, option in (
        (["--out", tmp_path / "run"], "--data"),
        (["--data", dataset_path], "--out"),
        (["--data", dataset_path, "--config", config], "--out"),
    ):
        result = run_dinowds("train", "patch", *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(f"dinowds: error: {option} is missing: give the ")


def test_train__nproc_within_a_rank_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `srun --ntasks 2 dinowds train … --nproc 8`: two runs that know nothing of each other."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(typer.Exit) as end:
        patch(data="data", out=Path("run"), nproc=8)
    assert end.value.exit_code == 2
    assert "--nproc 8 starts ranks, but this is one of 2 already" in capsys.readouterr().err


def test_train__a_time_limit_s_signal_before_the_first_step_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Alone it would kill, and the job script would not go on."""

    def send(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("dinowds.cli.train._train", send)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(Interrupted, match="give the same command again to go on"):
            patch(data="data", out=tmp_path / "run")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_train__batch_of_the_reference_is_times_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"train: {{dataset_path: 'Pathology:root={tmp_path}/none', batch_size_per_gpu: 16, output_dir: out}}"
    command = ("train", "patch", "--config", reference_yaml(tmp_path, text))
    result = run_dinowds(*command, "--nproc", "3")
    assert result.returncode == 1
    assert "train.batch_size is 48 (16 for each of 3 processes)" in result.stderr
    assert f"{tmp_path}/none is no folder" in result.stderr
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "train.batch_size is 32 (16 for each of 2 processes)" in run_dinowds(*command).stderr
    monkeypatch.setenv("RANK", "1")
    assert run_dinowds(*command).stderr.count("\n") == 1


def test_train__typo_in_a_reference_s_yaml_is_named(tmp_path: Path) -> None:
    config = reference_yaml(tmp_path, "train: {dataset_path: x, output_dir: out}\noptim: {lrr: 1}")
    result = run_dinowds("train", "patch", "--config", config)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "ref.yaml: unknown key 'optim.lrr'; did you mean 'optim.lr'?" in result.stderr


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
