"""A folder of timm: `config.json` beside the weights, as on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinowds.errors import CheckpointError
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels
from dinowds.model.weights.content import read_json
from dinowds.model.weights.facts import read_channels

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_WEIGHTS_NAMES = (WEIGHTS_NAME, "pytorch_model.bin")
_PLAIN_VIT = re.compile(r"vit_(tiny|small|base|large|huge)_patch\d+_(\d+|(reg4_)?dinov2)(\.\w+)?")
"""Other ViTs of timm can have the same names of weights and compute something else with them."""
_SHOWN_BY_SHAPES = {
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "dynamic_img_size", "num_classes", "reg_tokens",
    "init_values",
}  # fmt: skip
_PLAIN_ARGS = {"global_pool": "token", "in_chans": 3, "qkv_bias": True, "class_token": True}


@dataclass(frozen=True)
class TimmConfig:
    """What `config.json` says."""

    num_heads: int | None
    mean: Channels
    std: Channels
    classifier: frozenset[str]
    """Names of weights of the classifier that it declares; features do not need it."""


def find_weights(folder: Path) -> Path | None:
    """The file of weights in a folder of timm; None where it is another folder."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    return next((folder / name for name in _WEIGHTS_NAMES if (folder / name).is_file()), None)


def find_config(weights: Path) -> Path | None:
    """The configuration that lies beside a file of weights."""
    config = weights.with_name(CONFIG_NAME)
    return config if weights.name in _WEIGHTS_NAMES and config.is_file() else None


def read_config(path: Path) -> TimmConfig:
    """Raises CheckpointError for a model that is not a plain ViT with its class token as the feature."""
    config = read_json(path)
    pretrained = _dict_in(path, config, "pretrained_cfg") or config  # of older timm: one level
    model_args = _dict_in(path, config, "model_args")
    architecture = str(config.get("architecture"))
    if not _PLAIN_VIT.fullmatch(architecture):
        raise CheckpointError(f"{path}: architecture is {architecture[:80]}, expected a plain ViT, vit_*_patch*_*")
    has_registers = bool(model_args.get("reg_tokens", "_reg4_" in architecture))
    plain = {**_PLAIN_ARGS, "no_embed_class": has_registers}
    assumed = {"global_pool": config.get("global_pool", "token"), "no_embed_class": "_reg4_" in architecture}
    for name, value in {**assumed, **model_args}.items():
        if name not in _SHOWN_BY_SHAPES and (name not in plain or value != plain[name]):
            raise CheckpointError(f"{path}: {name} is {str(value)[:80]}, which is not a plain ViT's")
    num_heads = model_args.get("num_heads")
    if num_heads is not None and (type(num_heads) is not int or num_heads < 1):
        raise CheckpointError(f"{path}: num_heads is {str(num_heads)[:80]}, expected a number above 0")
    return TimmConfig(
        num_heads,
        read_channels(str(path), "mean", pretrained.get("mean", IMAGENET_MEAN)),
        read_channels(str(path), "std", pretrained.get("std", IMAGENET_STD)),
        _classifier(config, pretrained),
    )


def _classifier(config: dict[str, Any], pretrained: dict[str, Any]) -> frozenset[str]:
    num_classes = config.get("num_classes", pretrained.get("num_classes"))
    if not num_classes or pretrained.get("classifier", "head") != "head":
        return frozenset()
    return frozenset({"head.weight", "head.bias"})


def _dict_in(path: Path, content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, expected an object")
    return value
