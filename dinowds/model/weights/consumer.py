"""The other process of `check`: loads an export with its consumer's calls, prints the features of known inputs."""

from __future__ import annotations

import json
import sys
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dinowds.model.architecture import Architecture, Size
from dinowds.model.vit import build_backbone
from dinowds.model.weights.check import known_features


def _consume(request: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Call → features."""
    said = request["architecture"]
    size = Size(said["embed_dim"], said["depth"], said["num_heads"])
    architecture = Architecture(said["kind"], size, said["in_dim"], said["patch_size"], said["grid"])
    path, mean, std = request["path"], tuple(request["mean"]), tuple(request["std"])
    columns = request["columns"]
    if request["timm"] is None:
        model = _load_like_dino(path, architecture)
        return {"torch.load": known_features(model, architecture, mean, std, columns).tolist()}
    name, arguments = request["timm"]
    hub = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    file = timm.create_model(name, num_classes=0, checkpoint_path=f"{path}/model.safetensors", **arguments).eval()
    said_mean, said_std = hub.pretrained_cfg["mean"], hub.pretrained_cfg["std"]
    return {
        "local-dir": known_features(hub, architecture, tuple(said_mean), tuple(said_std), columns).tolist(),
        "checkpoint_path": known_features(file, architecture, mean, std, columns).tolist(),
    }


def _load_like_dino(path: str, architecture: Architecture) -> nn.Module:
    """As DINO's and HIPT's loaders do, but strictly: they would leave a model as it was where names do not fit."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("teacher", content)
    state = {name.replace("module.", "").replace("backbone.", ""): value for name, value in state.items()}
    model = build_backbone(architecture) if architecture.kind == "region" else _plain_vit(architecture)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    return model.eval()


def _plain_vit(architecture: Architecture) -> nn.Module:
    model: nn.Module = VisionTransformer(
        img_size=architecture.grid * architecture.patch_size,
        patch_size=architecture.patch_size,
        num_classes=0,
        **architecture.size._asdict(),
    )
    return model


if __name__ == "__main__":
    print(json.dumps(_consume(json.load(sys.stdin))))  # noqa: T201 (is what the other process reads)
