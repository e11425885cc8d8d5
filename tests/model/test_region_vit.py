"""The ViT of regions: HIPT's names, cells row by row, and missing cells that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dinowds.model.architecture import SIZES, Architecture, Size
from dinowds.model.vit import ImageViT, build_backbone
from tests.model.weights.plain import region_features

SIDE, CHANNELS = 5, 8
SMALL = Architecture("region", Size(64, 2, 2), CHANNELS, 1, SIDE)


@pytest.fixture
def vit() -> ImageViT:
    torch.manual_seed(0)
    backbone = build_backbone(SMALL)
    backbone.eval()
    with torch.no_grad():  # far from its initial zeros and ones
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def regions(count: int, missing: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(count, SIDE, SIDE, CHANNELS, generator=generator)
    cells[torch.rand(count, SIDE, SIDE, generator=generator) < missing] = math.nan
    return cells


def class_token_by_formula(vit: ImageViT, region: Tensor) -> Tensor:
    """float64 [D], of the cells that exist alone: the others are never made."""
    return region_features(vit.state_dict(), SMALL.size.num_heads, region[None])[0]


def test_region_vit__has_the_names_and_shapes_of_hipt() -> None:
    state = build_backbone(Architecture("region", SIZES["region"]["hvit_xs"], 384, 1, 14)).state_dict()
    assert len(state) == 78
    assert sum(value.numel() for value in state.values()) == 2_781_504
    shapes = {
        "cls_token": (1, 1, 192), "pos_embed": (1, 197, 192), "phi.0.weight": (192, 384), "phi.0.bias": (192,),
        "blocks.5.attn.qkv.weight": (576, 192), "blocks.0.mlp.fc1.weight": (768, 192), "norm.weight": (192,),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("arch", sorted(SIZES["region"]))
def test_region_vit__every_architecture_maps_any_grid(arch: str) -> None:
    size = SIZES["region"][arch]._replace(depth=1)
    vit = build_backbone(Architecture("region", size, 7, 1, 4))
    assert vit(torch.zeros(2, 6, 3, 7)).shape == (2, size.embed_dim)


@pytest.mark.parametrize("missing", [0.0, 0.4, 0.9])
def test_region_vit__equals_plain_formulae_over_the_cells_that_exist(vit: ImageViT, missing: float) -> None:
    batch = regions(4, missing)
    found = vit(batch)
    for region, token in zip(batch, found, strict=True):
        torch.testing.assert_close(token.double(), class_token_by_formula(vit, region), rtol=0, atol=1e-5)


def test_region_vit__with_every_cell_missing_is_the_class_token_alone(vit: ImageViT) -> None:
    nothing = torch.full((1, SIDE, SIDE, CHANNELS), math.nan)
    torch.testing.assert_close(vit(nothing)[0].double(), class_token_by_formula(vit, nothing[0]), rtol=0, atol=1e-5)


def test_region_vit__missing_cells_of_others_and_their_number_change_nothing(vit: ImageViT) -> None:
    batch = regions(3, 0.5)
    for region, token in zip(batch, vit(batch), strict=True):
        torch.testing.assert_close(vit(region[None])[0], token, rtol=1e-5, atol=1e-6)


def test_region_vit__gradients_are_finite_where_whole_views_are_missing(vit: ImageViT) -> None:
    vit.train()
    batch = regions(4, 0.3)
    batch[1] = math.nan
    for dtype in (None, torch.bfloat16):
        vit.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            tokens = vit(batch.half())
        tokens.float().square().sum().backward()
        for name, parameter in vit.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_region_vit__cells_become_tokens_row_by_row(vit: ImageViT) -> None:
    vit.blocks, vit.norm = nn.Sequential(), nn.Identity()
    cells = regions(1, 0.0)
    tokens = vit.forward_features(cells)[0]
    for row in range(SIDE):
        for column in range(SIDE):
            place = 1 + SIDE * row + column
            phi: nn.Module = vit.phi
            torch.testing.assert_close(tokens[place], phi(cells[0, row, column]) + vit.pos_embed[0, place])


def test_region_vit__float16_cells_are_taken_exactly(vit: ImageViT) -> None:
    cells = regions(2, 0.2).half()
    assert torch.equal(vit(cells), vit(cells.float()))
