"""The head: DINO's names and arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinowds.config import PatchStudentConfig
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import build_pair
from dinowds.model.head import DinoHead, PrototypeLayer


def test_prototype_layer__equals_torch_weight_norm() -> None:
    torch.manual_seed(0)
    ours = PrototypeLayer(16, 40)
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2.0)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(16, 40, bias=False))
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x = torch.randn(8, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("use_bn", "linears"), [(False, (0, 2, 4)), (True, (0, 3, 6))])
def test_head__names_and_shapes(use_bn: bool, linears: tuple[int, int, int]) -> None:
    state = DinoHead(384, 100, use_bn).state_dict()
    shapes = [(2048, 384), (2048, 2048), (256, 2048)]
    assert [tuple(state[f"mlp.{i}.weight"].shape) for i in linears] == shapes
    assert tuple(state["last_layer.weight_g"].shape) == (100, 1)
    assert tuple(state["last_layer.weight_v"].shape) == (100, 256)
    assert (state["last_layer.weight_g"] == 1).all()


def test_head__logits_are_cosines() -> None:
    torch.manual_seed(0)
    logits = DinoHead(8, 50, norm_last_layer=True)(torch.randn(20, 8) * 100)
    assert logits.abs().max() <= 1 + 1e-5


def test_head__fixed_norms_take_no_gradient() -> None:
    head = DinoHead(8, 50, norm_last_layer=True)
    assert not head.last_layer.weight_g.requires_grad
    assert head.last_layer.weight_v.requires_grad


def test_build_pair__equal_weights_and_a_teacher_without_gradient_or_dropped_paths() -> None:
    student, teacher = build_pair(Architecture("image", Size(192, 2, 3), 3, 16, 2), PatchStudentConfig(out_dim=32))
    for (name, a), b in zip(student.named_parameters(), teacher.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not b.requires_grad
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(teacher([x]).logits, teacher([x]).logits)
