"""Groups, clipping, guarded steps and the moving average, against one tensor at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from dinowds.config import PatchStudentConfig
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import build_pair
from dinowds.train.optim import apply, build_optimizer, clip, lr_scale_of, set_rates, update_teacher

SHAPE = Architecture("image", Size(192, 1, 3), 3, 8, 2)
SMALL = PatchStudentConfig(out_dim=32)
GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)


def some_gradients() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 7) * scale for scale in (0.01, 1.0, 100.0)] + [torch.zeros(3)]


def test_clip__each_tensor_by_itself() -> None:
    gradients = some_gradients()
    expected = [g * min(1.0, 3.0 / (g.norm().item() + 1e-6)) for g in gradients]
    norms = [g.norm().item() for g in gradients]
    found = clip(gradients, 3.0, "tensor")
    assert (found.shape, found.dtype) == ((4,), torch.float32)
    assert found.tolist() == pytest.approx(norms)
    torch.testing.assert_close(gradients, expected)
    assert torch.equal(gradients[0], expected[0])  # below the limit: untouched to the last bit


def test_clip__all_together() -> None:
    gradients = some_gradients()
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    expected = [g * 3.0 / (norm + 1e-6) for g in gradients]
    norms = [g.norm().item() for g in gradients]
    assert clip(gradients, 3.0, "global").tolist() == pytest.approx(norms)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("how", ["tensor", "global"])
def test_clip__below_the_limit_or_with_none_changes_no_bit(how: str) -> None:
    for max_norm in (1e9, 0.0):
        gradients = some_gradients()
        found = clip(gradients, max_norm, how)
        assert all(torch.equal(g, want) for g, want in zip(gradients, some_gradients(), strict=True))
        assert found.tolist() == pytest.approx([g.norm().item() for g in gradients])


@pytest.mark.parametrize("how", ["tensor", "global"])
def test_clip__of_shares_is_that_of_whole_tensors(how: str) -> None:
    whole = some_gradients()
    shares = [[g[:2].clone() for g in whole], [g[2:].clone() for g in whole]]
    squares = sum(torch.stack([g.norm().square() for g in share]) for share in shares)
    assert isinstance(squares, Tensor)
    norms = clip(whole, 3.0, how)
    for share in shares:
        torch.testing.assert_close(clip(share, 3.0, how, lambda own: own.copy_(squares)), norms)
    for gradient, top, rest in zip(whole, *shares, strict=True):
        torch.testing.assert_close(torch.cat([top, rest]), gradient)


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


@pytest.mark.parametrize("kind", ["image", "region"])
def test_build_optimizer__layer_decay_lowers_the_rate_towards_the_input(kind: str) -> None:
    architecture = Architecture(kind, Size(48, 2, 3), 3, 1, 2)  # type: ignore[arg-type]
    student, _ = build_pair(architecture, SMALL)
    optimizer = build_optimizer(student, layer_decay=0.5)
    set_rates(optimizer, lr=0.8, weight_decay=0.4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"head": 0.8, "backbone.norm": 0.8, "backbone.blocks.1": 0.4, "backbone.blocks.0": 0.2, "backbone": 0.1}
    for name, parameter in student.named_parameters():
        prefix = next(prefix for prefix in expected if name.startswith(prefix + "."))
        assert rates[id(parameter)] == pytest.approx(expected[prefix]), name
    decayed = {id(p): group["decayed"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decayed[id(p)] == (p.ndim > 1) for p in student.parameters())


def test_lr_scale_of__formula() -> None:
    scales = {
        "backbone.pos_embed": 0.9**13,
        "backbone.patch_embed.proj.weight": 0.9**13,
        "backbone.blocks.0.norm1.weight": 0.9**12,
        "backbone.blocks.11.attn.qkv.bias": 0.9,
        "backbone.norm.weight": 1.0,
        "head.mlp.0.weight": 1.0,
    }
    assert {name: lr_scale_of(name, 12, 0.9) for name in scales} == pytest.approx(scales)


def test_build_optimizer__takes_the_state_of_one_without_lr_scale() -> None:
    student, _ = build_pair(SHAPE, SMALL)
    optimizer, state = build_optimizer(student), build_optimizer(student).state_dict()
    for group in state["param_groups"]:
        del group["lr_scale"]
    optimizer.load_state_dict(state)
    set_rates(optimizer, lr=0.1, weight_decay=0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [group["decayed"] for group in optimizer.param_groups] == [True, False]


def one_step(optimizer: torch.optim.Optimizer, value: float, is_bad: Tensor) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, value)
    apply(optimizer, is_bad)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_apply__a_bad_step_leaves_no_trace(value: float, steps_before: int) -> None:
    torch.manual_seed(1)
    student, teacher = build_pair(SHAPE, SMALL)
    optimizer = build_optimizer(student, layer_decay=0.7)
    set_rates(optimizer, lr=0.01, weight_decay=0.4)
    for _ in range(steps_before):
        one_step(optimizer, 0.5, GOOD)
    undisturbed, undisturbed_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    other = build_optimizer(undisturbed, layer_decay=0.7)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    one_step(optimizer, value, BAD)
    update_teacher(list(teacher.parameters()), list(student.parameters()), 0.9, BAD)
    assert_same(list(student.parameters()), list(undisturbed.parameters()))
    assert_same(list(teacher.parameters()), list(undisturbed_teacher.parameters()))
    if steps_before:
        assert_same(flat_state(optimizer), flat_state(other))
    for stepped in (optimizer, other):  # what follows is as if the bad step had not been
        one_step(stepped, -0.3, GOOD)
    assert_same(flat_state(optimizer), flat_state(other))
    assert_same(list(student.parameters()), list(undisturbed.parameters()))


def test_apply__a_good_step_is_that_of_adamw() -> None:
    torch.manual_seed(2)
    ours, plain = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([ours], lr=0.1, fused=True)
    reference = torch.optim.AdamW([plain], lr=0.1, fused=True)
    for value in (0.5, -2.0):
        one_step(optimizer, value, GOOD)
        plain.grad = torch.full_like(plain, value)
        reference.step()
    assert torch.equal(ours, plain)
    assert not hasattr(optimizer, "found_inf")  # a later step of its own is not bound by it


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def flat_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for state in optimizer.state_dict()["state"].values() for tensor in state.values()]


def test_update_teacher__is_the_moving_average() -> None:
    torch.manual_seed(0)
    teacher, student = [torch.randn(4), torch.randn(2, 3)], [torch.randn(4), torch.randn(2, 3)]
    expected = [0.9 * t + (1 - 0.9) * s for t, s in zip(teacher, student, strict=True)]
    update_teacher(teacher, student, 0.9, GOOD)
    torch.testing.assert_close(teacher, expected)


def test_update_teacher__with_momentum_one_or_zero_is_exact() -> None:
    torch.manual_seed(0)
    teacher, student = [torch.randn(50)], [torch.randn(50)]
    before = teacher[0].clone()
    update_teacher(teacher, student, 1.0, GOOD)
    assert torch.equal(teacher[0], before)
    update_teacher(teacher, student, 0.0, GOOD)
    assert torch.equal(teacher[0], student[0])
