"""The losses and targets against their definitions, written out in loops and float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from dinowds.train.loss import dino_loss, koleo, mean_entropy, next_centre, sinkhorn_targets, teacher_targets

SHAPES = [(2, 2, 1, 4), (10, 2, 5, 33), (3, 2, 8, 100), (4, 1, 3, 20), (6, 3, 2, 17), (3, 3, 2, 9)]
"""V, Q, B, K: also without local views, and with one global view."""


def loss_by_definition(student: Tensor, targets: Tensor) -> Tensor:
    """float64, pair by pair and sample by sample."""
    losses = []
    for q, targets_of_view in enumerate(targets.double()):
        for v, logits_of_view in enumerate(student.double()):
            if v == q:
                continue
            for target, logits in zip(targets_of_view, logits_of_view, strict=True):
                scaled = logits / 0.1
                log_probs = scaled - scaled.max() - torch.log(torch.exp(scaled - scaled.max()).sum())
                losses.append(-(target * log_probs).sum())
    return torch.stack(losses).mean()


def random_case(views: int, globals_: int, batch: int, prototypes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(views)
    targets = teacher_targets(torch.randn(globals_, batch, prototypes), torch.randn(prototypes), 0.07)
    return torch.randn(views, batch, prototypes), targets


@pytest.mark.parametrize("shape", SHAPES)
def test_dino_loss__and_its_gradient_equal_the_definition(shape: tuple[int, int, int, int]) -> None:
    student, targets = random_case(*shape)
    ours, plain = student.requires_grad_(), student.detach().double().requires_grad_()
    loss, expected = dino_loss(ours, targets), loss_by_definition(plain, targets)
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert plain.grad is not None
    assert loss.dtype == ours.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-5, atol=1e-6 * plain.grad.abs().max().item())


def test_dino_loss__of_logits_far_from_zero_is_exact() -> None:
    student, targets = random_case(5, 2, 3, 50)
    assert dino_loss(student * 30 + 500, targets).item() == pytest.approx(
        loss_by_definition(student * 30 + 500, targets).item(), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dino_loss__of_half_precision_logits_rounds_only_the_gradient(dtype: torch.dtype) -> None:
    student, targets = random_case(4, 2, 3, 40)
    ours = student.to(dtype).requires_grad_()
    plain = ours.detach().double().requires_grad_()
    loss, expected = dino_loss(ours, targets), loss_by_definition(plain, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert plain.grad is not None
    assert (loss.dtype, ours.grad.dtype) == (torch.float32, dtype)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, plain.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_dino_loss__loss_scale_saves_small_gradients_from_float16() -> None:
    student, targets = random_case(10, 2, 64, 4096)
    scaled, plain = student.half().requires_grad_(), student.half().float().requires_grad_()
    (dino_loss(scaled, targets) * 2.0**16).backward()  # type: ignore[no-untyped-call]
    dino_loss(plain, targets).backward()  # type: ignore[no-untyped-call]
    assert scaled.grad is not None
    assert plain.grad is not None
    assert plain.grad.abs().median() < 6e-8  # the least float16
    torch.testing.assert_close(scaled.grad.float() / 2**16, plain.grad, rtol=2e-3, atol=1e-12)


def test_dino_loss__keeps_no_float32_copy_of_half_precision_logits() -> None:
    student, targets = random_case(10, 2, 2, 1000)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, alone):
        dino_loss(student.bfloat16().requires_grad_(), targets)
    assert [(tensor.dtype, tensor.shape) for tensor in saved] == [
        (torch.bfloat16, student.shape),
        (torch.float32, targets.shape),
    ]


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


def test_teacher_targets__equal_the_definition_and_leave_the_logits() -> None:
    torch.manual_seed(2)
    logits, centre = torch.randn(2, 3, 7), torch.randn(7)
    before = logits.clone()
    expected = torch.exp((logits.double() - centre.double()) / 0.05)
    torch.testing.assert_close(
        teacher_targets(logits, centre, 0.05), (expected / expected.sum(-1, keepdim=True)).float(), rtol=1e-5, atol=0
    )
    assert torch.equal(logits, before)


def test_teacher_targets__of_bfloat16_logits_are_float32_and_finite() -> None:
    targets = teacher_targets(torch.full((2, 1, 8), 300.0, dtype=torch.bfloat16), torch.zeros(8), 0.001)
    assert targets.dtype == torch.float32
    assert torch.isfinite(targets).all()


def sinkhorn_by_definition(logits: Tensor, temperature: float, num_iterations: int = 3) -> Tensor:
    """float64; rows are views of samples, columns prototypes."""
    shares = np.exp(logits.double().flatten(0, 1).numpy() / temperature)
    num_views, num_prototypes = shares.shape
    shares /= shares.sum()
    for _ in range(num_iterations):
        for prototype in range(num_prototypes):
            shares[:, prototype] /= shares[:, prototype].sum() * num_prototypes
        for view in range(num_views):
            shares[view] /= shares[view].sum() * num_views
    return torch.from_numpy(shares * num_views).reshape(logits.shape)


def alone(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_sinkhorn_targets__equal_the_definition(num_iterations: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 6, 10) * 0.3
    before = logits.clone()
    targets = sinkhorn_targets(logits, 0.07, alone, num_iterations)
    expected = sinkhorn_by_definition(logits, 0.07, num_iterations).float()
    torch.testing.assert_close(targets, expected, rtol=1e-4, atol=0)
    assert torch.equal(logits, before)


def test_sinkhorn_targets__balance_prototypes() -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 32, 4) * 0.1 + torch.tensor([0.5, 0.0, 0.0, -0.5])
    usage = sinkhorn_targets(logits, 0.1, alone, 20).mean((0, 1))
    torch.testing.assert_close(usage, torch.full((4,), 0.25), rtol=1e-3, atol=0)


@pytest.mark.parametrize("offset", [-400.0, 400.0])
def test_sinkhorn_targets__of_large_bfloat16_logits_are_finite_shares(offset: float) -> None:
    torch.manual_seed(5)
    logits = torch.randn(2, 3, 50) * 0.2
    logits[..., 0] -= 30  # a prototype that no view is near
    logits[0, 0] *= 30  # a view far nearer to its prototypes than the others are to theirs
    targets = sinkhorn_targets((logits + offset).bfloat16(), 0.04, alone)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 3))


class Ranks:
    """all_reduce between threads."""

    def __init__(self, count: int) -> None:
        self.barrier, self.given, self.lock = threading.Barrier(count, timeout=20), list[Tensor](), threading.Lock()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        with self.lock:
            self.given.append(tensor)
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        if self.barrier.wait() == 0:
            self.given.clear()
        self.barrier.wait()
        return total


def run_threads(works: list[Callable[[], Tensor]]) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda rank=rank, work=work: found.update({rank: work()}))
        for rank, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(works))]


@pytest.mark.parametrize("sizes", [(4, 4), (1, 5, 2)])
def test_sinkhorn_targets__over_ranks_are_those_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(6)
    logits = torch.randn(2, sum(sizes), 12) * 0.3
    ranks = Ranks(len(sizes))
    shares = torch.split(logits, list(sizes), dim=1)
    parts = run_threads([partial(sinkhorn_targets, share, 0.05, ranks.all_reduce) for share in shares])
    torch.testing.assert_close(torch.cat(parts, dim=1), sinkhorn_targets(logits, 0.05, alone), rtol=1e-4, atol=1e-9)


def koleo_by_definition(features: Tensor) -> Tensor:
    logs = []
    for view in features:
        unit = [row / row.norm() for row in view]
        for i, row in enumerate(unit):
            logs.append(-min((row - other).norm() for j, other in enumerate(unit) if j != i).log())
    return torch.stack(logs).mean()


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 2, 3)])
def test_koleo__and_its_gradient_equal_the_definition(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(7)
    ours = torch.randn(shape).requires_grad_()
    plain = ours.detach().double().requires_grad_()
    value, expected = koleo(ours), koleo_by_definition(plain)
    value.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert plain.grad is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, plain.grad.float(), rtol=1e-4, atol=1e-6)


def test_koleo__is_float32_under_autocast() -> None:
    torch.manual_seed(8)
    features = 1 + 0.01 * torch.randn(2, 20, 6)  # so close together that bfloat16 cannot tell who is near
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = koleo(features)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(koleo_by_definition(features.double()).item(), rel=1e-3)


def test_koleo__of_opposite_features() -> None:
    assert koleo(torch.tensor([[[3.0, 0.0], [-1.0, 0.0]]])).item() == pytest.approx(-math.log(2))


def test_koleo__of_twins_and_of_one_sample_has_a_finite_gradient() -> None:
    for features in (torch.ones(2, 3, 4), torch.ones(2, 1, 4)):
        value = koleo(features.requires_grad_())
        value.backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()
        assert torch.isfinite(value)
    assert value.item() == 0.0


def test_next_centre__moves_a_tenth_of_the_way() -> None:
    centre, mean = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])
    torch.testing.assert_close(next_centre(centre, mean), 0.9 * centre + 0.1 * mean)
