"""One optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinowds.model.dino import Outputs
from dinowds.model.pixels import normalise
from dinowds.train import dist
from dinowds.train.devices import training_attention
from dinowds.train.diagnostics import output_figures, output_sums, teacher_distance
from dinowds.train.learner import Learner
from dinowds.train.loss import dino_loss, koleo, mean_entropy, next_centre, sinkhorn_targets, teacher_targets
from dinowds.train.optim import apply, clip, set_rates, update_teacher
from dinowds.train.schedule import StepValues
from dinowds.train.sharding import local

Views = Mapping[str, Tensor]
"""Output name → views on the device, the global ones first: uint8 [V, B, 3, S, S] of images, float16 [V, B, s, s, C] of
regions."""

_NUMBERS = ("loss", "teacher_entropy", "koleo", "bad_samples", "stop")
"""What is summed over the global batch, and over ranks: samples that had to be replaced, ranks asked to stop."""


@dataclass(frozen=True)
class StepSettings:
    """What stays the same from step to step; the options are `config.RunConfig`'s."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    micro_batch: int
    """Samples of this rank that go through the model at once; the last part of its share may be smaller."""
    global_batch: int
    clip_grad: float
    seed: int
    rank: int
    clip: str = "tensor"
    centering: str = "ema"
    koleo_weight: float = 0.0


class _Totals:
    """What is summed over micro-batches and ranks, as views of one vector."""

    def __init__(self, num_prototypes: int, num_features: int, diagnose: bool, device: torch.device) -> None:
        num_outputs = 2 * num_prototypes + 4 * num_features if diagnose else 0
        self.flat = torch.zeros(num_prototypes + len(_NUMBERS) + num_outputs, device=device)
        self.logits, self.numbers, self.outputs = self.flat.split([num_prototypes, len(_NUMBERS), num_outputs])  # type: ignore[no-untyped-call]
        """Teacher's logits [K]; `_NUMBERS`; `diagnostics.output_sums`, if they are asked for."""


def train_step(
    learner: Learner,
    settings: StepSettings,
    views: Views,
    step: int,
    values: StepValues,
    num_bad: int = 0,
    stop: bool = False,
    diagnose: bool = False,
) -> dict[str, Tensor]:
    """One update from this rank's share of global batch `step`.

    The batch is accumulated in micro-batches; gradients, centre and metrics are those of the whole global batch. Random
    numbers of the step (dropped paths) come from (seed, step, rank), so they need no saved state. If the loss or a
    gradient is not finite, nothing changes on any rank. The host waits for nothing.

    Args:
        num_bad: this rank's replaced samples.
        stop: this rank was asked to stop.
        diagnose: give the figures of `diagnostics` too.

    Returns:
        0-d tensors on the device: means over the global batch `loss`, `teacher_entropy` and `koleo`; sums over ranks
        `bad_samples` and `stop`; `bad_step`, 1 where nothing was changed; with float16 `loss_scale`, for the next step.
    """
    _seed_step(settings, step)
    set_rates(learner.optimizer, values.lr, values.weight_decay)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.student.zero_grad(set_to_none=True)
    statistics = _batch_statistics(learner)
    totals = _Totals(len(learner.centre), learner.student.backbone.embed_dim, diagnose, settings.device)
    _backward(learner, settings, views, values, totals)
    totals.numbers[-2], totals.numbers[-1] = num_bad, int(stop)
    dist.all_reduce_sum(totals.flat)
    totals.numbers[:-2] /= settings.global_batch
    norms, is_bad = _update(learner, settings, values, totals.numbers[0])
    num_outputs = settings.global_batch * next(iter(views.values())).shape[0]
    centre = next_centre(learner.centre, totals.logits / num_outputs)
    learner.centre.copy_(torch.where(is_bad > 0, learner.centre, centre))
    for buffer, before in statistics:
        buffer.copy_(torch.where(is_bad > 0, before, buffer))
    metrics = {**dict(zip(_NUMBERS, totals.numbers, strict=True)), "bad_step": is_bad}
    if learner.loss_scale:
        metrics["loss_scale"] = learner.loss_scale.value
    if diagnose:
        metrics |= output_figures(totals.outputs, num_outputs, learner.centre) | learner.norm_groups.figures(norms)
        metrics["teacher_distance"] = teacher_distance(*_weights(learner), _reduce(learner))
    return metrics


def _backward(learner: Learner, settings: StepSettings, views: Views, values: StepValues, totals: _Totals) -> None:
    """Accumulate gradients, and into `totals` the sums over this rank's samples."""
    rank_batch = next(iter(views.values())).shape[1]
    starts = range(0, rank_batch, settings.micro_batch)
    parts = [[group[:, start : start + settings.micro_batch] for group in views.values()] for start in starts]
    taught = _taught(learner, settings, parts, values)
    for number, (part, (targets, teacher)) in enumerate(zip(parts, taught, strict=True)):
        of_globals, size = part[0].shape[:2], part[0].shape[1]
        with (
            dist.synchronised(learner.replicated, last=number == len(parts) - 1),
            training_attention(settings.device, settings.autocast_dtype),
        ):
            with _autocast(settings):
                outputs: Outputs = learner.replicated(_model_input(part, settings))
            features = outputs.features[: of_globals.numel()].unflatten(0, of_globals)  # type: ignore[no-untyped-call]
            loss = dino_loss(outputs.logits.unflatten(0, (-1, size)), targets)  # type: ignore[no-untyped-call]
            spread = koleo(features) if settings.koleo_weight > 0 else loss.new_zeros(())
            total = (loss + settings.koleo_weight * spread) * (size / rank_batch)
            (total if learner.loss_scale is None else total * learner.loss_scale.value).backward()  # type: ignore[no-untyped-call]
        totals.logits += teacher.logits.sum((0, 1))
        totals.numbers[:-2] += torch.stack([loss.detach(), mean_entropy(targets), spread.detach()]) * size
        if len(totals.outputs):
            totals.outputs += output_sums(targets, features, teacher.features)


def _taught(
    learner: Learner, settings: StepSettings, parts: list[list[Tensor]], values: StepValues
) -> Iterator[tuple[Tensor, Outputs]]:
    """Of each micro-batch: the teacher's targets [Q, B, K], and its outputs. Balancing needs those of all first."""
    outputs = (_teach(learner, settings, part) for part in parts)
    if settings.centering == "ema":
        for output in outputs:
            yield teacher_targets(output.logits, learner.centre, values.teacher_temperature), output
        return
    whole = list(outputs)
    logits = [output.logits for output in whole]
    balanced = sinkhorn_targets(torch.cat(logits, dim=1), values.teacher_temperature, dist.all_reduce_sum)
    yield from zip(balanced.split([part.shape[1] for part in logits], dim=1), whole, strict=True)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _teach(learner: Learner, settings: StepSettings, part: list[Tensor]) -> Outputs:
    """Of the global views, float32 [Q, B, …]."""
    with _autocast(settings):
        outputs: Outputs = learner.teacher(_model_input(part[:1], settings))
    return Outputs(*(output.float().unflatten(0, part[0].shape[:2]) for output in outputs))  # type: ignore[no-untyped-call]


def _model_input(part: list[Tensor], settings: StepSettings) -> list[Tensor]:
    """[V, B, …] → [V · B, …]; images are normalised, features go as they are."""
    dtype = settings.autocast_dtype or torch.float32
    flat = [group.flatten(0, 1) for group in part]
    return [normalise(group, dtype) if group.dtype == torch.uint8 else group for group in flat]


def _update(learner: Learner, settings: StepSettings, values: StepValues, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Clip, drop the frozen last layer's gradient, step, move the teacher. Returns the gradients' norms [n], and 1 if
    nothing of it was done, else 0.
    """
    gradients = local(parameter.grad for parameter in learner.student.parameters() if parameter.grad is not None)
    if learner.loss_scale:
        torch._foreach_mul_(gradients, learner.loss_scale.value.reciprocal())
    norms = clip(gradients, settings.clip_grad, settings.clip, _reduce(learner))
    is_bad = 1 - (loss.isfinite() & norms.isfinite().all()).float()
    if values.freeze_last_layer:
        for parameter in learner.student.head.last_layer.parameters():
            parameter.grad = None
    apply(learner.optimizer, is_bad)
    update_teacher(*_weights(learner), values.momentum, is_bad)
    if learner.loss_scale:
        learner.loss_scale.update(is_bad)
    return norms, is_bad


def _weights(learner: Learner) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's of the teacher and of the student."""
    return local(learner.teacher.parameters()), local(learner.student.parameters())


def _reduce(learner: Learner) -> Callable[[Tensor], Tensor] | None:
    """Sums over the ranks that share a tensor; None where each holds it whole."""
    return dist.all_reduce_sum if learner.is_sharded else None


def _batch_statistics(learner: Learner) -> list[tuple[Tensor, Tensor]]:
    """Running means and variances of batch norm, which a forward pass changes, and copies of them."""
    buffers = [b for model in (learner.student, learner.teacher) for b in model.buffers()]
    return [(buffer, buffer.clone()) for buffer in buffers]


def _autocast(settings: StepSettings) -> AbstractContextManager[object]:
    if settings.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(settings.device.type, dtype=settings.autocast_dtype)


def _seed_step(settings: StepSettings, step: int) -> None:
    sequence = np.random.SeedSequence(settings.seed, spawn_key=(step, settings.rank))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
