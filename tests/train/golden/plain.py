"""DINO training written out from its formulae, in float64, one view and one tensor at a time.

Caron et al. 2021 (loss, centre, schedules, head), Dosovitskiy et al. 2021 (ViT), Chen et al. 2022 (regions), Loshchilov
and Hutter 2019 (AdamW). Nothing of the package is used here: it is what the package is measured against.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Recipe:
    num_heads: int
    depth: int
    patch_size: int | None
    """None for regions, whose cells are tokens."""
    lr: float
    batch_size: int
    steps_per_epoch: int
    epochs: int
    warmup_epochs: int
    min_lr: float
    weight_decay: float
    weight_decay_end: float
    momentum: float
    warmup_temperature: float
    temperature: float
    warmup_temperature_epochs: int
    freeze_last_layer_epochs: int
    clip: float


@dataclass
class Plain:
    """A run; `step` is one optimizer step."""

    recipe: Recipe
    student: State
    teacher: State
    centre: Tensor
    first: State = field(default_factory=dict)
    second: State = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    number: int = 0
    """Of steps done."""
    paths: deque[Tensor] = field(default_factory=deque)
    """What the residual branches of the student are multiplied with, [N] each, in the order of their computation; empty
    where all of them are kept."""

    @classmethod
    def of(cls, recipe: Recipe, state: State) -> Plain:
        def copy() -> State:
            return {name: value.detach().double().clone() for name, value in state.items()}

        student = {name: value.requires_grad_() for name, value in copy().items()}
        return cls(recipe, student, copy(), torch.zeros(len(state["head.last_layer.weight_g"]), dtype=torch.float64))

    def step(self, groups: list[Tensor]) -> float:
        """Views of each size, [V, B, …], the global ones first. Returns the loss."""
        global_views = list(groups[0])
        with torch.no_grad():
            teacher = [self.head(self.teacher, self.backbone(self.teacher, view)) for view in global_views]
        student = []
        for group in groups:  # views of one size are computed together, which matters to dropped paths alone
            features = self.backbone(self.student, group.flatten(0, 1), self.paths)
            student += list(self.head(self.student, features).reshape(*group.shape[:2], -1))
        temperature = self.teacher_temperature()
        terms = []
        for q, logits in enumerate(teacher):
            target = torch.softmax((logits - self.centre) / temperature, dim=-1)
            for v, view in enumerate(student):
                if v != q:
                    terms.append(-(target * torch.log_softmax(view / 0.1, dim=-1)).sum(-1).mean())
        loss = torch.stack(terms).mean()
        gradients = dict(zip(self.student, torch.autograd.grad(loss, list(self.student.values())), strict=True))
        self.update(gradients)
        self.centre = 0.9 * self.centre + 0.1 * torch.cat(teacher).mean(0)
        self.number += 1
        return float(loss.detach())

    @torch.no_grad()
    def update(self, gradients: State) -> None:
        recipe = self.recipe
        lr, decay, momentum = self.lr(), self.decay(), self.momentum()
        frozen = self.number // recipe.steps_per_epoch < recipe.freeze_last_layer_epochs
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, recipe.clip / (float(gradient.norm()) + 1e-6))
            if frozen and "last_layer" in name:
                continue
            self.adamw(name, gradient, lr, decay if gradient.ndim > 1 else 0.0)
        for name, weight in self.student.items():
            self.teacher[name] = momentum * self.teacher[name] + (1 - momentum) * weight

    def adamw(self, name: str, gradient: Tensor, lr: float, decay: float) -> None:
        weight, zero = self.student[name], torch.zeros_like(gradient)
        count = self.updates[name] = self.updates.get(name, 0) + 1
        self.first[name] = 0.9 * self.first.get(name, zero) + 0.1 * gradient
        self.second[name] = 0.999 * self.second.get(name, zero) + 0.001 * gradient**2
        mean, variance = self.first[name] / (1 - 0.9**count), self.second[name] / (1 - 0.999**count)
        weight.mul_(1 - lr * decay)
        weight.sub_(lr * mean / (variance.sqrt() + 1e-8))

    def lr(self) -> float:
        recipe, i = self.recipe, self.number
        peak, warmup = recipe.lr * recipe.batch_size / 256, recipe.warmup_epochs * recipe.steps_per_epoch
        if i < warmup:
            return peak * i / (warmup - 1)
        n = recipe.epochs * recipe.steps_per_epoch - warmup
        return recipe.min_lr + 0.5 * (peak - recipe.min_lr) * (1 + math.cos(math.pi * (i - warmup) / n))

    def over_all(self, begin: float, end: float) -> float:
        n = self.recipe.epochs * self.recipe.steps_per_epoch
        return end + 0.5 * (begin - end) * (1 + math.cos(math.pi * self.number / n))

    def decay(self) -> float:
        return self.over_all(self.recipe.weight_decay, self.recipe.weight_decay_end)

    def momentum(self) -> float:
        return self.over_all(self.recipe.momentum, 1.0)

    def teacher_temperature(self) -> float:
        recipe, epoch = self.recipe, self.number // self.recipe.steps_per_epoch
        if epoch >= recipe.warmup_temperature_epochs:
            return recipe.temperature
        rise = recipe.temperature - recipe.warmup_temperature
        return recipe.warmup_temperature + rise * epoch / (recipe.warmup_temperature_epochs - 1)

    def backbone(self, state: State, views: Tensor, paths: deque[Tensor] | None = None) -> Tensor:
        """[N, 3, S, S] or [N, s, s, C] → [N, D]."""
        weights = {name.removeprefix("backbone."): value for name, value in state.items() if "backbone." in name}
        tokens, exists = self.cells(weights, views) if self.recipe.patch_size is None else self.squares(weights, views)
        side, width = math.isqrt(tokens.shape[1]), tokens.shape[2]
        grid = math.isqrt(weights["pos_embed"].shape[1] - 1)
        positions = weights["pos_embed"][:, 1:]
        if side != grid:
            image = positions.reshape(1, grid, grid, width).permute(0, 3, 1, 2)
            image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)
            positions = image.permute(0, 2, 3, 1).reshape(1, side * side, width)
        first = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(len(tokens), 1, width)
        x = torch.cat([first, tokens + positions], dim=1)
        visible = torch.cat([torch.ones(len(x), 1, dtype=torch.bool), exists], dim=1)
        for block in range(self.recipe.depth):
            part = {
                name.removeprefix(f"blocks.{block}."): value
                for name, value in weights.items()
                if name.startswith(f"blocks.{block}.")
            }
            x = x + self.kept(self.attention(part, norm(x, part, "norm1"), visible), paths)
            hidden = F.gelu(norm(x, part, "norm2") @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"])
            x = x + self.kept(hidden @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"], paths)
        return norm(x, weights, "norm")[:, 0]

    @staticmethod
    def kept(branch: Tensor, paths: deque[Tensor] | None) -> Tensor:
        return branch * paths.popleft().double()[:, None, None] if paths else branch

    def squares(self, weights: State, views: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
        pixels = (views.double() / 255 - mean) / std
        size = self.recipe.patch_size
        assert size is not None
        cut = pixels.unfold(2, size, size).unfold(3, size, size)  # [N, 3, rows, columns, size, size]
        flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        kernel = weights["patch_embed.proj.weight"].flatten(1)
        tokens = flat @ kernel.T + weights["patch_embed.proj.bias"]
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)

    @staticmethod
    def cells(weights: State, views: Tensor) -> tuple[Tensor, Tensor]:
        """Missing cells are NaN: nobody attends to them."""
        flat = views.double().flatten(1, 2)
        exists = ~flat[..., 0].isnan()
        tokens = F.gelu(flat.nan_to_num(0.0) @ weights["phi.0.weight"].T + weights["phi.0.bias"])
        return tokens, exists

    def attention(self, part: State, x: Tensor, visible: Tensor) -> Tensor:
        heads = self.recipe.num_heads
        count, length, width = x.shape
        qkv = x @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]
        q, k, v = (
            one.reshape(count, length, heads, width // heads).transpose(1, 2) for one in torch.chunk(qkv, 3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // heads)
        scores = scores.masked_fill(~visible[:, None, None], -math.inf)
        mixed = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(count, length, width)
        return mixed @ part["attn.proj.weight"].T + part["attn.proj.bias"]

    @staticmethod
    def head(state: State, x: Tensor) -> Tensor:
        for layer in (0, 2, 4):
            x = x @ state[f"head.mlp.{layer}.weight"].T + state[f"head.mlp.{layer}.bias"]
            x = F.gelu(x) if layer < 4 else x
        x = x / x.norm(dim=-1, keepdim=True)
        prototypes = state["head.last_layer.weight_v"]
        unit: Tensor = prototypes / prototypes.norm(dim=1, keepdim=True)
        logits: Tensor = x @ (state["head.last_layer.weight_g"] * unit).T
        return logits


def norm(x: Tensor, weights: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled: Tensor = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
