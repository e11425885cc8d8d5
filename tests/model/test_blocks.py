"""Stochastic depth that skips the work of dropped samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from dinowds.model.architecture import Architecture, Size
from dinowds.model.blocks import SkippingBlock
from dinowds.model.vit import ImageViT, build_backbone

DIM = 8


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def make_block(drop_path: float, layer_scale: float | None = None) -> SkippingBlock:
    return SkippingBlock(DIM, 2, qkv_bias=True, drop_path=drop_path, init_values=layer_scale)


def attend(block: SkippingBlock, x: Tensor) -> Tensor:
    return block.ls1(block.attn(block.norm1(x)))  # type: ignore[no-any-return]


def think(block: SkippingBlock, x: Tensor) -> Tensor:
    return block.ls2(block.mlp(block.norm2(x)))  # type: ignore[no-any-return]


def silence(mlp: nn.Module) -> None:
    """Leaves the first branch alone."""
    for parameter in mlp.parameters():
        nn.init.zeros_(parameter)


@contextmanager
def batch_sizes(module: nn.Module) -> Iterator[list[int]]:
    """Of the calls of a module within."""
    sizes: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    yield sizes
    handle.remove()


@pytest.mark.parametrize(("batch", "rate"), [(1, 0.5), (2, 0.1), (7, 0.3), (10, 0.7), (8, 0.25), (10, 0.99)])
def test_skipping_block__computes_the_kept_samples_alone(batch: int, rate: float) -> None:
    block = make_block(rate)
    kept = math.ceil(batch * (1 - rate) - 1e-9)
    with batch_sizes(block.attn) as attended, batch_sizes(block.mlp) as thought:
        block(torch.randn(batch, 3, DIM))
    assert (attended, thought) == ([kept], [kept])


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_skipping_block__each_branch_is_taken_by_a_subset_of_its_own(layer_scale: float | None) -> None:
    block, batch, kept = make_block(0.4, layer_scale), 10, 6
    x = torch.randn(batch, 3, DIM)
    found = block(x)
    middles = {True: x + attend(block, x) * batch / kept, False: x}
    outcomes = [(first, second) for first in (True, False) for second in (True, False)]
    ends = {
        (first, second): middles[first] + second * think(block, middles[first]) * batch / kept
        for first, second in outcomes
    }
    fits = {took: (found - end).abs().amax((1, 2)) < 1e-5 for took, end in ends.items()}
    assert torch.stack(list(fits.values())).sum(0).tolist() == [1] * batch  # each sample is one of the four
    subsets = [fits[True, True] | fits[True, False], fits[True, True] | fits[False, True]]
    assert [int(subset.sum()) for subset in subsets] == [kept, kept]
    assert not torch.equal(*subsets)


def test_skipping_block__expectation_is_that_of_plain_drop_path() -> None:
    """x + branch, as `drop_path` has it. Of the first branch: what the second makes of it is not linear."""
    block = make_block(0.3)
    silence(block.mlp)
    x = torch.randn(7, 3, DIM)
    with torch.no_grad():
        branch = attend(block, x)
        mean = torch.stack([block(x) for _ in range(2000)]).mean(0)
    assert (mean - x - branch).abs().amax() < 0.08 * branch.abs().amax()  # without the factor: 0.29


def test_skipping_block__is_the_plain_block_without_drop_path_and_in_eval_mode() -> None:
    x = torch.randn(10, 3, DIM)
    for block in (make_block(0.0), make_block(0.5).eval()):
        before = torch.get_rng_state()
        found = block(x)
        middle = x + attend(block, x)
        assert torch.equal(found, middle + think(block, middle))
        assert torch.equal(torch.get_rng_state(), before)


def test_skipping_block__masks_go_with_their_samples() -> None:
    """Each sample sees a key of its own alone, so what it attends to says whose mask it had."""
    block, batch = make_block(0.5), 6
    x = torch.randn(batch, batch, DIM)
    mask = torch.eye(batch, dtype=torch.bool)[:, None, None]
    alone = torch.stack([attend(block, x[i : i + 1, i : i + 1])[0, 0] for i in range(batch)])
    silence(block.mlp)
    added = (block(x, attn_mask=mask) - x)[:, 0]
    taken = added.abs().amax(1) > 0
    assert int(taken.sum()) == 3
    torch.testing.assert_close(added[taken], 2 * alone[taken], rtol=1e-5, atol=1e-6)


def test_skipping_block__gradients_are_those_of_the_samples_that_were_taken() -> None:
    block = make_block(0.5)
    silence(block.mlp)
    x = torch.randn(6, 3, DIM, requires_grad=True)
    out = block(x)
    taken = (out - x).detach().abs().amax((1, 2)) > 1e-6
    out.sum().backward()
    found, x.grad = x.grad, None
    (x + attend(block, x) * 2 * taken[:, None, None]).sum().backward()
    assert found is not None
    torch.testing.assert_close(found, x.grad)
    assert (found[~taken] == 1).all()
    assert taken.any()


@pytest.mark.parametrize("kind", ["image", "region"])
def test_build_backbone__skips_in_both_kinds(kind: str) -> None:
    vit, views = _skipping(kind)
    with batch_sizes(vit.blocks[0].mlp) as first, batch_sizes(vit.blocks[1].mlp) as last:
        vit(views)
    assert (first, last) == ([8], [4])  # the first block drops none


@pytest.mark.parametrize("kind", ["image", "region"])
def test_skipping_block__works_under_autocast(kind: str) -> None:
    vit, views = _skipping(kind)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = vit(views)
    tokens.float().square().sum().backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own tracer
@pytest.mark.parametrize("kind", ["image", "region"])
def test_skipping_block__compiled_for_batches_of_any_size(kind: str) -> None:
    """The graph and its random numbers; what inductor makes of it is torch's."""
    vit, views = _skipping(kind)
    for count in (8, 6, 5):
        torch.manual_seed(count)
        expected = vit(views[:count])
        torch.manual_seed(count)
        for block in vit.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(vit(views[:count]), expected)
        for block in vit.blocks:
            block._compiled_call_impl = None


def _skipping(kind: str) -> tuple[ImageViT, Tensor]:
    """In training mode, of two blocks, the last of which drops one half; and 8 views."""
    dims = (3, 8) if kind == "image" else (5, 1)
    shape = Architecture(kind, Size(16, 2, 2), *dims, 4)  # type: ignore[arg-type]
    vit = build_backbone(shape, 0.5, drop_path_skips=True)
    views = torch.randn(8, 3, 32, 32) if kind == "image" else torch.randn(8, 4, 4, 5)
    if kind == "region":
        views[:, 0, :2] = torch.nan
    return vit, views
