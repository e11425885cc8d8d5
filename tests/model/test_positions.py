"""Interpolation of positions against its formulae, written out one weight at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dinowds.model.architecture import POS_INTERPOLATIONS
from dinowds.model.positions import resample_positions

Matrix = npt.NDArray[np.float64]
SIDE, DIM = 14, 5


def white_noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 1 + SIDE**2, DIM, generator=torch.Generator().manual_seed(seed))


def cubic(x: float, a: float) -> float:
    """Keys' cubic convolution (Keys 1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def along_one_axis(before: int, after: int, method: str) -> Matrix:
    """[after, before] weights."""
    step = before / (after + 0.1) if method == "dino" else before / after
    weights = np.zeros((after, before))
    for i in range(after):
        if method == "timm":  # a wider filter where it shrinks; what lies outside has no weight
            reach, centre = max(step, 1.0), (i + 0.5) * step
            for k in range(before):
                weights[i, k] = cubic((k + 0.5 - centre) / reach, -0.5)
            weights[i] /= weights[i].sum()
        else:  # four taps; the border is repeated
            centre = (i + 0.5) * step - 0.5
            for k in range(math.floor(centre) - 1, math.floor(centre) + 3):
                weights[i, min(max(k, 0), before - 1)] += cubic(k - centre, -0.75)
    return weights


def by_formula(pos_embed: Tensor, rows: int, columns: int, method: str) -> Matrix:
    grid = pos_embed[0, 1:].double().numpy().reshape(SIDE, SIDE, DIM)
    over_rows, over_columns = (along_one_axis(SIDE, count, method) for count in (rows, columns))
    found: Any = np.einsum("ri,cj,ijd->rcd", over_rows, over_columns, grid)
    return np.concatenate([pos_embed[0, :1].double().numpy(), found.reshape(rows * columns, DIM)])


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (16, 16), (14, 7), (20, 12), (1, 1)])
@pytest.mark.parametrize("method", POS_INTERPOLATIONS)
def test_resample_positions__equals_the_formula(method: str, rows: int, columns: int) -> None:
    found = resample_positions(white_noise(), rows, columns, method)
    assert found.shape == (1, 1 + rows * columns, DIM)
    np.testing.assert_allclose(found[0].numpy(), by_formula(white_noise(), rows, columns, method), atol=2e-5)


@pytest.mark.parametrize("method", POS_INTERPOLATIONS)
def test_resample_positions__own_grid_gives_the_embedding_itself(method: str) -> None:
    assert torch.equal(resample_positions(white_noise(), SIDE, SIDE, method), white_noise())


def test_resample_positions__methods_differ() -> None:
    found = [resample_positions(white_noise(), 6, 6, method) for method in POS_INTERPOLATIONS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (found[first] - found[second]).norm() > 0.05 * found[1].norm()


@pytest.mark.parametrize("method", POS_INTERPOLATIONS)
def test_resample_positions__rows_stay_rows(method: str) -> None:
    """A ramp from the first row to the last one."""
    ramp = torch.arange(SIDE).float()[:, None].expand(SIDE, SIDE).reshape(1, -1, 1)
    found = resample_positions(torch.cat([torch.zeros(1, 1, 1), ramp], dim=1), 5, 9, method)[0, 1:, 0].view(5, 9)
    assert (found.diff(dim=0) > 1).all()
    torch.testing.assert_close(found, found[:, :1].expand(5, 9))
