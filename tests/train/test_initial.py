"""Beginning from weights that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dinowds.config import load_config
from dinowds.errors import CheckpointError, ConfigError
from dinowds.model.dino import DinoModel, architecture_of, build_pair
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD
from dinowds.model.positions import resample_positions
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint
from dinowds.train.initial import begin_from
from dinowds.train.loop import train
from tests.support import TINY_RUN, run_dinowds
from tests.train.regions import TINY_REGION_RUN
from tests.train.test_resume import Listener, assert_same_state, losses

ONE_STEP = [*TINY_REGION_RUN, "optim.max_steps=1", "optim.warmup_epochs=1"]
"""The learning rate of a warmup's first step is 0: student and teacher stay what they began with."""


@pytest.fixture(scope="module")
def trained(regions_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    train(regions_path, out, load_config(None, [*TINY_REGION_RUN, "optim.max_steps=6"], "region"))
    return out


def newest(run: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(run / "checkpoints")[0])


def begun(data: Path, out: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """State after one step at a learning rate of 0, and all messages."""
    listener = Listener()
    train(data, out, load_config(None, [*ONE_STEP, *overrides], "region"), listener)
    return newest(out), "\n".join(listener.messages)


def assert_close(first: dict[str, Any], second: dict[str, Any]) -> None:
    """But for the rounding of a moving average of equals."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-6, atol=1e-7)


def test_init_from__student_and_teacher_have_the_teacher_s_weights(
    trained: Path, regions_path: Path, tmp_path: Path
) -> None:
    state, messages = begun(regions_path, tmp_path / "run", f"student.init_from={trained}")
    given = newest(trained)
    assert not torch.equal(given["student"]["backbone.phi.0.weight"], given["teacher"]["backbone.phi.0.weight"])
    assert_same_state(state["student"], given["teacher"])
    assert_close(state["teacher"], given["teacher"])
    assert f"beginning from {trained} (dinowds, teacher), with its head" in messages
    assert "resampled" not in messages
    assert "note:" not in messages


def test_init_from__head_of_another_shape_starts_anew(trained: Path, regions_path: Path, tmp_path: Path) -> None:
    state, messages = begun(regions_path, tmp_path / "run", f"student.init_from={trained}", "student.out_dim=32")
    given = newest(trained)["teacher"]
    assert torch.equal(state["student"]["backbone.phi.0.weight"], given["backbone.phi.0.weight"])
    assert not torch.equal(state["student"]["head.mlp.0.weight"], given["head.mlp.0.weight"])
    assert_close(state["student"], state["teacher"])
    assert "with a new head" in messages


def test_init_from__positions_of_another_grid_are_resampled(trained: Path, regions_path: Path, tmp_path: Path) -> None:
    changes = ("crops.global.size=5", "student.pos_interpolation=dino")
    state, messages = begun(regions_path, tmp_path / "run", f"student.init_from={trained}", *changes)
    expected = resample_positions(newest(trained)["teacher"]["backbone.pos_embed"], 5, 5, "dino")
    assert torch.equal(state["student"]["backbone.pos_embed"], expected)
    assert "positions resampled from 4 × 4 to 5 × 5 (dino)" in messages
    assert "interpolates positions as 'timm', this run as 'dino' (student.pos_interpolation)" in messages


def test_init_from__only_at_the_very_first_step(trained: Path, regions_path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(newest(trained), weights)
    overrides = [*TINY_REGION_RUN, f"student.init_from={weights}", "student.drop_path_rate=0"]
    train(regions_path, tmp_path / "whole", load_config(None, [*overrides, "optim.max_steps=6"], "region"))
    train(regions_path, tmp_path / "parts", load_config(None, [*overrides, "optim.max_steps=3"], "region"))
    weights.unlink()
    train(regions_path, tmp_path / "parts", load_config(None, [*overrides, "optim.max_steps=6"], "region"))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_init_from__two_ranks_begin_alike(trained: Path, regions_path: Path, tmp_path: Path) -> None:
    overrides = [*TINY_REGION_RUN, f"student.init_from={trained}", "student.drop_path_rate=0", "optim.max_steps=4"]
    train(regions_path, tmp_path / "one", load_config(None, overrides, "region"))
    result = run_dinowds("train", "region", "--data", regions_path, "--out", tmp_path / "two", "--nproc", 2, *overrides)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("beginning from") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_init_from__error_of_rank_0_ends_all_ranks_in_one_line(regions_path: Path, tmp_path: Path) -> None:
    overrides = [*TINY_REGION_RUN, f"student.init_from={tmp_path / 'nothing.pt'}"]
    result = run_dinowds("train", "region", "--data", regions_path, "--out", tmp_path / "run", "--nproc", 2, *overrides)
    assert result.returncode == 1
    assert "nothing.pt" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("student.depth=3", "has depth 2, this run 3; set student.arch or student.depth"),
        ("student.registers=4", r"has registers 0, this run 4; set student\.registers"),
        ("student.layer_scale=1e-5", r"has layer_scale False, this run True; set student\.layer_scale"),
        ("student.embed_dim=96", "has embed_dim 64, this run 96; set student.arch or student.embed_dim"),
    ],
)
def test_init_from__another_architecture(
    trained: Path, regions_path: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(regions_path, tmp_path / "run", f"student.init_from={trained}", change)


def test_init_from__features_of_another_number(trained: Path) -> None:
    config = load_config(None, [*ONE_STEP, "student.input_dim=9", f"student.init_from={trained}"], "region")
    model, _ = build_pair(architecture_of(config), config.student)
    with pytest.raises(ConfigError, match=r"has in_dim 8, this run 9; set student\.input_dim"):
        begin_from(model, config, None, None, lambda _: None)


def test_init_from__model_of_the_other_kind(trained: Path, dataset_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a model of regions, this run needs one of images"):
        train(dataset_path, tmp_path / "run", load_config(None, [*TINY_RUN, f"student.init_from={trained}"]))


def test_init_from__no_weights(regions_path: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        begun(regions_path, tmp_path / "run", f"student.init_from={tmp_path / 'weights.pt'}")


def of_patches(*overrides: str) -> tuple[DinoModel, Any]:
    """A whole ViT-T, whose file need not say how many heads it has."""
    config = load_config(None, [*TINY_RUN, "student.depth=12", *overrides])
    torch.manual_seed(7)
    return build_pair(architecture_of(config), config.student)[0], config


def test_init_from__norms_that_are_to_stay_at_1_are_set_to_it(tmp_path: Path) -> None:
    given, _ = of_patches()
    with torch.no_grad():
        given.head.last_layer.weight_g.fill_(3.0)
    torch.save({"teacher": given.state_dict()}, tmp_path / "given.pt")
    for frozen, norm in ((False, 3.0), (True, 1.0)):
        model, config = of_patches(
            f"student.init_from={tmp_path / 'given.pt'}", f"student.norm_last_layer={str(frozen).lower()}"
        )
        begin_from(model, config, IMAGENET_MEAN, IMAGENET_STD, lambda _: None)
        assert (model.head.last_layer.weight_g == norm).all()
        assert torch.equal(model.head.last_layer.weight_v, given.head.last_layer.weight_v)


def test_init_from__another_normalisation_is_told(tmp_path: Path) -> None:
    given, _ = of_patches()
    torch.save({"teacher": given.state_dict()}, tmp_path / "given.pt")
    model, config = of_patches(f"student.init_from={tmp_path / 'given.pt'}")
    messages: list[str] = []
    begin_from(model, config, (0.5, 0.5, 0.5), IMAGENET_STD, messages.append)
    assert any("this run normalises images with [0.5, 0.5, 0.5]" in text for text in messages)
