"""The DINO loss, as pure functions (Caron et al. 2021, equations 1–4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9


def teacher_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """t = softmax((T − c) / τ_t), float32.

    Args:
        logits: T, [Q, B, K], of the global views.
        centre: c, [K].
        temperature: τ_t, > 0.
    """
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


def dino_loss(student_logits: Tensor, targets: Tensor) -> Tensor:
    """L = mean over pairs (q, v ≠ q) and the batch of −Σ_k t_q[k] · log_softmax(S_v / 0.1)[k]; a scalar, float32.

    Args:
        student_logits: S, [V, B, K]; its first Q views are the teacher's.
        targets: t, [Q, B, K].
    """
    log_probs = F.log_softmax(student_logits.float() / STUDENT_TEMPERATURE, dim=-1)
    cross_entropy = -torch.einsum("qbk,vbk->qv", targets, log_probs) / targets.shape[1]
    num_pairs = cross_entropy.numel() - len(targets)
    return (cross_entropy.sum() - cross_entropy.diagonal().sum()) / num_pairs


def mean_entropy(targets: Tensor) -> Tensor:
    """H(t) = mean over views and batch of −Σ_k t[k] ln t[k], in nats; a scalar. `dino_loss` = H(t) + KL(t‖s)."""
    entropy: Tensor = torch.special.entr(targets).sum(-1).mean()
    return entropy


def next_centre(centre: Tensor, batch_mean: Tensor) -> Tensor:
    """c ← 0.9 c + 0.1 · mean of T over the global batch and the global views; [K]."""
    return torch.lerp(batch_mean, centre, CENTRE_MOMENTUM)
