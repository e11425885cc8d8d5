"""Files as the other systems write them: names and shapes are spelled out here, not taken from our modules."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinowds.model.architecture import Size

TINY_IMAGE = Size(12, 2, 3)
TINY_REGION = Size(8, 2, 2)
HIDDEN, BOTTLENECK = 16, 6
"""Of the heads in these files; the fixture `tiny` makes ours as small."""

State = dict[str, Tensor]


def image_state(
    size: Size = TINY_IMAGE,
    patch_size: int = 4,
    grid: int = 3,
    seed: int = 0,
    registers: int = 0,
    layer_scale: bool = False,
) -> State:
    """A backbone as in the original DINO's files; registers and LayerScale with timm's names."""
    width = size.embed_dim
    first = {"patch_embed.proj.weight": (width, 3, patch_size, patch_size), "patch_embed.proj.bias": (width,)}
    return _fill(first | _trunk(size, grid) | _newer(size, registers, layer_scale), seed)


def region_state(
    size: Size = TINY_REGION,
    in_dim: int = 10,
    grid: int = 3,
    seed: int = 0,
    registers: int = 0,
    layer_scale: bool = False,
) -> State:
    """A backbone as in HIPT's files of regions."""
    first = {"phi.0.weight": (size.embed_dim, in_dim), "phi.0.bias": (size.embed_dim,)}
    return _fill(first | _trunk(size, grid) | _newer(size, registers, layer_scale), seed)


def _newer(size: Size, registers: int, layer_scale: bool) -> dict[str, tuple[int, ...]]:
    """What the original DINO does not have."""
    tokens = {"reg_token": (1, registers, size.embed_dim)} if registers else {}
    places = [f"blocks.{i}.{name}.gamma" for i in range(size.depth) for name in ("ls1", "ls2")] if layer_scale else []
    return tokens | dict.fromkeys(places, (size.embed_dim,))


def _trunk(size: Size, grid: int) -> dict[str, tuple[int, ...]]:
    width, hidden = size.embed_dim, 4 * size.embed_dim
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, grid * grid + 1, width)}
    for block in (f"blocks.{i}." for i in range(size.depth)):
        shapes |= {
            f"{block}norm1.weight": (width,), f"{block}norm1.bias": (width,),
            f"{block}attn.qkv.weight": (3 * width, width), f"{block}attn.qkv.bias": (3 * width,),
            f"{block}attn.proj.weight": (width, width), f"{block}attn.proj.bias": (width,),
            f"{block}norm2.weight": (width,), f"{block}norm2.bias": (width,),
            f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,),
            f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,),
        }  # fmt: skip
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def head_state(
    in_dim: int,
    out_dim: int = 5,
    use_bn: bool = False,
    hidden: int = HIDDEN,
    bottleneck: int = BOTTLENECK,
    seed: int = 1,
) -> State:
    """DINO's head: Linear layers at 0, 2, 4, or with batch norm at 0, 3, 6."""
    shapes: dict[str, tuple[int, ...]] = {}
    places = (0, 3, 6) if use_bn else (0, 2, 4)
    for place, (rows, columns) in zip(places, ((hidden, in_dim), (hidden, hidden), (bottleneck, hidden)), strict=True):
        shapes |= {f"mlp.{place}.weight": (rows, columns), f"mlp.{place}.bias": (rows,)}
    for place in (1, 4) if use_bn else ():
        shapes |= {f"mlp.{place}.{name}": (hidden,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"last_layer.weight_g": (out_dim, 1), "last_layer.weight_v": (out_dim, bottleneck)}
    counters = {f"mlp.{place}.num_batches_tracked": torch.tensor(7) for place in ((1, 4) if use_bn else ())}
    return _fill(shapes, seed) | counters


def _fill(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def wrap(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def full(model: State, student: State, **others: Any) -> dict[str, Any]:
    """A full checkpoint; the student is under DistributedDataParallel."""
    return {
        "student": wrap(student, "module."),
        "teacher": model,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 3,
        "dino_loss": {"center": torch.zeros(1, 5)},
        "fp16_scaler": {"scale": 1024.0},
        **others,
    }


def original_dino(teacher: State, student: State) -> dict[str, Any]:
    args = argparse.Namespace(arch="vit_small", patch_size=16, lr=0.0005, local_crops_scale=(0.05, 0.4), gpu=0)
    return full(teacher, student, args=args)


def reference(teacher: State, student: State) -> dict[str, Any]:
    """Its schedules are arrays of numpy, so the learning rate is a scalar of numpy."""
    groups = [{"lr": np.float64(0.25), "weight_decay": np.float32(0.5), "params": [np.int64(3)]}]
    return full(teacher, student, optimizer={"state": {}, "param_groups": groups})


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_equal(found: State | None, expected: State) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
