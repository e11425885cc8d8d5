"""`dinowds export` as people call it."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch

from dinowds.model.architecture import Architecture, Size, describe_architecture
from dinowds.model.vit import build_backbone
from dinowds.model.weights import read_weights
from tests.cli.conftest import Call

ARCHITECTURE = Architecture("image", Size(12, 1, 3), 3, 4, 3)


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds export`."""
    return partial(call_dinowds, "export")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, in the current one."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/patch/checkpoints")
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    models = {
        name: {f"backbone.{key}": value for key, value in build_backbone(ARCHITECTURE).state_dict().items()}
        for name in ("student", "teacher")
    }
    about = {
        "architecture": describe_architecture(ARCHITECTURE),
        "mean": [0.7, 0.6, 0.5],
        "std": [0.1, 0.2, 0.3],
        "dataset": {"name": "demo", "samples": 9, "cohorts": {"a": 9}, "metadata": {}},
    }
    torch.save({"format_version": 1, **models, "about": about}, folder / "step-00000010.pt")
    return folder.parent


def test_export__json(call: Call, run: Path) -> None:
    code, out, err = call(
        "--checkpoint", run, "--out", "exports/hub", "--to", "timm", "--student", "--mpp", 0.5,
        "--fold-normalization", "0.5", "0.5,0.4,0.3", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    said = json.loads(out)
    written = read_weights("exports/hub")
    assert (said["path"], said["to"], said["model"], said["from"]) == ("exports/hub", "timm", "student", str(run))
    assert (said["mean"], said["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.4, 0.3])
    assert said["fingerprint"] == written.fingerprint
    assert said["about"] == written.about
    assert said["about"]["mpp"] == 0.5
    assert said["difference"] < 1e-5
    student = read_weights(run, "student").backbone
    assert torch.equal(written.backbone["norm.bias"], student["norm.bias"])
    assert torch.equal(written.backbone["blocks.0.attn.qkv.weight"], student["blocks.0.attn.qkv.weight"])


def test_export__prints_how_to_load_it(call: Call, run: Path) -> None:
    code, out, _ = call("-c", run, "-o", "a.pth", "--to", "dino")
    assert code == 0
    assert 'model.load_state_dict(torch.load("a.pth", weights_only=True))' in out
    assert "dinowds, teacher" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("-c nowhere -o a --to timm", 1, "nowhere: no such file of weights"),
        ("-c runs/patch -o runs/patch --to timm", 1, "runs/patch: exists; give another place, or --overwrite"),
        ("-c runs/patch -o runs/patch --to timm --overwrite", 1, "runs/patch: holds checkpoints, which no export does"),
        ("-c runs/patch -o a --to hipt", 1, "a model of images cannot be written for hipt"),
        ("-c runs/patch -o a --to dino --with-head", 1, "has no head to write"),
        ("-c runs/patch -o a --to timm --mpp 0", 1, "mpp is 0.0"),
        ("-c runs/patch -o a --to timm --pos-interpolation best", 1, "pos_interpolation is 'best'"),
        ("-c runs/patch -o a --to onnx", 2, "'onnx' is not one of"),
        ("-c runs/patch -o a --to timm --fold-normalization 0.5 0,1,1", 2, "STD is 0,1,1"),
        ("-c runs/patch -o a --to timm --fold-normalization 0.5,0.5 1", 2, "MEAN is 0.5,0.5"),
        ("-c runs/patch -o a --to timm --fold-normalization nan 1", 2, "MEAN is nan"),
        ("-c runs/patch -o a --to timm --fold-normalization 0.5", 2, "requires 2 arguments"),
    ],
)
@pytest.mark.usefixtures("run")
def test_export__errors_are_one_line_and_leave_nothing(call: Call, arguments: str, code: int, message: str) -> None:
    found, out, err = call(*shlex.split(arguments))
    assert (found, out) == (code, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert code == 2 or err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["runs"]
