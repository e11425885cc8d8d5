"""A Vision Transformer by its formulae, in float64 (Dosovitskiy et al. 2021; Chen et al. 2022 for regions)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.model.weights.files import State


def image_features(state: State, num_heads: int, images: Tensor) -> Tensor:
    """float [N, 3, H, W] on the grid of `pos_embed` → class tokens, float64 [N, D]."""
    state = {name: value.double() for name, value in state.items()}
    kernel = state["patch_embed.proj.weight"]
    side = kernel.shape[-1]
    patches = [
        images[:, :, y : y + side, x : x + side].double().flatten(1)
        for y in range(0, images.shape[2], side)
        for x in range(0, images.shape[3], side)
    ]
    tokens = torch.stack(patches, 1) @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
    return _class_tokens(state, num_heads, tokens)


def region_features(state: State, num_heads: int, regions: Tensor) -> Tensor:
    """float [N, rows, columns, C], NaN where a cell is missing → class tokens, float64 [N, D]."""
    state = {name: value.double() for name, value in state.items()}
    results = []
    for region in regions.double():
        cells = region.flatten(0, 1)
        exists = ~cells.isnan().any(1)
        tokens = _gelu(cells[exists] @ state["phi.0.weight"].T + state["phi.0.bias"])
        positions = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 1:][:, exists]], 1)
        results.append(_class_tokens({**state, "pos_embed": positions}, num_heads, tokens[None]))
    return torch.cat(results)


def _class_tokens(state: State, num_heads: int, tokens: Tensor) -> Tensor:
    x = torch.cat([state["cls_token"].expand(len(tokens), -1, -1), tokens], 1) + state["pos_embed"]
    if "reg_token" in state:  # Darcet et al. 2024: after the positions, and thus without one
        x = torch.cat([x[:, :1], state["reg_token"].expand(len(x), -1, -1), x[:, 1:]], 1)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for i in range(depth):
        block = {name.removeprefix(f"blocks.{i}."): v for name, v in state.items() if name.startswith(f"blocks.{i}.")}
        attended = _attention(block, num_heads, _layer_norm(block, "norm1", x))
        x = x + attended * block.get("ls1.gamma", 1)  # Touvron et al. 2021
        hidden = _gelu(_layer_norm(block, "norm2", x) @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + (hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]) * block.get("ls2.gamma", 1)
    return _layer_norm(state, "norm", x)[:, 0]


def _attention(block: State, num_heads: int, x: Tensor) -> Tensor:
    width = x.shape[-1] // num_heads
    qkv = x @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
    queries, keys, values = qkv.chunk(3, dim=-1)
    heads = []
    for i in range(num_heads):
        q, k, v = (part[..., i * width : (i + 1) * width] for part in (queries, keys, values))
        weights = torch.exp(q @ k.mT / math.sqrt(width))
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    return torch.cat(heads, -1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]


def _layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2
