"""From names and shapes to an architecture, and from raw tensors to checked ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinowds.config import Kind
from dinowds.errors import CheckpointError
from dinowds.model.architecture import SIZES, Architecture, Size
from dinowds.model.weights.names import describe_mismatch, shorten
from dinowds.model.weights.weights import Shapes, shapes_of_backbone, shapes_of_head

_BLOCK = re.compile(r"blocks\.(\d{1,4})\.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_GAMMA = ".ls1.gamma"
_COUNTER = "num_batches_tracked"
"""Of batch norm: the only integer."""


def infer_architecture(path: str, shapes: Shapes, num_heads: int | None, pos_interpolation: str) -> Architecture:
    """What a backbone with these names and shapes is. The heads do not show in them: they are given, or known by width
    and depth.

    Raises:
        CheckpointError: it is no ViT of ours, or its heads are not known.
    """
    kind: Kind
    if "patch_embed.proj.weight" in shapes:
        kind, embedding, expected = "image", "patch_embed.proj.weight", "[D, 3, P, P]"
    elif "phi.0.weight" in shapes:
        kind, embedding, expected = "region", "phi.0.weight", "[D, C]"
    else:
        raise CheckpointError(
            f"{path}: has neither patch_embed.proj.weight nor phi.0.weight, so it is not a ViT of images or regions; "
            f"it holds {len(shapes)} tensors ({shorten(sorted(shapes))})"
        )
    shape = shapes[embedding]
    if len(shape) != (4 if kind == "image" else 2) or (kind == "image" and (shape[1] != 3 or shape[2] != shape[3])):
        raise CheckpointError(f"{path}: {embedding} is {list(shape)}, expected {expected}")
    embed_dim, in_dim = shape[:2]
    depth = len({match[1] for name in shapes if (match := _BLOCK.match(name))})
    heads = num_heads or _known_heads(path, kind, embed_dim, depth)
    if embed_dim % heads:
        raise CheckpointError(f"{path}: its {heads} heads cannot share a width of {embed_dim}")
    patch_size = shape[2] if kind == "image" else 1
    grid = _infer_grid(path, shapes.get("pos_embed", ()))
    registers = _infer_registers(path, shapes.get("reg_token"))
    layer_scale = any(name.endswith(_GAMMA) for name in shapes)
    size = Size(embed_dim, depth, heads)
    return Architecture(kind, size, in_dim, patch_size, grid, pos_interpolation, registers, layer_scale)


def _known_heads(path: str, kind: Kind, embed_dim: int, depth: int) -> int:
    known = {size.num_heads for size in SIZES[kind].values() if size[:2] == (embed_dim, depth)}
    if len(known) != 1:
        sizes = ", ".join(f"{name} ({size.embed_dim}, {size.depth})" for name, size in SIZES[kind].items())
        raise CheckpointError(
            f"{path}: does not say how many heads it has, and width {embed_dim} with depth {depth} is none of {sizes}"
        )
    return known.pop()


def _infer_grid(path: str, shape: tuple[int, ...]) -> int:
    side = math.isqrt(max(0, shape[1] - 1)) if len(shape) == 3 else 0
    if side < 1 or side * side + 1 != shape[1]:
        found = list(shape) if shape else "missing"
        raise CheckpointError(f"{path}: pos_embed is {found}, expected [1, n² + 1, D]: a square grid and a class token")
    return side


def _infer_registers(path: str, shape: tuple[int, ...] | None) -> int:
    if shape is None:
        return 0
    if len(shape) != 3:
        raise CheckpointError(f"{path}: reg_token is {list(shape)}, expected [1, R, D]")
    return shape[1]


def check_backbone(path: str, shapes: Shapes, architecture: Architecture) -> None:
    """Raises CheckpointError that names what is missing, unexpected, or of another shape."""
    if mismatch := describe_mismatch(shapes, shapes_of_backbone(architecture)):
        raise CheckpointError(f"{path}: the backbone does not fit a ViT of depth {architecture.size.depth}: {mismatch}")


def check_head(path: str, shapes: Shapes, embed_dim: int) -> None:
    """Raises CheckpointError that names what is missing, unexpected, or of another shape."""
    if not any(name.startswith(("mlp.", "last_layer.")) for name in shapes):
        names = shorten([f"head.{name}" for name in sorted(shapes)])
        raise CheckpointError(
            f"{path}: {len(shapes)} unexpected: {names}; a classifier is not taken for DINO's head, remove it first"
        )
    out_dim = next(iter(shapes.get("last_layer.weight_v", ())), 1)
    expected = shapes_of_head(embed_dim, out_dim, use_bn="mlp.6.weight" in shapes)
    if mismatch := describe_mismatch(_in_head(shapes), _in_head(expected)):
        raise CheckpointError(f"{path}: the head does not fit DINO's: {mismatch}")


def _in_head(shapes: Shapes) -> Shapes:
    return {f"head.{name}": shape for name, shape in shapes.items()}


def shapes_in(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def only_tensors(path: str, values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The same. Raises CheckpointError where something else is among them, or bytes of the file are in two tensors."""
    others = [repr(name) for name, value in values.items() if not _is_plain(name, value)]
    if others:
        raise CheckpointError(f"{path}: {len(others)} entries are not plain tensors: {shorten(others)}")
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values.values()}
    if sum(map(_num_bytes, values.values())) > sum(stored.values()):  # a small file could fill any memory
        raise CheckpointError(f"{path}: its tensors share their values; save each of them on its own")
    return dict(values)


def _is_plain(name: Any, value: Any) -> bool:
    """Whether it is a dense tensor with elements that are in the file: one with a stride of 0 can be of any size."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and 0 < _num_bytes(value) <= value.untyped_storage().nbytes()
    )


def _num_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def as_float32(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous float32 copies.

    Raises:
        CheckpointError: one is of another dtype than float32, float16 and bfloat16, or not finite.
    """
    return {name: _as_float32(path, name, value.detach()) for name, value in tensors.items()}


def _as_float32(path: str, name: str, value: Tensor) -> Tensor:
    if name.endswith(_COUNTER) and value.dtype == torch.int64:
        return value.clone()
    if value.dtype not in _DTYPES:
        raise CheckpointError(f"{path}: {name} is {str(value.dtype)[6:]}, expected float32, float16 or bfloat16")
    if not value.isfinite().all():
        raise CheckpointError(f"{path}: {name} has values that are not finite; the run has diverged, take another file")
    return value.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
