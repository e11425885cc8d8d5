"""Schedules, as functions of the optimizer step (counted from 0 over the whole run)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinowds.config import RunConfig

REFERENCE_BATCH = 256


def cosine(step: int, base: float, final: float, num_steps: int) -> float:
    """f + ½ (b − f)(1 + cos(π i / n)), i = 0 … n − 1."""
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / num_steps))


def warmup_cosine(step: int, base: float, final: float, num_steps: int, warmup_steps: int) -> float:
    """linspace(0, b, w), both ends included, then `cosine` over the other n − w steps."""
    if step < warmup_steps:
        return base * step / (warmup_steps - 1) if warmup_steps > 1 else 0.0
    return cosine(step - warmup_steps, base, final, num_steps - warmup_steps)


def linear_warmup(epoch: int, start: float, end: float, warmup_epochs: int) -> float:
    """linspace(start, end, w) per epoch, then `end`."""
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / (warmup_epochs - 1) if warmup_epochs > 1 else start


@dataclass(frozen=True)
class StepValues:
    """What the schedules say for one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    freeze_last_layer: bool


def values_at(config: RunConfig, steps_per_epoch: int, step: int) -> StepValues:
    """All schedules at one step. The peak learning rate is `optim.lr` · batch / 256."""
    optim, teacher = config.optim, config.teacher
    num_steps, epoch = optim.epochs * steps_per_epoch, step // steps_per_epoch
    scheduler = optim.lr_scheduler
    peak_lr = optim.lr * config.train.batch_size / REFERENCE_BATCH
    return StepValues(
        lr=warmup_cosine(step, peak_lr, scheduler.min_lr, num_steps, round(optim.warmup_epochs * steps_per_epoch)),
        weight_decay=cosine(step, scheduler.weight_decay, scheduler.weight_decay_end, num_steps),
        momentum=cosine(step, teacher.momentum_teacher, 1.0, num_steps),
        teacher_temperature=linear_warmup(
            epoch, teacher.warmup_teacher_temp, teacher.teacher_temp, teacher.warmup_teacher_temp_epochs
        ),
        freeze_last_layer=epoch < optim.freeze_last_layer_epochs,
    )
