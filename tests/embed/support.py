"""Tiny weights, and images that say where they lie."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dinowds.model.architecture import Architecture, Size, describe_architecture
from dinowds.model.vit import build_backbone
from dinowds.shard.build import ShardOptions, build_dataset

TINY = Architecture("image", Size(16, 1, 2), 3, 8, 4)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def write_weights(path: Path, seed: int = 0, scale: float = 1.0, of: Architecture = TINY) -> Path:
    """A checkpoint, of a ViT of depth 1 for 32 px images; teacher and student differ. `scale`: of all features."""
    models = {}
    for number, which in enumerate(("teacher", "student")):
        torch.manual_seed(2 * seed + number)
        state = build_backbone(of).state_dict()
        for name, value in state.items():  # DINO's initialisation is so small that features would hardly differ
            if name.endswith("weight") and value.ndim > 1:
                state[name] = torch.randn_like(value) * value[0].numel() ** -0.5
        state["norm.weight"] = state["norm.weight"] * scale
        models[which] = {f"backbone.{name}": value for name, value in state.items()}
    dataset = {"name": "tiny", "samples": 1, "cohorts": {"a": 1}, "metadata": {}}
    about = {"architecture": describe_architecture(of), "mean": list(MEAN), "std": list(STD), "dataset": dataset}
    torch.save({"format_version": 1, "about": about, **models}, path)
    return path


def coded_image(x: int, y: int, slide: int = 0, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: stripes in red whose number tells x, rows in green that tell y, the slide in blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = (127 * (1 + np.sin(np.arange(width) * (x + 1) / 5))).astype(np.uint8)
    image[..., 1] = (127 * (1 + np.sin(np.arange(height) * (y + 1) / 5))).astype(np.uint8)[:, None]
    image[..., 2] = 50 * slide
    return image


def png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return path


def coded_members(slide: int, columns: int = 6, rows: int = 5) -> dict[str, bytes]:
    """Of slide `s0`, `s1`, …: `s0/X_Y.png`."""
    return {f"s{slide}/{x}_{y}.png": png(coded_image(x, y, slide)) for y in range(rows) for x in range(columns)}


def make_coded_dataset(folder: Path, max_count: int = 13) -> Path:
    """Two cohorts of 30 coded images each, in shards of 13: shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [write_tar(folder / f"{name}.tar", coded_members(slide)) for slide, name in enumerate(("a", "b"))]
    build_dataset(sources, folder / "dataset", ShardOptions(max_count=max_count))
    return folder / "dataset"
