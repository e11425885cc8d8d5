"""The weights of a trained model, and what is known of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinowds.model.architecture import Architecture
from dinowds.model.head import DinoHead
from dinowds.model.pixels import Channels
from dinowds.model.vit import ImageViT, build_backbone
from dinowds.model.weights.layout import with_position_in_class_token

Which = Literal["teacher", "student"]
MODELS: tuple[Which, ...] = ("teacher", "student")

FAMILIES = ("dinowds", "dino", "hipt", "reference", "timm")
"""Where weights come from. `reference`: the tarball-based trainer whose files have no `args`; see docs/weights.md."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """A backbone, perhaps with its head. `load_backbone` makes a model of it."""

    path: str
    """As it was given."""
    family: str
    """One of `FAMILIES`."""
    which: Which
    """Of a file that holds one model and does not say which: as it was asked for."""
    architecture: Architecture
    backbone: dict[str, Tensor]
    """float32, with the names and shapes of `build_backbone(architecture).state_dict()`."""
    head: dict[str, Tensor] | None
    """float32, with the names and shapes of `DinoHead(...).state_dict()`; None where the file has none."""
    mean: Channels
    std: Channels
    """Of the images, as shares of 255; not used for regions."""
    about: dict[str, Any]
    """What the file says of its data: `name`, `samples`, `cohorts` {name: samples}, `metadata`, `mpp`; or nothing."""
    fingerprint: str
    """See `fingerprint_of`."""
    step: int | None = None
    """Optimizer steps done, where the file says so."""


def fingerprint_of(backbone: Mapping[str, Tensor], architecture: Architecture, mean: Channels, std: Channels) -> str:
    """sha256 of all that features depend on: the backbone's names, shapes and values, its heads, `pos_interpolation`,
    and the normalisation. Beside registers, only the sum of class token and position counts (see `layout`).
    """
    digest = hashlib.sha256()
    facts = [architecture.size.num_heads, architecture.pos_interpolation, list(mean), list(std)]
    digest.update(json.dumps(facts).encode())
    for name, value in sorted(with_position_in_class_token(backbone).items()):
        digest.update(json.dumps([name, list(value.shape)]).encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def load_backbone(weights: Weights) -> ImageViT:
    """The model, on the CPU, in eval mode, taking no gradient; the tensors are copies. Draws no random numbers."""
    with torch.device("meta"):
        backbone: ImageViT = build_backbone(weights.architecture)
    backbone.load_state_dict({name: value.clone() for name, value in weights.backbone.items()}, assign=True)
    backbone.eval().requires_grad_(False)
    return backbone


def shapes_of_backbone(architecture: Architecture) -> Shapes:
    with torch.device("meta"):
        return shapes_of(build_backbone(architecture))


def shapes_of_head(in_dim: int, out_dim: int, use_bn: bool) -> Shapes:
    with torch.device("meta"):
        return shapes_of(DinoHead(in_dim, out_dim, use_bn))


def shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
