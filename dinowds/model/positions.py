"""Position embeddings for other grids than the one that they were trained for."""

from __future__ import annotations

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
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    if (rows, columns) == (side, side):
        return pos_embed
    grid = pos_embed[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if method == "dino":
        factors = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=method == "timm")
    resampled = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], resampled], dim=1)
