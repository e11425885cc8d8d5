"""Backbones: DINO's names, shapes and initialisation."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dinowds.model.architecture import SIZES, Architecture, Size
from dinowds.model.vit import build_backbone, initialise


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def test_build_backbone__small_has_the_names_and_shapes_of_dino() -> None:
    ours = build_backbone(Architecture("image", SIZES["image"]["vit_small"], 3, 16, 14), 0.1).state_dict()
    theirs = timm.create_model("vit_small_patch16_224.dino", num_classes=0).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert len(ours) == 150
    assert sum(value.numel() for value in ours.values()) == 21_665_664


@pytest.mark.parametrize("arch", sorted(SIZES["image"]))
def test_build_backbone__every_architecture_maps_any_multiple_of_the_patch(arch: str) -> None:
    size = SIZES["image"][arch]._replace(depth=1)
    vit = build_backbone(Architecture("image", size, 3, 16, 4))
    assert vit(torch.zeros(2, 3, 32, 48)).shape == (2, size.embed_dim)


def test_initialise__leaves_no_parameter_as_it_was() -> None:
    vit = build_backbone(Architecture("image", Size(192, 2, 3), 3, 16, 4))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(float("nan"))
    initialise(vit)
    for name, parameter in vit.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_initialise__follows_dino() -> None:
    vit = build_backbone(Architecture("image", Size(192, 2, 3), 3, 16, 14))
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


def test_build_backbone__drop_path_is_linear_over_depth() -> None:
    vit = build_backbone(Architecture("image", Size(192, 5, 3), 3, 16, 2), 0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
