"""Position embeddings for other grids than the one that they were trained for."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(pos_embed: Tensor, rows: int, columns: int, method: str) -> Tensor:
    """[1, 1 + n², D] → [1, 1 + rows · columns, D] by bicubic interpolation; the class token's, the first, stays.

    Methods differ by up to 28 % of the values on white noise, so a model has to be used with its own:

    - `timm`: antialiased, to the size that is asked for.
    - `size`: to the size that is asked for, without antialiasing.
    - `dino`: by the factors (rows + 0.1) / n and (columns + 0.1) / n, which also are the steps between the samples
      (original DINO and HIPT).

    `size` and `dino` give the embedding itself back for its own grid; so does `timm`, by its formula.

    Interpolation is linear and works on each axis alone, so it is two products with `_weights`: quicker than
    `F.interpolate`, whose results they have to 1e-6, and repeatable on CUDA, where its backward pass is not. They are
    of float64, which neither autocast nor TF32 rounds.
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    if (rows, columns) == (side, side):
        return pos_embed
    over_rows, over_columns = _weights(side, rows, columns, method, pos_embed.device).split([rows, columns])
    grid = pos_embed[0, 1:].double().reshape(side, -1)
    resampled = over_columns @ (over_rows @ grid).view(rows, side, -1)
    return torch.cat([pos_embed[:, :1], resampled.flatten(0, 1)[None].to(pos_embed.dtype)], dim=1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _weights(before: int, rows: int, columns: int, method: str, device: torch.device) -> Tensor:
    """float64 [rows + columns, before]: along one axis, and along the other. One tensor, since torch.compile of torch
    2.14 takes one constant of a name alone.
    """
    return _kept_weights(before, rows, columns, method, device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what an inference leaves here is for training too
def _kept_weights(before: int, rows: int, columns: int, method: str, device: torch.device) -> Tensor:
    return torch.cat([_along(before, count, method) for count in (rows, columns)]).double().to(device)


def _along(before: int, after: int, method: str) -> Tensor:
    """float32 [after, before]: what becomes of a picture with ones on its diagonal, as consumers compute it."""
    ones = torch.eye(before, dtype=torch.float32, device="cpu")[None, None]
    if method == "dino":
        return F.interpolate(ones, scale_factor=((after + 0.1) / before, 1.0), mode="bicubic")[0, 0]
    return F.interpolate(ones, size=(after, before), mode="bicubic", antialias=method == "timm")[0, 0]
