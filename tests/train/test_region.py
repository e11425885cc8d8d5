"""Training on regions: the trainer of patches, with grids of features that have holes."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from dinowds.config import RegionStudentConfig, load_config
from dinowds.data.dataset import Dataset
from dinowds.errors import ConfigError, DatasetError, StoppedBySignal
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import DinoModel, build_pair
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint
from dinowds.train.evaluation import Figures
from dinowds.train.learner import Learner
from dinowds.train.loop import train
from dinowds.train.optim import build_optimizer
from dinowds.train.schedule import StepValues
from dinowds.train.step import StepSettings, train_step
from tests.support import TINY_RUN, run_dinowds, wait_until_gone
from tests.train.regions import CHANNELS, TINY_REGION_RUN, make_region, make_regions
from tests.train.test_resume import Listener, assert_same_state, losses

DROPPING = (*TINY_REGION_RUN, "student.drop_path_rate=0.3", "train.max_batch_per_device=4")
CONFIG = load_config(None, DROPPING, "region")
LAST = "step-00000015.pt"


@pytest.fixture(scope="module")
def undisturbed(regions_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(regions_path, out, CONFIG)
    return out


def test_train__checkpoint_says_what_whoever_uses_it_has_to_know(undisturbed: Path, regions_path: Path) -> None:
    state = load_checkpoint(undisturbed / "checkpoints" / LAST)
    assert state["about"] == {
        "architecture": {
            "kind": "region", "embed_dim": 64, "depth": 2, "num_heads": 2, "in_dim": CHANNELS, "patch_size": 1,
            "grid": 4, "pos_interpolation": "timm", "registers": 0, "layer_scale": False,
        },
        "mean": None,
        "std": None,
        "dataset": {
            "name": Dataset.open(regions_path).manifest.name, "samples": 70, "cohorts": {"source": 70}, "metadata": {},
        },
    }  # fmt: skip
    assert state["config"]["student"]["input_dim"] == CHANNELS
    assert "input_dim: 8" in (undisturbed / "config.yaml").read_text()
    assert all(math.isfinite(loss) for loss in losses(undisturbed).values())
    assert len(losses(undisturbed)) == 15


def test_train__checkpoint_of_images_says_so_too(dataset_path: Path, tmp_path: Path) -> None:
    train(dataset_path, tmp_path / "run", load_config(None, [*TINY_RUN, "optim.max_steps=1"]))
    about = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0])["about"]
    assert about["architecture"] == {
        "kind": "image", "embed_dim": 192, "depth": 2, "num_heads": 3, "in_dim": 3, "patch_size": 8, "grid": 3,
        "pos_interpolation": "timm", "registers": 0, "layer_scale": False,
    }  # fmt: skip
    assert (about["mean"], about["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert about["dataset"]["cohorts"] == {"alpha": 60, "beta": 30}


def test_train__killed_ends_with_the_same_bits(undisturbed: Path, regions_path: Path, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from dinowds.config import load_config
        from dinowds.train.evaluation import Figures
        from dinowds.train.loop import train
        def kill(step, student, teacher):
            return os.kill(os.getpid(), signal.SIGKILL) if step == 11 else {}
        if __name__ == "__main__":
            data, out, *overrides = sys.argv[1:]
            train(Path(data), Path(out), load_config(None, overrides, "region"), evaluation=lambda: Figures(kill))
    """)
    (tmp_path / "script.py").write_text(script)
    arguments: list[str | Path] = [regions_path, tmp_path / "run", *DROPPING, "speed.num_workers=1"]
    killed = subprocess.run([sys.executable, tmp_path / "script.py", *arguments], check=False, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    wait_until_gone(str(tmp_path))
    listener = Listener()
    train(regions_path, tmp_path / "run", CONFIG, listener)
    assert any("going on after step 8" in text for text in listener.messages)
    assert losses(tmp_path / "run") == losses(undisturbed)
    ours, theirs = (load_checkpoint(run / "checkpoints" / LAST) for run in (tmp_path / "run", undisturbed))
    for state in (ours, theirs):
        state["config"]["speed"].pop("num_workers")
    assert_same_state(ours, theirs)


def test_train__signal_saves_and_the_same_call_goes_on(undisturbed: Path, regions_path: Path, tmp_path: Path) -> None:
    def send(step: int, _student: DinoModel, _teacher: DinoModel) -> dict[str, float]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(StoppedBySignal, match="stopped by SIGTERM after step"):
        train(regions_path, tmp_path / "run", CONFIG, evaluation=lambda: Figures(send))
    train(regions_path, tmp_path / "run", CONFIG)
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_train__two_processes_agree_with_one(regions_path: Path, tmp_path: Path) -> None:
    arguments = [*TINY_REGION_RUN, "student.drop_path_rate=0", "optim.max_steps=8"]
    train(regions_path, tmp_path / "one", load_config(None, arguments, "region"))
    command = ["train", "region", "--data", regions_path, "--out", tmp_path / "two", "--nproc", 2, *arguments]
    result = run_dinowds(*command, "train.max_batch_per_device=4")
    assert result.returncode == 0, result.stderr
    assert "training hvit_xs on cells of 8 features" in result.stderr
    assert "2 processes" in result.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, abs=1e-4)
    assert len(set(one.values())) == 8


def make_learner() -> Learner:
    torch.manual_seed(0)
    pair = build_pair(Architecture("region", Size(64, 2, 2), CHANNELS, 1, 4), RegionStudentConfig(out_dim=32))
    return Learner(pair[0], pair[0], pair[1], build_optimizer(pair[0]), torch.zeros(32))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_train_step__whole_views_missing_leave_all_weights_finite(dtype: torch.dtype | None) -> None:
    learner = make_learner()
    before = copy.deepcopy(learner.student.state_dict())
    generator = torch.Generator().manual_seed(0)
    views = {
        "global": torch.randn(2, 4, 4, 4, CHANNELS, generator=generator).half(),
        "local": torch.randn(3, 4, 2, 2, CHANNELS, generator=generator).half(),
    }
    views["global"][0, 1] = views["local"][2] = torch.nan
    settings = StepSettings(torch.device("cpu"), dtype, 2, 4, clip_grad=3.0, seed=0, rank=0)
    values = StepValues(lr=1e-3, weight_decay=0.1, momentum=0.9, teacher_temperature=0.05, freeze_last_layer=False)
    numbers = train_step(learner, settings, views, 0, values, diagnose=True)
    assert all(number.isfinite() for number in numbers.values())
    assert numbers["bad_step"] == 0
    for name, parameter in learner.student.state_dict().items():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name
    assert all(parameter.isfinite().all() for parameter in learner.teacher.parameters())


def test_train__kinds_that_do_not_fit(regions_path: Path, dataset_path: Path, tmp_path: Path) -> None:
    message = "holds region samples, 'dinowds train patch' needs images; .* use 'dinowds train region'"
    with pytest.raises(ConfigError, match=message):
        train(regions_path, tmp_path / "run", load_config(None, TINY_RUN))
    message = "holds image samples, 'dinowds train region' needs regions; .* use 'dinowds train patch'"
    with pytest.raises(ConfigError, match=message):
        train(dataset_path, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_train__run_of_the_other_kind(undisturbed: Path, dataset_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a run of 'dinowds train region'; use that, or give another --out"):
        train(dataset_path, undisturbed, load_config(None, TINY_RUN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("crops.global.size=7", r"has 6 × 6 cells, expected at least 7 × 7; lower crops\.global\.size"),
        ("crops.local.size=9", r"expected at least 9 × 9; lower crops\.local\.size"),
        ("student.input_dim=9", r"student\.input_dim is 9, but cells of .* have 8 features"),
    ],
)
def test_train__views_that_do_not_fit_are_refused_before_anything_is_written(
    regions_path: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(regions_path, tmp_path / "run", load_config(None, [*DROPPING, change], "region"))
    assert not (tmp_path / "run").exists()


def test_train__regions_of_other_features_are_replaced(tmp_path: Path) -> None:
    regions = [make_region(seed) for seed in range(30)]
    regions[20] = make_region(20, channels=CHANNELS + 1)
    data = make_regions(tmp_path, regions)
    config = load_config(None, [*TINY_REGION_RUN, "student.input_dim=8", "optim.max_steps=6"], "region")
    train(data, tmp_path / "run", config)
    lines = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert lines
    assert all("cells have 9 features, expected 8" in line for line in lines)


def test_train__no_region_can_be_read(tmp_path: Path) -> None:
    data = make_regions(tmp_path, [make_region(seed) for seed in range(24)])
    dataset = Dataset.open(data)
    for sample in dataset:
        with open(dataset.shard_url(sample.shard), "r+b") as shard:
            shard.seek(sample.offset)
            shard.write(bytes(sample.size))
    with pytest.raises(DatasetError, match="none of its first regions can be read"):
        train(data, tmp_path / "run", CONFIG)
