"""One optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinowds.model.dino import DinoModel
from dinowds.model.pixels import normalise
from dinowds.train import dist
from dinowds.train.loss import dino_loss, mean_entropy, next_centre, teacher_targets
from dinowds.train.optim import clip_per_tensor, set_rates, update_teacher
from dinowds.train.schedule import StepValues

Views = Mapping[str, Tensor]
"""Output name → views: uint8 [V, B, 3, S, S] of images, float16 [V, B, s, s, C] of regions; the global ones first."""

METRICS = ("loss", "teacher_entropy", "bad_samples", "stop")
"""What a step returns: means over the global batch, then counts over all ranks: samples of the batch that had to be
replaced, and ranks that were asked to stop."""


@dataclass
class Learner:
    """All that a step changes."""

    student: DinoModel
    replicated: nn.Module
    """The student, or its DistributedDataParallel."""
    teacher: DinoModel
    optimizer: torch.optim.Optimizer
    centre: Tensor
    """[K], float32."""


@dataclass(frozen=True)
class StepSettings:
    """What stays the same from step to step."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    micro_batch: int
    """Samples of this rank that go through the model at once; the last part of its share may be smaller."""
    global_batch: int
    clip_grad: float
    seed: int
    rank: int


def train_step(
    learner: Learner,
    settings: StepSettings,
    views: Views,
    step: int,
    values: StepValues,
    num_bad: int = 0,
    stop: bool = False,
) -> Tensor:
    """One update from this rank's share of global batch `step`. Returns the numbers named in `METRICS`, on the device.

    The batch is accumulated in micro-batches; gradients, centre and metrics are those of the whole global batch. Random
    numbers of the step (dropped paths) come from (seed, step, rank), so they need no saved state.

    Args:
        num_bad: this rank's replaced samples.
        stop: this rank was asked to stop.
    """
    _seed_step(settings, step)
    set_rates(learner.optimizer, values.lr, values.weight_decay)
    learner.optimizer.zero_grad(set_to_none=True)
    # One transfer of contiguous pinned memory; slices of it would be copied through pageable memory.
    on_device = {name: group.to(settings.device, non_blocking=True) for name, group in views.items()}
    sums = _backward(learner, settings, on_device, values)
    sums[-2], sums[-1] = num_bad, int(stop)
    dist.all_reduce_sum(sums)
    _update(learner, settings, values)
    num_views = next(iter(views.values())).shape[0]
    learner.centre.copy_(next_centre(learner.centre, sums[: -len(METRICS)] / (settings.global_batch * num_views)))
    metrics = sums[-len(METRICS) :].clone()
    metrics[:2] /= settings.global_batch
    return metrics


def _backward(learner: Learner, settings: StepSettings, views: Views, values: StepValues) -> Tensor:
    """Accumulate gradients; return [Σ teacher logits (K), Σ loss, Σ entropy, 0, 0], sums over this rank's samples."""
    rank_batch = next(iter(views.values())).shape[1]
    starts = range(0, rank_batch, settings.micro_batch)
    sums = torch.zeros(len(learner.centre) + len(METRICS), device=settings.device)
    for start in starts:
        part = [group[:, start : start + settings.micro_batch] for group in views.values()]
        num_teacher_views, size = part[0].shape[:2]
        with _synchronised(learner.replicated, last=start == starts[-1]):
            with _autocast(settings):
                groups = [_model_input(group, settings.autocast_dtype or torch.float32) for group in part]
                with torch.no_grad():
                    teacher_logits = learner.teacher(groups[:1]).logits.float().unflatten(0, (num_teacher_views, size))
                student_logits = learner.replicated(groups).logits.unflatten(0, (-1, size))
            targets = teacher_targets(teacher_logits, learner.centre, values.teacher_temperature)
            loss = dino_loss(student_logits, targets)
            (loss * (size / rank_batch)).backward()  # type: ignore[no-untyped-call]
        sums[: -len(METRICS)] += teacher_logits.sum((0, 1))
        sums[-len(METRICS) : -2] += torch.stack([loss.detach(), mean_entropy(targets)]) * size
    return sums


def _model_input(views: Tensor, dtype: torch.dtype) -> Tensor:
    """[V, B, …] → [V · B, …]; images are normalised, features go as they are."""
    views = views.flatten(0, 1)
    return normalise(views, dtype) if views.dtype == torch.uint8 else views


def _update(learner: Learner, settings: StepSettings, values: StepValues) -> None:
    """Clip, drop the frozen last layer's gradient, step, move the teacher."""
    if settings.clip_grad > 0:
        clip_per_tensor(_gradients(learner.student), settings.clip_grad)
    if values.freeze_last_layer:
        for parameter in learner.student.head.last_layer.parameters():
            parameter.grad = None
    learner.optimizer.step()
    update_teacher(list(learner.teacher.parameters()), list(learner.student.parameters()), values.momentum)


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _synchronised(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Average gradients over ranks with the last micro-batch only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def _autocast(settings: StepSettings) -> AbstractContextManager[object]:
    if settings.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(settings.device.type, dtype=settings.autocast_dtype)


def _seed_step(settings: StepSettings, step: int) -> None:
    sequence = np.random.SeedSequence(settings.seed, spawn_key=(step, settings.rank))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
