"""Student and teacher: a backbone with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinowds.config import StudentConfig
from dinowds.model.head import DinoHead
from dinowds.model.vit import build_vit, size_of


class DinoModel(nn.Module):
    """`backbone.*` and `head.*`, as in DINO checkpoints."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Tensors of equal-sized views [V_i · B, 3, S_i, S_i] → logits [Σ V_i · B, K], in the same order.

        One call of the backbone for each size, one of the head for all.
        """
        return self.head(torch.cat([self.backbone(group) for group in views]))  # type: ignore[no-any-return]


def build_pair(student: StudentConfig, image_size: int) -> tuple[DinoModel, DinoModel]:
    """Student and teacher with equal weights. The teacher has no stochastic depth and takes no gradient."""
    width = size_of(student).embed_dim

    def build(drop_path_rate: float) -> DinoModel:
        backbone = build_vit(student, image_size, drop_path_rate)
        return DinoModel(backbone, DinoHead(width, student.out_dim, student.use_bn_in_head, student.norm_last_layer))

    learner, teacher = build(student.drop_path_rate), build(0.0)
    teacher.load_state_dict(learner.state_dict())
    teacher.requires_grad_(False)
    return learner, teacher
