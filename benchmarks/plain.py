"""The training step as the reference writes it, for comparison: explicit attention, one loss for each pair of views,
loops over parameters with `.item()`, optimizer and moving average tensor by tensor. (The recipe's numbers are those of
Caron et al. 2021.)

Names of parameters are dinowds', so that both start with the same weights. All that it takes from dinowds are sizes,
the schedules' values, and the pixels' mean and standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinowds.config import PatchConfig
from dinowds.model.architecture import Size
from dinowds.model.dino import architecture_of
from dinowds.model.pixels import normalise
from dinowds.train.schedule import StepValues

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.qkv = nn.Linear(size.embed_dim, 3 * size.embed_dim)
        self.proj = nn.Linear(size.embed_dim, size.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1)) * (width // self.num_heads) ** -0.5
        weights = weights.softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, size: Size, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = (nn.LayerNorm(size.embed_dim, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(size), Mlp(size.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if self.drop_path == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_path
        mask = (keep + torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device)).floor_()
        return x.div(keep) * mask


class PatchEmbed(nn.Module):
    def __init__(self, size: Size, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    def __init__(self, size: Size, patch_size: int, grid: int, drop_path_rate: float) -> None:
        super().__init__()
        self.patch_size, self.grid = patch_size, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, size.embed_dim))
        self.patch_embed = PatchEmbed(size, patch_size)
        rates = torch.linspace(0, drop_path_rate, size.depth).tolist()
        self.blocks = nn.ModuleList([Block(size, rate) for rate in rates])
        self.norm = nn.LayerNorm(size.embed_dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self._positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def _positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class Prototypes(nn.Module):
    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.zeros(out_dim, 256))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class Head(nn.Module):
    def __init__(self, width: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last_layer = Prototypes(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Model(nn.Module):
    def __init__(self, size: Size, patch_size: int, grid: int, out_dim: int, drop_path_rate: float) -> None:
        super().__init__()
        self.backbone, self.head = ViT(size, patch_size, grid, drop_path_rate), Head(size.embed_dim, out_dim)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """One call of the backbone for each run of equal sizes."""
        features, start = [], 0
        while start < len(views):
            end = next((i for i in range(start, len(views)) if views[i].shape != views[start].shape), len(views))
            features.append(self.backbone(torch.cat(list(views[start:end]))))
            start = end
        return self.head(torch.cat(features))


class Trainer:
    """What a plain step changes, and the step."""

    def __init__(self, student: Model, teacher: Model, out_dim: int, autocast_dtype: torch.dtype | None) -> None:
        self.student, self.teacher, self.autocast_dtype = student, teacher, autocast_dtype
        self.device = next(student.parameters()).device
        self.centre = torch.zeros(1, out_dim, device=self.device)
        decayed = [p for p in student.parameters() if p.ndim > 1]
        others = [p for p in student.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)

    def step(self, views: Sequence[Tensor], values: StepValues, num_globals: int = 2) -> float:
        """`views`: float32 [B, 3, S, S] each, normalised, on the device. Returns the loss."""
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = values.lr
            if index == 0:
                group["weight_decay"] = values.weight_decay
        with torch.autocast(self.device.type, dtype=self.autocast_dtype) if self.autocast_dtype else nullcontext():
            with torch.no_grad():
                teacher_logits = self.teacher(views[:num_globals])
            student_logits = self.student(views)
            loss = self._loss(student_logits, teacher_logits, len(views), num_globals, values.teacher_temperature)
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.data.norm(2)
                factor = 3.0 / (norm.item() + 1e-6)
                if factor < 1:
                    parameter.grad.data.mul_(factor)
        if values.freeze_last_layer:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            for theirs, ours in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                theirs.data.mul_(values.momentum).add_((1 - values.momentum) * ours.detach().data)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def _loss(self, student: Tensor, teacher: Tensor, num_views: int, num_globals: int, temperature: float) -> Tensor:
        views = (student / 0.1).chunk(num_views)
        targets = F.softmax((teacher - self.centre) / temperature, dim=-1).detach().chunk(num_globals)
        total, num_pairs = torch.zeros((), device=self.device), 0
        for q, target in enumerate(targets):
            for v, logits in enumerate(views):
                if v != q:
                    total = total + (-target * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
                    num_pairs += 1
        with torch.no_grad():
            self.centre = self.centre * 0.9 + teacher.float().mean(dim=0, keepdim=True) * 0.1
        return total / num_pairs


def plain_trainer(weights: Mapping[str, Tensor], config: PatchConfig, device: torch.device) -> Trainer:
    """Of the model that `config` describes, with the weights of dinowds' student."""
    architecture, out_dim = architecture_of(config), config.student.out_dim
    assert isinstance(out_dim, int)

    def model(drop_path_rate: float) -> Model:
        built = Model(architecture.size, architecture.patch_size, architecture.grid, out_dim, drop_path_rate)
        built.load_state_dict(weights)
        return built.to(device)

    student, teacher = model(config.student.drop_path_rate), model(0.0)
    return Trainer(student, teacher.requires_grad_(False), out_dim, DTYPES[config.speed.precision])


def plain_views(views: Mapping[str, Tensor]) -> list[Tensor]:
    """uint8 [V, B, 3, S, S] each → float32 [B, 3, S, S] of each view, normalised, the global ones first."""
    return [normalise(view) for group in views.values() for view in group]
