"""Backbones: DINO's names, shapes and initialisation."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dinowds.config import StudentConfig
from dinowds.errors import ConfigError
from dinowds.model.vit import SIZES, build_vit, initialise


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def test_build_vit__small_has_the_names_and_shapes_of_dino() -> None:
    ours = build_vit(StudentConfig(), 224, 0.1).state_dict()
    theirs = timm.create_model("vit_small_patch16_224.dino", num_classes=0).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert len(ours) == 150
    assert sum(value.numel() for value in ours.values()) == 21_665_664


@pytest.mark.parametrize("arch", sorted(SIZES))
def test_build_vit__every_architecture_maps_any_multiple_of_the_patch(arch: str) -> None:
    vit = build_vit(StudentConfig(arch=arch, patch_size=16, depth=1), 64, 0.0)
    assert vit(torch.zeros(2, 3, 32, 48)).shape == (2, SIZES[arch].embed_dim)


def test_initialise__leaves_no_parameter_as_it_was() -> None:
    vit = build_vit(StudentConfig(arch="vit_tiny", depth=2), 64, 0.0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(float("nan"))
    initialise(vit)
    for name, parameter in vit.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_initialise__follows_dino() -> None:
    vit = build_vit(StudentConfig(arch="vit_tiny", depth=2), 224, 0.0)
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.weight.abs().max().item() < 2.0
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert module.eps == 1e-6
    parameters = dict(vit.named_parameters())
    assert parameters["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert parameters["cls_token"].std().item() == pytest.approx(0.02, rel=0.2)


def test_build_vit__drop_path_is_linear_over_depth() -> None:
    vit = build_vit(StudentConfig(arch="vit_tiny", depth=5), 32, 0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_build_vit__width_that_heads_cannot_share() -> None:
    with pytest.raises(ConfigError, match=r"student\.embed_dim is 100"):
        build_vit(StudentConfig(embed_dim=100), 32, 0.0)
