"""A small DINO run written out, which can be given settings that no run should have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dinowds.config import PatchConfig, load_config
from dinowds.model import head
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import build_pair
from dinowds.train.diagnostics import NormGroups, loss_figures, output_figures, output_sums, teacher_distance
from dinowds.train.loss import dino_loss, mean_entropy, next_centre, teacher_targets

BATCH, SIDE = 32, 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """Those of a run that learns."""

    steps: int = 260
    num_prototypes: int = 64
    batch_norm: bool = True
    lr: float = 3e-3
    warmup: int = 20
    clip: float = 3.0
    temperature: float = 0.04
    centred: bool = True
    momentum: float = 0.98
    num_images: int = 16
    log_every: int = 5


def config_of(settings: Settings) -> PatchConfig:
    """What the monitor is told of these settings."""
    return load_config(
        None,
        [
            f"optim.lr={settings.lr}", "train.batch_size=256", f"student.out_dim={settings.num_prototypes}",
            f"student.use_bn_in_head={settings.batch_norm}", f"optim.clip_grad={settings.clip}",
        ],
    )  # fmt: skip


def figures_of_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, figures) of each log point."""
    monkeypatch.setattr(head, "HIDDEN_DIM", 256)  # most of the work, and of no consequence here
    torch.manual_seed(0)
    config = config_of(settings)
    config.student.drop_path_rate = 0.0
    student, teacher = build_pair(Architecture("image", Size(64, 2, 2), 3, 8, 2), config.student)
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.04, fused=True)
    groups, centre, images = NormGroups(student, CPU), torch.zeros(settings.num_prototypes), textures(settings)
    for step in range(settings.steps):
        lr = settings.lr * min(1.0, step / settings.warmup) if settings.warmup else settings.lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = images[torch.randint(0, len(images), (BATCH,))]
        views = [crops(chosen, 16), crops(chosen, 8)]
        with torch.no_grad():
            taught = teacher(views[:1])
        logits = taught.logits.unflatten(0, (2, BATCH))
        targets = teacher_targets(logits, centre, settings.temperature)
        outputs = student(views)
        loss = dino_loss(outputs.logits.unflatten(0, (4, BATCH)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        if settings.clip:
            for gradient, norm in zip(gradients, norms, strict=True):
                gradient *= min(1.0, settings.clip / (norm.item() + 1e-6))
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                ours.lerp_(theirs, 1 - settings.momentum)
        if settings.centred:
            centre = next_centre(centre, logits.mean((0, 1)))
        if (step + 1) % settings.log_every == 0 or step == 0:
            features = [whole[: 2 * BATCH].unflatten(0, (2, BATCH)) for whole in (outputs.features, taught.features)]
            tensors = {
                **output_figures(output_sums(targets, features[0], features[1]), 2 * BATCH, centre),
                **groups.figures(norms),
                "teacher_distance": teacher_distance(list(teacher.parameters()), parameters),
                "loss": loss,
                "teacher_entropy": mean_entropy(targets),
            }
            figures = {name: value.item() for name, value in tensors.items()}
            figures |= loss_figures(figures["loss"], figures["teacher_entropy"], settings.num_prototypes)
            yield (
                step + 1,
                figures | {"lr": lr, "momentum": settings.momentum, "teacher_temperature": settings.temperature},
            )


def textures(settings: Settings) -> Tensor:
    """[N, 3, SIDE, SIDE]: sums of waves, different for each image."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    frequency = torch.randn(settings.num_images, 3, 4, 2, generator=generator) * 0.6
    phase = torch.rand(settings.num_images, 3, 4, 1, 1, generator=generator) * 6.28
    waves = frequency[..., 0, None, None] * x + frequency[..., 1, None, None] * y + phase
    return waves.cos().mean(2) * 1.5


def crops(images: Tensor, side: int) -> Tensor:
    """Two views of each image: [2 · B, 3, side, side]."""
    views = []
    for _ in range(2):
        top, left = torch.randint(0, SIDE - side + 1, (2,)).tolist()
        contrast = 1 + 0.2 * torch.randn(len(images), 1, 1, 1)
        noise = 0.1 * torch.randn(len(images), 3, side, side)
        views.append(images[:, :, top : top + side, left : left + side] * contrast + noise)
    return torch.cat(views)
