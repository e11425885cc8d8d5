"""Clipping, groups and the moving average, against one tensor at a time."""

from __future__ import annotations

import pytest
import torch

from dinowds.config import PatchStudentConfig
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import build_pair
from dinowds.train.optim import build_optimizer, clip_per_tensor, set_rates, update_teacher

SHAPE = Architecture("image", Size(192, 1, 3), 3, 8, 2)
SMALL = PatchStudentConfig(out_dim=32)


def test_clip_per_tensor__each_tensor_by_itself() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5, 7) * scale for scale in (0.01, 1.0, 100.0)] + [torch.zeros(3)]
    expected = [g * min(1.0, 3.0 / (g.norm().item() + 1e-6)) for g in gradients]
    norms = [g.norm().item() for g in gradients]
    found = clip_per_tensor(gradients, 3.0)
    assert [norm.item() for norm in found] == pytest.approx(norms)
    for gradient, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, want)
    assert torch.equal(gradients[0], expected[0])  # below the limit: untouched to the last bit


def test_build_optimizer__decays_all_but_one_dimensional_tensors() -> None:
    student, _ = build_pair(SHAPE, SMALL)
    optimizer = build_optimizer(student)
    set_rates(optimizer, lr=0.1, weight_decay=0.4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in student.named_parameters()}
    assert len(by_name) == len(decay)
    for name, value in by_name.items():
        one_dimensional = name.endswith(".bias") or ".norm" in name
        assert value == (0.0 if one_dimensional else 0.4), name
    decayed = ("backbone.pos_embed", "backbone.cls_token", "head.last_layer.weight_g", "head.last_layer.weight_v")
    assert all(by_name[name] == 0.4 for name in decayed)


def test_build_optimizer__leaves_fixed_norms_out() -> None:
    student, _ = build_pair(SHAPE, PatchStudentConfig(out_dim=32, norm_last_layer=True))
    held = {id(p) for group in build_optimizer(student).param_groups for p in group["params"]}
    assert id(student.head.last_layer.weight_g) not in held


def test_update_teacher__is_the_moving_average() -> None:
    torch.manual_seed(0)
    teacher, student = [torch.randn(4), torch.randn(2, 3)], [torch.randn(4), torch.randn(2, 3)]
    expected = [0.9 * t + (1 - 0.9) * s for t, s in zip(teacher, student, strict=True)]
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher, expected)
