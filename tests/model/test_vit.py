"""Backbones: DINO's names, shapes and initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinowds.model.architecture import SIZES, Architecture, Size
from dinowds.model.vit import ImageViT, build_backbone, initialise


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def test_build_backbone__small_has_the_names_and_shapes_of_dino() -> None:
    ours = build_backbone(Architecture("image", SIZES["image"]["vit_small"], 3, 16, 14), 0.1).state_dict()
    theirs = timm.create_model("vit_small_patch16_224.dino", num_classes=0).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert len(ours) == 150
    assert sum(value.numel() for value in ours.values()) == 21_665_664


@pytest.mark.parametrize("arch", sorted(SIZES["image"]))
def test_build_backbone__every_architecture_maps_any_multiple_of_the_patch(arch: str) -> None:
    size = SIZES["image"][arch]._replace(depth=1)
    vit = build_backbone(Architecture("image", size, 3, 16, 4))
    assert vit(torch.zeros(2, 3, 32, 48)).shape == (2, size.embed_dim)


def newer(kind: str = "image", registers: int = 4, layer_scale: bool = True) -> Architecture:
    dims = (3, 8) if kind == "image" else (5, 1)
    return Architecture(kind, Size(16, 2, 2), *dims, 4, registers=registers, layer_scale=layer_scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["image", "region"])
def test_initialise__leaves_no_parameter_as_it_was(kind: str) -> None:
    vit = build_backbone(newer(kind))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(float("nan"))
    initialise(vit)
    for name, parameter in vit.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_initialise__follows_dino() -> None:
    vit = build_backbone(Architecture("image", Size(192, 2, 3), 3, 16, 14, registers=4, layer_scale=True))
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.weight.abs().max().item() < 2.0
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert module.eps == 1e-6
    parameters = dict(vit.named_parameters())
    assert parameters["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert parameters["cls_token"].std().item() == pytest.approx(0.02, rel=0.2)
    assert parameters["reg_token"].std().item() == pytest.approx(0.02, rel=0.1)
    assert (parameters["blocks.1.ls2.gamma"] == 1e-5).all()


def test_build_backbone__drop_path_is_linear_over_depth() -> None:
    vit = build_backbone(Architecture("image", Size(192, 5, 3), 3, 16, 2), 0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("kind", ["image", "region"])
def test_build_backbone__registers_and_layer_scale_have_timms_names(kind: str) -> None:
    plain, state = build_backbone(newer(kind, 0, False)).state_dict(), build_backbone(newer(kind)).state_dict()
    gammas = {f"blocks.{i}.{name}.gamma": (16,) for i in (0, 1) for name in ("ls1", "ls2")}
    added = {name: tuple(value.shape) for name, value in state.items() if name not in plain}
    assert added == {"reg_token": (1, 4, 16), **gammas}
    assert {name: state[name].shape for name in plain} == {name: value.shape for name, value in plain.items()}


@pytest.mark.parametrize("side", [32, 48])
def test_image_vit__registers_are_those_of_timm_and_no_patch_tokens(side: int) -> None:
    ours = randomised(build_backbone(newer(), initial_scale=0.5))
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, reg_tokens=4,
        no_embed_class=True, init_values=1.0, dynamic_img_size=True,
    ).eval()  # fmt: skip
    state = ours.state_dict()
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, side, side)
    found, expected = ours.forward_features(images), theirs.forward_features(images)
    assert found.shape == (2, 1 + (side // 8) ** 2, 16)
    torch.testing.assert_close(found, torch.cat([expected[:, :1], expected[:, 5:]], 1))
    torch.testing.assert_close(ours(images), expected[:, 0])


def test_region_vit__registers_are_no_cells_and_are_seen_by_all() -> None:
    vit = randomised(build_backbone(newer("region"), initial_scale=0.5))
    cells = torch.randn(2, 3, 5, 5)
    cells[0, 1:] = torch.nan
    cells[1] = torch.nan
    before = vit.forward_features(cells)
    assert before.shape == (2, 16, 16)
    with torch.no_grad():
        vit.reg_token[:, 2] = torch.randn(16)  # the norm would take the same number for all away
    assert ((vit.forward_features(cells) - before)[:, 0].abs().amax(1) > 1e-3).all()


def randomised(vit: ImageViT) -> ImageViT:
    """Far from its initial zeros and ones."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    vit.eval()
    return vit


@pytest.mark.parametrize("kind", ["image", "region"])
def test_attention__is_torchs_own_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[tuple[int, ...] | None] = []
    kernel = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    views = torch.randn(2, 3, 32, 32) if kind == "image" else torch.randn(2, 4, 4, 5)
    build_backbone(newer(kind))(views)
    assert masks == [None if kind == "image" else (2, 1, 1, 21)] * 2


@pytest.mark.parametrize("kind", ["image", "region"])
@pytest.mark.parametrize("is_newer", [False, True])
@pytest.mark.parametrize("drop_path_skips", [False, True])
@pytest.mark.parametrize("saves_memory", [False, True])
def test_forward__is_the_class_token_of_all_tokens_and_so_are_its_gradients(
    kind: str, is_newer: bool, drop_path_skips: bool, saves_memory: bool
) -> None:
    """With the same random numbers. In float64, where other orders of sums do not show."""
    architecture = newer(kind) if is_newer else newer(kind, 0, False)
    vit = randomised(build_backbone(architecture, 0.5, drop_path_skips=drop_path_skips, initial_scale=0.5))
    vit.double().train().set_grad_checkpointing(saves_memory)
    found, expected = (_outcome(vit, views_of(kind), class_only) for class_only in (True, False))
    assert found.keys() == {"token", "inputs", *dict(vit.named_parameters())}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def _outcome(vit: ImageViT, views: Tensor, class_only: bool) -> dict[str, Tensor]:
    """The class tokens, and the gradients of something that depends on each of them."""
    torch.manual_seed(1)
    vit.zero_grad()
    inputs = views.clone().requires_grad_()
    token = vit(inputs) if class_only else vit.forward_features(inputs)[:, 0]
    (token * torch.linspace(-1, 1, token.numel(), dtype=token.dtype).view_as(token)).sum().backward()
    gradients = {"inputs": inputs, **dict(vit.named_parameters())}
    return {
        "token": token.detach(),
        **{name: value.grad for name, value in gradients.items() if value.grad is not None},
    }


def views_of(kind: str) -> Tensor:
    """float64, of 6 samples; some cells of regions are missing."""
    generator = torch.Generator().manual_seed(2)
    if kind == "image":
        return torch.randn(6, 3, 24, 32, generator=generator, dtype=torch.float64)
    cells = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64)
    cells[1, 0, :3] = cells[4] = torch.nan
    return cells


@pytest.mark.parametrize("kind", ["image", "region"])
def test_forward__computes_one_token_in_the_last_block(kind: str) -> None:
    vit, seen = build_backbone(newer(kind)), []
    for block in vit.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    views = views_of(kind).float()
    vit(views)
    num_tokens = 5 + (12 if kind == "image" else 15)
    assert seen == [num_tokens, 1]
    vit.forward_features(views)
    assert seen[2:] == [num_tokens] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "region"])
def test_forward__in_bf16_is_as_near_to_float64_as_all_tokens_are(kind: str) -> None:
    vit = randomised(build_backbone(newer(kind), initial_scale=0.5)).double()
    views = views_of(kind)
    exact = vit(views)
    vit.float()
    with torch.autocast("cpu", torch.bfloat16):
        alone, among_all = vit(views.float()), vit.forward_features(views.float())[:, 0]
    errors = [float((token - exact).norm() / exact.norm()) for token in (alone, among_all)]
    assert errors[0] < 1.5 * errors[1] < 0.03
