"""Activation checkpointing changes no gradient, of neither kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from dinowds.model.architecture import Architecture, Size
from dinowds.model.vit import ImageViT, build_backbone


def make(kind: str, drop_path_skips: bool) -> tuple[ImageViT, Tensor]:
    torch.manual_seed(0)
    dims = (3, 8) if kind == "image" else (5, 1)
    shape = Architecture(kind, Size(16, 3, 2), *dims, 4, registers=2, layer_scale=True)  # type: ignore[arg-type]
    vit = build_backbone(shape, 0.3, drop_path_skips=drop_path_skips, initial_scale=0.5)
    views = torch.randn(6, 3, 24, 24) if kind == "image" else torch.randn(6, 3, 3, 5)
    if kind == "region":
        views[1:3, 0, :2] = torch.nan
    return vit, views


def gradients(vit: ImageViT, views: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    vit.zero_grad()
    vit(views).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in vit.named_parameters() if parameter.grad is not None}


@contextmanager
def count_calls(module: nn.Module) -> Iterator[list[None]]:
    calls: list[None] = []
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    yield calls
    handle.remove()


@pytest.mark.parametrize("drop_path_skips", [False, True])
@pytest.mark.parametrize("kind", ["image", "region"])
@pytest.mark.parametrize("autocast", [False, True])
def test_set_grad_checkpointing__gradients_are_the_same_bit_for_bit(
    kind: str, drop_path_skips: bool, autocast: bool
) -> None:
    vit, views = make(kind, drop_path_skips)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(vit, views)
        vit.set_grad_checkpointing()
        with count_calls(vit.blocks[2].mlp) as calls:
            found = gradients(vit, views)
    assert len(calls) == 2  # again in the backward pass
    assert found.keys() == expected.keys() == dict(vit.named_parameters()).keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert value.any(), name


@pytest.mark.parametrize("kind", ["image", "region"])
def test_set_grad_checkpointing__keeps_only_the_inputs_of_blocks(kind: str) -> None:
    vit, views = make(kind, drop_path_skips=False)

    def kept() -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            vit(views)
        return sum(sizes)

    before = kept()
    vit.set_grad_checkpointing()
    assert kept() < before / 3
