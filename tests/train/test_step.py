"""One step against the same step written out plainly, one view and one tensor at a time."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinowds.config import PatchStudentConfig, StudentConfig
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import DinoModel, build_pair, num_prototypes
from dinowds.model.pixels import normalise
from dinowds.train.devices import training_attention
from dinowds.train.learner import Learner, LossScale, learner_state, load_learner_state
from dinowds.train.optim import build_optimizer
from dinowds.train.schedule import StepValues
from dinowds.train.step import StepSettings, train_step

CPU = torch.device("cpu")
SHAPE = Architecture("image", Size(192, 2, 3), 3, 8, 2)
STUDENT: StudentConfig = PatchStudentConfig(out_dim=64, drop_path_rate=0.0)
VALUES = StepValues(lr=1e-3, weight_decay=0.1, momentum=0.9, teacher_temperature=0.05, freeze_last_layer=False)
BATCH = 4
EPS = 1e-4
"""Of AdamW, far above its 1e-8: with that, gradients that are zero but for rounding would move weights by ± lr."""


def make_learner(student: StudentConfig = STUDENT) -> Learner:
    torch.manual_seed(0)
    pair = build_pair(SHAPE, student)
    optimizer = build_optimizer(pair[0])
    for group in optimizer.param_groups:
        group["eps"] = EPS
    return Learner(pair[0], pair[0], pair[1], optimizer, torch.randn(num_prototypes(student)) * 0.01)


def settings(micro_batch: int = BATCH) -> StepSettings:
    return StepSettings(CPU, None, micro_batch, BATCH, clip_grad=0.3, seed=0, rank=0)


def make_views(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "global": torch.randint(0, 256, (2, BATCH, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "local": torch.randint(0, 256, (3, BATCH, 3, 8, 8), dtype=torch.uint8, generator=generator),
    }


def plain_step(learner: Learner, views: dict[str, Tensor]) -> float:
    """The update in its textbook form, one view and one tensor at a time."""
    student, teacher, centre = learner.student, learner.teacher, learner.centre
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in student.named_parameters() if p.ndim > 1], "weight_decay": VALUES.weight_decay},
            {"params": [p for n, p in student.named_parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=VALUES.lr,
        foreach=False,
        eps=EPS,
    )
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    crops = [(view.float() / 255 - mean) / std for group in views.values() for view in group]
    with torch.no_grad():
        teacher_out = [teacher.head(teacher.backbone(crop)) for crop in crops[:2]]
    student_out = [student.head(student.backbone(crop)) for crop in crops]
    terms = []
    for q, t in enumerate(teacher_out):
        target = ((t - centre) / VALUES.teacher_temperature).softmax(-1)
        terms += [-(target * (s / 0.1).log_softmax(-1)).sum(-1).mean() for v, s in enumerate(student_out) if v != q]
    loss = torch.stack(terms).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in student.parameters():
        assert parameter.grad is not None
        parameter.grad *= min(1.0, 0.3 / (parameter.grad.norm().item() + 1e-6))
        if VALUES.freeze_last_layer and parameter.shape[0] == STUDENT.out_dim:
            parameter.grad = None
    optimizer.step()
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.copy_(VALUES.momentum * t + (1 - VALUES.momentum) * s)
        centre.copy_(0.9 * centre + 0.1 * torch.cat(teacher_out).mean(0))
    return loss.item()


def assert_same(first: nn.Module, second: nn.Module, of_an_update: float = 0.01) -> None:
    """To this share of an update."""
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=of_an_update * VALUES.lr), name


def test_train_step__equals_the_textbook() -> None:
    learner, plain = make_learner(), make_learner()
    loss = train_step(learner, settings(), make_views(), 0, VALUES)["loss"].item()
    assert loss == pytest.approx(plain_step(plain, make_views()), rel=1e-5)
    assert_same(learner.student, plain.student)
    assert_same(learner.teacher, plain.teacher)
    torch.testing.assert_close(learner.centre, plain.centre)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_train_step__accumulated_equals_the_large_batch(micro_batch: int) -> None:
    whole, parts = make_learner(), make_learner()
    for step in range(3):
        whole_metrics = train_step(whole, settings(), make_views(step), step, VALUES)
        part_metrics = train_step(parts, settings(micro_batch), make_views(step), step, VALUES)
        torch.testing.assert_close(part_metrics, whole_metrics, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.centre, whole.centre, rtol=1e-4, atol=1e-6)


def test_train_step__frozen_last_layer_stands_still_and_the_rest_moves() -> None:
    learner = make_learner()
    before = copy.deepcopy(learner.student.state_dict())
    frozen = dataclasses.replace(VALUES, freeze_last_layer=True)
    train_step(learner, settings(), make_views(), 0, frozen)
    for name, value in learner.student.state_dict().items():
        assert torch.equal(value, before[name]) == ("last_layer" in name), name


def test_train_step__same_step_same_dropped_paths_whatever_came_before() -> None:
    config = dataclasses.replace(STUDENT, drop_path_rate=0.5)
    first, second = make_learner(config), make_learner(config)
    torch.manual_seed(1234)
    torch.randn(17)
    a = train_step(first, settings(), make_views(), 7, VALUES)
    torch.manual_seed(99)
    b = train_step(second, settings(), make_views(), 7, VALUES)
    assert a == b
    assert all(torch.equal(p, q) for p, q in zip(first.student.parameters(), second.student.parameters(), strict=True))


def test_train_step__each_step_and_rank_drops_other_paths() -> None:
    """Of the same weights and views."""
    student, losses = dataclasses.replace(STUDENT, drop_path_rate=0.5), []
    for step, rank in ((7, 0), (8, 0), (7, 1)):
        of_rank = dataclasses.replace(settings(), rank=rank)
        losses.append(float(train_step(make_learner(student), of_rank, make_views(), step, VALUES)["loss"]))
    assert len(set(losses)) == 3


def test_train_step__stop_request_and_bad_samples_are_counted() -> None:
    learner = make_learner()
    first = train_step(learner, settings(), make_views(), 0, VALUES)
    second = train_step(learner, settings(), make_views(), 1, VALUES, num_bad=3, stop=True)
    assert [float(numbers[name]) for numbers in (first, second) for name in ("bad_samples", "stop")] == [0, 0, 3, 1]


def test_train_step__in_bfloat16_stays_near_float32() -> None:
    exact, fast = make_learner(), make_learner()
    in_bf16 = dataclasses.replace(settings(2), autocast_dtype=torch.bfloat16)
    for step in range(3):
        expected = train_step(exact, settings(2), make_views(step), step, VALUES)
        found = train_step(fast, in_bf16, make_views(step), step, VALUES)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        assert found["loss"].dtype == fast.centre.dtype == torch.float32
    assert found["loss"] != expected["loss"]


def test_train_step__in_float16_stays_near_float32() -> None:
    exact, fast = make_learner(), make_learner()
    fast.loss_scale = LossScale.on(CPU)
    in_fp16 = dataclasses.replace(settings(2), autocast_dtype=torch.float16)
    for step in range(3):
        expected = train_step(exact, settings(2), make_views(step), step, VALUES)
        found = train_step(fast, in_fp16, make_views(step), step, VALUES)
        assert found.pop("loss_scale") == 2**16
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert_same(fast.student.head.mlp, exact.student.head.mlp, of_an_update=0.5)


def all_of(learner: Learner) -> dict[str, Tensor]:
    """Every number of it, under some name."""
    flat: dict[str, Tensor] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            flat[name] = value.clone()
        elif isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)

    add("", learner_state(learner))
    return flat


@pytest.mark.parametrize("centering", ["ema", "sinkhorn_knopp"])
@pytest.mark.parametrize("student", [STUDENT, dataclasses.replace(STUDENT, use_bn_in_head=True)])
def test_train_step__that_is_not_finite_changes_nothing(student: StudentConfig, centering: str) -> None:
    learner = make_learner(student)
    how = dataclasses.replace(settings(2), centering=centering)
    good = train_step(learner, how, make_views(0), 0, VALUES)
    before = all_of(learner)
    bias = learner.student.backbone.patch_embed.proj.bias
    hook = bias.register_hook(lambda gradient: gradient * float("nan"))
    bad = train_step(learner, how, make_views(1), 1, VALUES)
    hook.remove()
    assert [float(good["bad_step"]), float(bad["bad_step"])] == [0, 1]
    after = all_of(learner)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert train_step(learner, how, make_views(2), 2, VALUES)["bad_step"] == 0
    assert not torch.equal(learner.centre, before[".dino_loss.center"][0])


def test_train_step__nan_in_the_teacher_changes_nothing_but_is_told() -> None:
    learner = make_learner()
    train_step(learner, settings(), make_views(0), 0, VALUES)
    with torch.no_grad():
        learner.teacher.head.mlp[0].get_parameter("bias")[0] = float("inf")
    before = all_of(learner)
    assert train_step(learner, settings(), make_views(1), 1, VALUES)["bad_step"] == 1
    after = all_of(learner)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def numbers_of(scale: LossScale) -> list[float]:
    return [float(scale.value), float(scale.good_steps)]


def test_loss_scale__halves_after_an_overflow_and_doubles_after_two_thousand_good_steps() -> None:
    scale = LossScale.on(CPU)
    scale.update(torch.tensor(1.0))
    assert numbers_of(scale) == [2**15, 0]
    for _ in range(1999):
        scale.update(torch.tensor(0.0))
    assert numbers_of(scale) == [2**15, 1999]
    scale.update(torch.tensor(0.0))
    assert numbers_of(scale) == [2**16, 0]


def test_learner_state__loads_back() -> None:
    first, second = make_learner(), make_learner()
    for learner in (first, second):
        learner.loss_scale = LossScale.on(CPU)
    train_step(first, settings(), make_views(0), 0, VALUES)
    first.loss_scale.update(torch.tensor(1.0))  # type: ignore[union-attr]
    load_learner_state(second, copy.deepcopy(learner_state(first)))
    ours, theirs = all_of(second), all_of(first)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_model__concatenates_groups_in_order() -> None:
    learner = make_learner()
    groups = [normalise(views.flatten(0, 1)) for views in make_views().values()]
    model: DinoModel = learner.student
    with torch.no_grad():
        together = model(groups).logits
        apart = torch.cat([model.head(model.backbone(crop[None])) for group in groups for crop in group])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_training_attention__gives_that_of_the_fused_kernel_and_its_gradients(dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 11, 8, dtype=dtype or torch.float32, requires_grad=True) for _ in range(3)]

    def attended() -> list[torch.Tensor]:
        query, key, value = inputs
        found = F.scaled_dot_product_attention(query, key, value)
        return [found, *torch.autograd.grad(found.float().square().sum(), inputs)]

    def settings_of_torch() -> list[bool]:
        of: Any = torch.backends.cuda
        return [of.flash_sdp_enabled(), of.fp16_bf16_reduction_math_sdp_allowed()]

    expected, before = attended(), settings_of_torch()
    with training_attention(CPU, dtype):
        assert settings_of_torch() == ([True, False] if dtype is None else [False, True])
        found = attended()
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    assert settings_of_torch() == before


def test_train_step__in_bfloat16_with_checkpointed_activations_is_the_same() -> None:
    in_bf16 = dataclasses.replace(settings(2), autocast_dtype=torch.bfloat16)
    plain, saving = make_learner(), make_learner()
    saving.student.backbone.set_grad_checkpointing(True)
    found = [train_step(learner, in_bf16, make_views(), 0, VALUES)["loss"] for learner in (plain, saving)]
    assert found[0] == found[1]
    assert_same(saving.student.head.mlp, plain.student.head.mlp, of_an_update=0.1)
