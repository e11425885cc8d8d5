"""Attention against softmax(q · k / √d) from the block's weights, in float64; masks and colours against their rules."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from dinowds.eval.attention import (
    Components,
    class_attention,
    foreground,
    joined_attention,
    look,
    mass_mask,
    patch_tokens,
    principal_colours,
)
from dinowds.model.architecture import Architecture, Size
from dinowds.model.vit import ImageViT, build_backbone
from tests.eval.support import shaken_backbone

IMAGE = Architecture("image", Size(24, 3, 3), 3, 8, 4)
WITH_ALL = Architecture("image", Size(24, 2, 4), 3, 8, 4, registers=3, layer_scale=True)
REGION = Architecture("region", Size(16, 2, 2), 5, 1, 4)


def images(count: int = 2, height: int = 32, width: int = 24) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def regions(count: int = 3, missing: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    cells = torch.randn(count, 4, 3, 5, generator=generator)
    cells[torch.rand(count, 4, 3, generator=generator) < missing] = math.nan
    return cells


def attention_by_formula(vit: ImageViT, inputs: Tensor) -> Tensor:
    """float64 [N, heads, T, T] of the last block: of all tokens to all tokens, from its input and its weights."""
    found: list[Tensor] = []
    handle = vit.blocks[-1].register_forward_hook(lambda _module, arguments, _out: found.append(arguments[0].double()))
    vit.forward_features(inputs)
    handle.remove()
    state = {name: value.double() for name, value in vit.blocks[-1].state_dict().items()}
    (x,) = found
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
    normed = normed * state["norm1.weight"] + state["norm1.bias"]
    queries, keys, _ = (normed @ state["attn.qkv.weight"].T + state["attn.qkv.bias"]).chunk(3, dim=-1)
    heads, (num_heads, width) = [], (vit.blocks[-1].attn.num_heads, vit.blocks[-1].attn.head_dim)
    for head in range(num_heads):
        q, k = (part[..., head * width : (head + 1) * width] for part in (queries, keys))
        scores = q @ k.mT / math.sqrt(width)
        if inputs.shape[-1] == 5:  # regions: the missing cells are no keys
            is_missing = inputs[..., 0].isnan().flatten(1)
            scores[:, :, 1:][is_missing[:, None].expand(-1, scores.shape[1], -1)] = -math.inf
        heads.append(torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True))
    return torch.stack(heads, 1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("architecture", [IMAGE, WITH_ALL, REGION])
def test_attention__equals_the_formula_and_changes_no_output(architecture: Architecture, fused: bool) -> None:
    vit = shaken_backbone(architecture)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    inputs = regions() if architecture.kind == "region" else images()
    before = vit.forward_features(inputs)
    found = look(vit, inputs)
    after = vit.forward_features(inputs)
    expected = attention_by_formula(vit, inputs)
    torch.testing.assert_close(expected.sum(-1), torch.ones_like(expected[..., 0]))
    prefix = 1 + architecture.registers
    assert found.attention.shape == (len(inputs), architecture.size.num_heads, 4, 3)
    assert found.attention.dtype == found.tokens.dtype == torch.float32
    of_patches = found.attention.double().flatten(2)
    torch.testing.assert_close(of_patches, expected[:, :, 0, prefix:], rtol=1e-4, atol=1e-7)
    rest = expected[:, :, 0, :prefix].sum(-1)  # the class token's own and the registers'
    torch.testing.assert_close(of_patches.sum(-1) + rest, torch.ones_like(rest), rtol=0, atol=1e-6)
    assert float(of_patches.std()) > 0.01  # there is something to see
    assert torch.equal(before, after)
    torch.testing.assert_close(found.features, vit(inputs))  # of the last block the class token alone
    exists = ~inputs[..., 0].isnan() if architecture.kind == "region" else torch.ones(len(inputs), 4, 3).bool()
    assert torch.equal(found.tokens[exists], before[:, 1:].view(len(inputs), 4, 3, -1)[exists])


def test_attention__missing_cells_have_none_and_change_none() -> None:
    vit, batch = shaken_backbone(REGION), regions()
    found = class_attention(vit, batch)
    is_missing = batch[..., 0].isnan()
    assert 0 < int(is_missing.sum()) < is_missing.numel()
    assert not found.movedim(1, -1)[is_missing].any()
    assert (found.movedim(1, -1)[~is_missing] > 0).all()
    for region, of_region in zip(batch, found, strict=True):
        torch.testing.assert_close(class_attention(vit, region[None])[0], of_region)
    nothing = class_attention(vit, torch.full((1, 4, 3, 5), math.nan))
    assert torch.equal(nothing, torch.zeros(1, 2, 4, 3))


@pytest.mark.parametrize("skips", [True, False])
def test_attention__is_of_evaluation_mode_and_the_mode_stays(skips: bool) -> None:
    torch.manual_seed(0)
    vit = build_backbone(IMAGE, 0.9, drop_path_skips=skips)
    expected = look(vit.eval(), images(8))
    vit.train()
    found = look(vit, images(8))
    assert vit.training
    assert not vit.blocks[-1].attn._forward_pre_hooks
    assert torch.equal(found.attention, expected.attention)
    assert torch.equal(found.tokens, expected.tokens)
    assert not found.attention.requires_grad


def test_attention__under_autocast_is_that_of_its_tokens_in_float32() -> None:
    vit = shaken_backbone(IMAGE)
    exact = class_attention(vit, images())
    with torch.autocast("cpu", torch.bfloat16):
        found = class_attention(vit, images())
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().max()) < 0.05


def test_attention__sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="30×32 px, expected multiples of 8×8"):
        class_attention(shaken_backbone(IMAGE), images(height=32, width=30))


def test_patch_tokens__are_row_by_row_without_registers() -> None:
    vit = shaken_backbone(WITH_ALL)
    tokens = patch_tokens(vit, images())
    expected = vit.forward_features(images())
    assert tokens.shape == (2, 4, 3, 24)
    assert torch.equal(tokens[:, 2, 1], expected[:, 1 + 2 * 3 + 1])


def test_joined_attention__is_the_product_of_cell_and_token() -> None:
    generator = torch.Generator().manual_seed(0)
    of_region, of_patches = torch.rand(2, 3, generator=generator), torch.rand(2, 3, 4, 5, generator=generator)
    joined = joined_attention(of_region, of_patches)
    assert joined.shape == (8, 15)
    for row in range(8):
        for column in range(15):
            cell = row // 4, column // 5
            assert joined[row, column] == of_region[cell] * of_patches[cell][row % 4, column % 5]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95, 1.0])
def test_mass_mask__is_the_smallest_set_with_the_share(share: float) -> None:
    maps = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[1, 0] = 0
    for values, mask in zip(maps.double(), mass_mask(maps, share), strict=True):
        goal = share * values.sum() * (1 - 1e-9)
        count = int(mask.sum())
        assert values[mask].sum() >= goal
        flat = values.flatten().tolist()
        assert count == 0 or max(sum(some) for some in combinations(flat, count - 1)) < goal


def test_mass_mask__ties_nothing_and_missing() -> None:
    equal = torch.full((2, 2), 0.25)
    assert mass_mask(equal, 0.5).tolist() == [[True, True], [False, False]]
    assert mass_mask(torch.tensor([[math.nan, 1.0], [1.0, 0.0]]), 1.0).tolist() == [[False, True], [True, False]]
    assert not mass_mask(torch.zeros(2, 2), 0.6).any()
    tenths = torch.full((1, 10), 0.1, dtype=torch.float64)
    assert [int(mass_mask(tenths, count / 10).sum()) for count in range(11)] == list(range(11))  # rounding takes none
    with pytest.raises(ValueError, match="share is 60, expected 0 to 1"):
        mass_mask(equal, 60)


def test_principal_colours__follow_the_components_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 9.0, 3.0, 0.1, 0.1, 0.1])
    tokens = torch.randn(2, 20, 15, 6, generator=generator) * scales + 5
    colours = principal_colours(tokens)
    assert colours.shape == (2, 20, 15, 3)
    assert colours.dtype == torch.float32
    assert (float(colours.min()), float(colours.max())) == (0, 1)
    flat, found = tokens.flatten(0, 2).double(), colours.flatten(0, 2).double()
    left, _, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for place, channel in enumerate((1, 2, 0)):  # by decreasing variance
        inside = (found[:, place] > 0) & (found[:, place] < 1)
        assert 0.97 < inside.double().mean() < 1  # the outermost hundredths are clipped
        for reference in (left[:, place], flat[:, channel]):
            together = torch.corrcoef(torch.stack([found[inside, place], reference[inside]]))[0, 1]
            assert abs(float(together)) > 0.99
        assert float(torch.corrcoef(torch.stack([found[inside, place], flat[inside, channel]]))[0, 1]) > 0  # the sign
    chosen = tokens[..., 1] > 5
    of_chosen = principal_colours(tokens, chosen)
    assert not of_chosen[~chosen].any()
    torch.testing.assert_close(of_chosen[chosen], principal_colours(tokens[chosen][None, None])[0, 0])


def test_principal_colours__of_few_components_and_of_equal_tokens() -> None:
    line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 2.0, 0.0, 0.0, 1.0])
    colours = Components.of(line).colours(line)
    assert (float(colours[0, 0]), float(colours[-1, 0])) == (0, 1)
    assert torch.equal(colours[:, 1:], torch.full((8, 2), 0.5))  # rounding is no component
    assert torch.equal(principal_colours(torch.ones(1, 2, 2, 5)), torch.full((1, 2, 2, 3), 0.5))
    assert torch.equal(principal_colours(torch.rand(1, 3, 3, 2))[..., 2], torch.full((1, 3, 3), 0.5))
    assert principal_colours(torch.rand(1, 2, 2, 5), torch.zeros(1, 2, 2).bool()).eq(0).all()


def test_foreground__is_the_more_attended_side_whatever_the_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(6, 6).bool()
    inside[2:5, 1:4] = True
    for sign in (1, -1):
        tokens = torch.randn(6, 6, 4, generator=generator) * 0.3
        tokens[inside] += sign * torch.tensor([3.0, 0.0, 2.0, 0.0])
        assert torch.equal(foreground(tokens, inside + 0.1), inside)
        assert torch.equal(foreground(tokens, 1.1 - inside.float()), ~inside)
    assert foreground(torch.ones(2, 2, 4), torch.ones(2, 2)).all()
