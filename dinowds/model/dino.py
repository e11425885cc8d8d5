"""Student and teacher: a backbone with a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinowds.config import PatchConfig, RegionConfig, RunConfig, StudentConfig
from dinowds.errors import ConfigError
from dinowds.model.architecture import Architecture, size_of
from dinowds.model.head import DinoHead
from dinowds.model.vit import INITIAL_SCALE, ImageViT, build_backbone


class Outputs(NamedTuple):
    """Of N views."""

    features: Tensor
    """[N, D]: class tokens of the backbone."""
    logits: Tensor
    """[N, K]: of the head, over prototypes."""


class DinoModel(nn.Module):
    """`backbone.*` and `head.*`, as in DINO checkpoints."""

    backbone: ImageViT
    head: DinoHead

    def __init__(self, backbone: ImageViT, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor]) -> Outputs:
        """Tensors of equal-sized views, [V_i · B, 3, S_i, S_i] or [V_i · B, s_i, s_i, C] → outputs of all
        N = Σ V_i · B, in the same order.

        One call of the backbone for each size, one of the head for all.
        """
        features = torch.cat([self.backbone(group) for group in views])
        return Outputs(features, self.head(features))


def architecture_of(config: RunConfig) -> Architecture:
    """The backbone that a configuration asks for; that of regions with `student.input_dim` resolved.

    Raises:
        ConfigError: heads that cannot share `student.embed_dim`.
    """
    student, side = config.student, config.crops.global_.size
    size = size_of(config.kind, student.arch, student.embed_dim, student.depth)
    options = (student.pos_interpolation, student.registers, student.layer_scale is not None)
    if isinstance(config, PatchConfig):
        patch_size = config.student.patch_size
        return Architecture("image", size, 3, patch_size, side // patch_size, *options)
    assert isinstance(config, RegionConfig)
    if config.student.input_dim is None:
        raise ConfigError("student.input_dim is null; give the number of features of a cell")
    return Architecture("region", size, config.student.input_dim, 1, side, *options)


def num_prototypes(student: StudentConfig) -> int:
    """K, with `auto` resolved.

    Raises:
        ConfigError: it is `auto` still.
    """
    if not isinstance(student.out_dim, int):
        raise ConfigError(f"student.out_dim is {student.out_dim}; give a number")
    return student.out_dim


def auto_prototypes(num_samples: int) -> int:
    """K for `student.out_dim=auto`: the power of two nearest to a twentieth of the samples, 1,024 to 65,536.

    A twentieth is the share that DINO has on ImageNet: 65,536 prototypes for 1.28 million images.
    """
    return 1 << min(16, max(10, round(math.log2(max(1, num_samples) / 20))))


def build_pair(architecture: Architecture, student: StudentConfig) -> tuple[DinoModel, DinoModel]:
    """Student and teacher with equal weights. The teacher has no stochastic depth and takes no gradient."""
    width = architecture.size.embed_dim

    def build(drop_path_rate: float) -> DinoModel:
        backbone = build_backbone(
            architecture,
            drop_path_rate,
            drop_path_skips=student.drop_path_skips,
            initial_scale=student.layer_scale or INITIAL_SCALE,
        )
        return DinoModel(
            backbone, DinoHead(width, num_prototypes(student), student.use_bn_in_head, student.norm_last_layer)
        )

    learner, teacher = build(student.drop_path_rate), build(0.0)
    teacher.load_state_dict(learner.state_dict())
    teacher.requires_grad_(False)
    return learner, teacher
