"""Interpolation of positions against its formulae, written out one weight at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinowds.model.architecture import POS_INTERPOLATIONS, Architecture, Size
from dinowds.model.positions import resample_positions
from dinowds.model.vit import build_backbone

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


def by_interpolate(pos_embed: Tensor, rows: int, columns: int, method: str) -> Tensor:
    """As consumers do it."""
    grid = pos_embed[:, 1:].reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
    if method == "dino":
        factors = ((rows + 0.1) / SIDE, (columns + 0.1) / SIDE)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=method == "timm")
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (16, 16), (14, 7), (20, 12), (1, 1), (37, 64)])
@pytest.mark.parametrize("method", POS_INTERPOLATIONS)
def test_resample_positions__equals_torch_and_so_do_gradients(method: str, rows: int, columns: int) -> None:
    results = []
    for resample in (resample_positions, by_interpolate):
        positions = white_noise().requires_grad_()
        found = resample(positions, rows, columns, method)
        found.mul(torch.linspace(0, 1, found.numel()).view_as(found)).sum().backward()  # type: ignore[no-untyped-call]
        assert positions.grad is not None
        results.append((found.detach(), positions.grad))
    torch.testing.assert_close(*(found for found, _ in results), rtol=0, atol=1e-6)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-5, atol=1e-5)


def test_resample_positions__is_not_rounded_by_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = resample_positions(white_noise(), 6, 6, "timm")
    assert torch.equal(found, resample_positions(white_noise(), 6, 6, "timm"))
    assert resample_positions(white_noise().bfloat16(), 6, 6, "timm").dtype == torch.bfloat16


def test_resample_positions__can_be_trained_after_an_inference() -> None:
    """On a grid that no other test has, so that the inference comes first."""
    with torch.inference_mode():
        resample_positions(white_noise(), 3, 23, "timm")
    positions = white_noise().requires_grad_()
    resample_positions(positions, 3, 23, "timm").sum().backward()  # type: ignore[no-untyped-call]
    assert positions.grad is not None
    assert positions.grad.any()


def test_resample_positions__leaves_the_model_as_it_was() -> None:
    vit = build_backbone(Architecture("image", Size(16, 1, 2), 3, 8, 4))
    names = set(vit.state_dict())
    tokens = vit(torch.ones(1, 3, 16, 24))
    assert set(vit.state_dict()) == names
    assert torch.equal(copy.deepcopy(vit)(torch.ones(1, 3, 16, 24)), tokens)
    with torch.device("meta"):
        assert build_backbone(Architecture("image", Size(16, 1, 2), 3, 8, 4))(torch.ones(1, 3, 16, 24)).shape == (1, 16)


def test_resample_positions__compiled_with_the_backbone() -> None:
    vit = build_backbone(Architecture("image", Size(16, 1, 2), 3, 8, 4))
    compiled = torch.compile(vit, backend="aot_eager", fullgraph=True)
    for height, width in ((16, 24), (24, 24), (32, 32), (40, 16)):
        images = torch.randn(2, 3, height, width)
        torch.testing.assert_close(compiled(images), vit(images))
