"""Losses and the teacher's targets, as pure functions (DINO: Caron et al. 2021, equations 1–4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
_KOLEO_EPS = 1e-8
_FAR = -60.0
"""Logits count as no further below the largest: the exponential of it, also divided by the views of any batch, is a
float32 above 0, so that no view and no prototype is without a share."""


def teacher_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """t = softmax((T − c) / τ_t), float32.

    Args:
        logits: T, [Q, B, K], of the global views.
        centre: c, [K].
        temperature: τ_t, > 0.
    """
    return F.softmax((logits.float() - centre).div_(temperature), dim=-1)


@torch.no_grad()
def sinkhorn_targets(
    logits: Tensor, temperature: float, all_reduce: Callable[[Tensor], Tensor], num_iterations: int = 3
) -> Tensor:
    """Targets that use all prototypes about equally: exp(T / τ_t), whose prototypes and views are scaled to equal sums
    in turn; float32 [Q, B, K], 1 over K in the end. Over all global views of the global batch together.

    In the place of centring (Sinkhorn 1967, Cuturi 2013; SwAV, Caron et al. 2020, §3.1; DINOv2, Oquab et al. 2023, §4).

    Args:
        logits: T, [Q, B, K], of the global views of all samples of this rank.
        temperature: τ_t, > 0.
        all_reduce: the sum over ranks of a float32 tensor, perhaps in place; called equally often on each rank.
    """
    scaled = logits.float() / temperature
    # Any number that all ranks agree on can be taken off; the mean of their maxima keeps exp within its range.
    shift, num_ranks = all_reduce(torch.stack([scaled.amax(), scaled.new_ones(())])).unbind()
    shares = scaled.sub_(shift / num_ranks).clamp_min_(_FAR).exp_()
    for _ in range(num_iterations):
        shares /= all_reduce(shares.sum((0, 1)))
        shares /= shares.sum(-1, keepdim=True)
    return shares


def dino_loss(student_logits: Tensor, targets: Tensor) -> Tensor:
    """L = mean over pairs (q, v ≠ q) and the batch of −Σ_k t_q[k] · log_softmax(S_v / 0.1)[k]; a scalar, float32.

    The pairs of a view v share its log-softmax: L = −Σ_v <Σ_{q≠v} t_q, log_softmax(S_v / 0.1)> / (pairs · B). It and
    its gradient, which has the logits' dtype, are computed in float32, one view at a time, and nothing is kept between
    them: the most memory is the gradient and two float32 [B, K].

    Args:
        student_logits: S, [V, B, K]; its first Q views are the teacher's.
        targets: t, [Q, B, K], float32; each sums to 1 over K. Without gradient.
    """
    loss: Tensor = _DinoLoss.apply(student_logits, targets)
    return loss


class _DinoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(student_logits, targets)
        total = targets.sum(0)
        loss = targets.new_zeros(())
        for view, logits in enumerate(student_logits):
            log_probs = F.log_softmax(logits.float() / STUDENT_TEMPERATURE, dim=-1)
            loss -= log_probs.mul_(_other_targets(targets, total, view)).sum()
        return loss / _num_terms(student_logits, targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """∂L/∂S_v = (n_v · softmax(S_v / 0.1) − Σ_{q≠v} t_q) / (0.1 · pairs · B), n_v being the number of q ≠ v.

        Computed again rather than kept from `forward`: only here a loss scale is known, without which it is too small
        for float16.
        """
        student_logits, targets = ctx.saved_tensors
        total, gradient = targets.sum(0), torch.empty_like(student_logits)
        scale = gradients[0] / (STUDENT_TEMPERATURE * _num_terms(student_logits, targets))
        for view, logits in enumerate(student_logits):
            probs = F.softmax(logits.float() / STUDENT_TEMPERATURE, dim=-1)
            num_others = len(targets) - (view < len(targets))
            difference = probs.mul_(num_others).sub_(_other_targets(targets, total, view))
            torch.mul(difference, scale, out=difference)
            gradient[view] = difference
        return gradient, None


def _other_targets(targets: Tensor, total: Tensor, view: int) -> Tensor:
    """Σ_{q≠view} t_q, [B, K], where `total` = Σ_q t_q."""
    if view >= len(targets):
        return total
    return torch.cat([targets[:view], targets[view + 1 :]]).sum(0)


def _num_terms(student_logits: Tensor, targets: Tensor) -> int:
    """Pairs (q, v ≠ q) · B."""
    return len(targets) * (len(student_logits) - 1) * targets.shape[1]


def koleo(features: Tensor) -> Tensor:
    """−mean of ln(‖x_i − x_n(i)‖ + 1e-8), where x are the features divided by their L2 norm and n(i) is the nearest
    neighbour of sample i within the same view; a scalar, float32. 0 for one sample, which has no neighbour.

    The Kozachenko–Leonenko estimate of their entropy, negative (Sablayrolles et al. 2019, §3.2; DINOv2, Oquab et al.
    2023, §4).

    Args:
        features: [Q, B, D].
    """
    if features.shape[1] < 2:
        return features.float().sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            similarity = unit @ unit.mT
            similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            nearest = similarity.argmax(-1, keepdim=True).expand_as(unit)
        distances = torch.linalg.vector_norm(unit - unit.gather(1, nearest), dim=-1)
        return -torch.log(distances + _KOLEO_EPS).mean()


def mean_entropy(targets: Tensor) -> Tensor:
    """H(t) = mean over views and batch of −Σ_k t[k] ln t[k], in nats; a scalar. `dino_loss` = H(t) + KL(t‖s)."""
    entropy: Tensor = torch.special.entr(targets).sum(-1).mean()
    return entropy


def next_centre(centre: Tensor, batch_mean: Tensor) -> Tensor:
    """c ← 0.9 c + 0.1 · mean of T over the global batch and the global views; [K]."""
    return torch.lerp(batch_mean, centre, CENTRE_MOMENTUM)
