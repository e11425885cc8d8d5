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


def peak_lr(lr: float, scaling: str, batch_size: int) -> float:
    """The learning rate after the warmup: lr · batch / 256 (`linear`, as in DINO; Goyal et al. 2017) or
    lr · √(batch / 256) (`sqrt`, as in DINOv2; Krizhevsky 2014).

    Args:
        batch_size: samples of a global batch.
    """
    ratio = batch_size / REFERENCE_BATCH
    return lr * (math.sqrt(ratio) if scaling == "sqrt" else ratio)


@dataclass(frozen=True)
class StepValues:
    """What the schedules say for one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    freeze_last_layer: bool


def values_at(config: RunConfig, steps_per_epoch: int, step: int) -> StepValues:
    """All schedules at one step, counted from 0."""
    optim, teacher = config.optim, config.teacher
    num_steps, epoch = optim.epochs * steps_per_epoch, step // steps_per_epoch
    scheduler = optim.lr_scheduler
    lr = peak_lr(optim.lr, optim.lr_scaling, config.train.batch_size)
    return StepValues(
        lr=warmup_cosine(step, lr, scheduler.min_lr, num_steps, round(optim.warmup_epochs * steps_per_epoch)),
        weight_decay=cosine(step, scheduler.weight_decay, scheduler.weight_decay_end, num_steps),
        momentum=cosine(step, teacher.momentum_teacher, teacher.final_momentum_teacher, num_steps),
        teacher_temperature=linear_warmup(
            epoch, teacher.warmup_teacher_temp, teacher.teacher_temp, teacher.warmup_teacher_temp_epochs
        ),
        freeze_last_layer=epoch < optim.freeze_last_layer_epochs,
    )
