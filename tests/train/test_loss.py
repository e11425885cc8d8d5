"""The loss against the definition, written out in loops and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinowds.train.loss import dino_loss, mean_entropy, next_centre, teacher_targets


def loss_by_definition(student: torch.Tensor, teacher: torch.Tensor, centre: torch.Tensor, temperature: float) -> float:
    s, t, c = student.double().numpy(), teacher.double().numpy(), centre.double().numpy()
    losses = []
    for q in range(len(t)):
        for v in range(len(s)):
            if v == q:
                continue
            for image in range(s.shape[1]):
                target = np.exp((t[q, image] - c) / temperature)
                target /= target.sum()
                scaled = s[v, image] / 0.1
                log_prob = scaled - np.log(np.exp(scaled - scaled.max()).sum()) - scaled.max()
                losses.append(-(target * log_prob).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize(("views", "batch", "prototypes"), [(2, 1, 4), (10, 5, 33), (3, 8, 100)])
def test_dino_loss__equals_the_definition(views: int, batch: int, prototypes: int) -> None:
    torch.manual_seed(views)
    student, teacher = torch.randn(views, batch, prototypes), torch.randn(2, batch, prototypes)
    centre = torch.randn(prototypes)
    loss = dino_loss(student, teacher_targets(teacher, centre, 0.07))
    assert loss.item() == pytest.approx(loss_by_definition(student, teacher, centre, 0.07), rel=1e-5)


def test_dino_loss__gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 2, 6, requires_grad=True)
    targets = teacher_targets(torch.randn(2, 2, 6), torch.zeros(6), 0.04)
    dino_loss(student, targets).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    for index in [(0, 0, 0), (1, 1, 5), (3, 0, 2)]:
        step = torch.zeros_like(student)
        step[index] = 1e-2
        with torch.no_grad():
            slope = (dino_loss(student + step, targets) - dino_loss(student - step, targets)) / 2e-2
        assert student.grad[index].item() == pytest.approx(slope.item(), abs=2e-3)


def test_dino_loss__of_equal_logits_is_ln_k() -> None:
    targets = teacher_targets(torch.zeros(2, 3, 1000), torch.zeros(1000), 0.04)
    assert dino_loss(torch.zeros(10, 3, 1000), targets).item() == pytest.approx(math.log(1000), rel=1e-5)
    assert mean_entropy(targets).item() == pytest.approx(math.log(1000), rel=1e-5)


def test_dino_loss__is_entropy_plus_divergence() -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 4, 20)
    targets = teacher_targets(logits.expand(2, 4, 20), torch.zeros(20), 0.1)
    # A student that says exactly what the teacher says leaves the entropy alone.
    assert dino_loss(logits.expand(5, 4, 20), targets).item() == pytest.approx(mean_entropy(targets).item(), rel=1e-5)


def test_teacher_targets__of_bfloat16_logits_are_float32_and_finite() -> None:
    targets = teacher_targets(torch.full((2, 1, 8), 300.0, dtype=torch.bfloat16), torch.zeros(8), 0.001)
    assert targets.dtype == torch.float32
    assert torch.isfinite(targets).all()


def test_next_centre__moves_a_tenth_of_the_way() -> None:
    centre, mean = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])
    torch.testing.assert_close(next_centre(centre, mean), 0.9 * centre + 0.1 * mean)
