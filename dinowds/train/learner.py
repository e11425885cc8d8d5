"""What a run learns: student, teacher, optimizer and centre; how they begin and how they are saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo

from dinowds.config import RunConfig
from dinowds.model.dino import DinoModel, architecture_of, build_pair, num_prototypes
from dinowds.train import dist, sharding
from dinowds.train.diagnostics import NormGroups
from dinowds.train.optim import build_optimizer

_LOSS_SCALE = 2.0**16
_MOST_LOSS_SCALE = 2.0**24
_STEPS_TO_GROW = 2000


@dataclass
class LossScale:
    """What float16 gradients are multiplied with so that small ones do not vanish: halved after a step that overflowed,
    doubled after 2,000 that did not. (Micikevicius et al. 2018.)
    """

    value: Tensor
    """0-d, float32."""
    good_steps: Tensor
    """0-d, float32: since it last changed."""

    @classmethod
    def on(cls, device: torch.device) -> LossScale:
        return cls(torch.tensor(_LOSS_SCALE, device=device), torch.tensor(0.0, device=device))

    def update(self, is_bad: Tensor) -> None:
        """Without waiting for the device."""
        good_steps = (self.good_steps + 1) * (1 - is_bad)
        grows = good_steps >= _STEPS_TO_GROW
        factor = torch.where(is_bad > 0, 0.5, torch.where(grows, 2.0, 1.0))
        self.value.mul_(factor).clamp_(1.0, _MOST_LOSS_SCALE)
        self.good_steps.copy_(torch.where(grows, 0.0, good_steps))


@dataclass
class Learner:
    """All that a step changes."""

    student: DinoModel
    replicated: nn.Module
    """The student, or its DistributedDataParallel; where it is sharded, itself."""
    teacher: DinoModel
    optimizer: torch.optim.Optimizer
    centre: Tensor
    """[K], float32."""
    loss_scale: LossScale | None = None
    """For float16 alone."""
    norm_groups: NormGroups = field(init=False)

    def __post_init__(self) -> None:
        self.norm_groups = NormGroups(self.student, self.centre.device)

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds but its share of weights and optimizer state."""
        return sharding.is_sharded(self.student)


def initial_models(config: RunConfig) -> tuple[DinoModel, DinoModel]:
    """Student and teacher as a run with this configuration begins: their weights come from `train.seed`."""
    torch.manual_seed(int(np.random.SeedSequence(config.train.seed).generate_state(1)[0]))
    return build_pair(architecture_of(config), config.student)


def models_on(config: RunConfig, device: torch.device) -> tuple[DinoModel, DinoModel]:
    """`initial_models` on `device`, the same on all ranks, made to compute as the configuration says."""
    models = [dist.synchronise_batch_norm(model.to(device), device) for model in initial_models(config)]
    if config.train.compile:
        _compile_blocks([block for model in models for block in model.backbone.blocks])
    student, teacher = models
    student.backbone.set_grad_checkpointing(config.speed.checkpoint_activations)
    return student, teacher


def _compile_blocks(blocks: list[nn.Module]) -> None:
    """Blocks share their code, and a kernel of it is made for each rate of dropped paths, for fixed and for varying
    sizes. Beyond torch's limit of eight the blocks that are left would not be compiled.
    """
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile()


def build_learner(config: RunConfig, student: DinoModel, teacher: DinoModel, device: torch.device) -> Learner:
    """What a run trains, from the models of `models_on`; replicates or shards them over the ranks."""
    is_sharded = config.speed.sharding == "fsdp" and dist.is_distributed()
    if is_sharded:
        for model in (student, teacher):
            sharding.shard(model, device)
    optimizer = build_optimizer(student, config.optim.layer_decay)
    if is_sharded:
        sharding.shard_optimizer(optimizer)
    return Learner(
        student=student,
        replicated=student if is_sharded else dist.replicate(student, device),
        teacher=teacher,
        optimizer=optimizer,
        centre=torch.zeros(num_prototypes(config.student), device=device),
        loss_scale=LossScale.on(device) if config.speed.precision == "fp16" else None,
    )


def learner_state(learner: Learner) -> dict[str, Any]:
    """For a checkpoint: `student`, `teacher`, `optimizer`, `dino_loss` {`center` [1, K]}, `loss_scale` [2] or None.

    All ranks call it together. Of sharded models the tensors are on rank 0 alone.
    """
    scale = learner.loss_scale
    return {
        "student": sharding.full_model_state(learner.student),
        "teacher": sharding.full_model_state(learner.teacher),
        "optimizer": sharding.full_optimizer_state(learner.optimizer),
        "dino_loss": {"center": learner.centre[None]},
        "loss_scale": torch.stack([scale.value, scale.good_steps]) if scale else None,
    }


def load_learner_state(learner: Learner, state: dict[str, Any]) -> None:
    """Of a `learner_state`, which every rank has, of any number of ranks. Raises KeyError, RuntimeError or ValueError
    where it is of another model.
    """
    sharding.load_full_model_state(learner.student, state["student"])
    sharding.load_full_model_state(learner.teacher, state["teacher"])
    sharding.load_full_optimizer_state(learner.optimizer, state["optimizer"])
    learner.centre.copy_(state["dino_loss"]["center"][0])
    if learner.loss_scale and state.get("loss_scale") is not None:
        value, good_steps = state["loss_scale"].to(learner.centre.device)
        learner.loss_scale.value.copy_(value)
        learner.loss_scale.good_steps.copy_(good_steps)
