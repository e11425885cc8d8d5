"""Features of loaded weights are those of the formulae, and stay so under another normalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinowds.errors import ConfigError
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from dinowds.model.weights import fold_normalization, load_backbone, read_weights
from dinowds.model.weights.fold import fold_layer_scale
from tests.model.weights.files import (
    TINY_IMAGE,
    TINY_REGION,
    State,
    assert_equal,
    image_state,
    region_state,
    save,
)
from tests.model.weights.plain import image_features, region_features

pytestmark = pytest.mark.usefixtures("tiny")


def _images(count: int = 5) -> torch.Tensor:
    return torch.randint(256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def test_load_backbone__image_features_are_those_of_the_formulae(tmp_path: Path) -> None:
    state = image_state()
    backbone = load_backbone(read_weights(save(tmp_path / "a.pth", state)))
    images = normalise(_images())
    expected = image_features(state, TINY_IMAGE.num_heads, images)
    torch.testing.assert_close(backbone(images).double(), expected, rtol=1e-5, atol=1e-5)
    other_heads = image_features(state, 2, images)
    assert (other_heads - expected).abs().max() > 1e-2  # the comparison sees how many heads there are


def test_load_backbone__region_features_are_those_of_the_formulae(tmp_path: Path) -> None:
    state = region_state()
    backbone = load_backbone(read_weights(save(tmp_path / "a.pth", {"teacher": state})))
    regions = torch.randn(4, 3, 3, 10, generator=torch.Generator().manual_seed(3))
    regions[1, 0, 2] = regions[3, :, 1] = torch.nan
    expected = region_features(state, TINY_REGION.num_heads, regions)
    torch.testing.assert_close(backbone(regions).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("registers", "layer_scale"), [(4, False), (0, True), (3, True)])
def test_load_backbone__with_registers_and_layer_scale(tmp_path: Path, registers: int, layer_scale: bool) -> None:
    images = normalise(_images())
    state = image_state(registers=registers, layer_scale=layer_scale)
    weights = read_weights(save(tmp_path / "a.pth", state))
    assert (weights.architecture.registers, weights.architecture.layer_scale) == (registers, layer_scale)
    expected = image_features(state, TINY_IMAGE.num_heads, images)
    torch.testing.assert_close(load_backbone(weights)(images).double(), expected, rtol=1e-5, atol=1e-5)
    assert (image_features(image_state(), TINY_IMAGE.num_heads, images) - expected).abs().max() > 1e-2

    state = region_state(registers=registers, layer_scale=layer_scale)
    regions = torch.randn(4, 3, 3, 10, generator=torch.Generator().manual_seed(3))
    regions[1, 0, 2] = regions[3, :, 1] = regions[2] = torch.nan
    found = load_backbone(read_weights(save(tmp_path / "b.pth", state)))(regions)
    expected = region_features(state, TINY_REGION.num_heads, regions)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0, 0.1, 0.9), (1.0, 0.01, 2.0)), (IMAGENET_MEAN, IMAGENET_STD)],
)
def test_fold_normalization__features_are_the_same(
    tmp_path: Path, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    weights = read_weights(save(tmp_path / "a.pth", image_state()))
    folded = fold_normalization(weights, mean, std)
    images = _images()
    expected = load_backbone(weights)(normalise(images))
    found = load_backbone(folded)(normalise(images, torch.float32, mean, std))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (folded.mean, folded.std) == (mean, std)
    assert (folded.fingerprint == weights.fingerprint) == (mean == IMAGENET_MEAN)
    if mean != IMAGENET_MEAN:
        assert (load_backbone(folded)(normalise(images)) - expected).abs().max() > 1e-2


def test_fold_normalization__leaves_the_given_weights_alone(tmp_path: Path) -> None:
    weights = read_weights(save(tmp_path / "a.pth", image_state()))
    before = weights.backbone["patch_embed.proj.weight"].clone()
    fold_normalization(weights, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(weights.backbone["patch_embed.proj.weight"], before)


@pytest.mark.parametrize("make", [image_state, region_state])
def test_fold_layer_scale__features_are_the_same(tmp_path: Path, make: Callable[..., State]) -> None:
    weights = read_weights(save(tmp_path / "a.pth", make(layer_scale=True)))
    before = {name: value.clone() for name, value in weights.backbone.items()}
    folded = fold_layer_scale(weights)
    inputs = normalise(_images())
    if weights.architecture.kind == "region":
        inputs = torch.randn(4, 3, 3, 10, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(load_backbone(folded)(inputs), load_backbone(weights)(inputs), rtol=1e-5, atol=1e-5)
    assert folded.backbone.keys() == make().keys()
    assert not folded.architecture.layer_scale
    assert folded.fingerprint != weights.fingerprint
    assert_equal(weights.backbone, before)


def test_fold_normalization__not_for_regions(tmp_path: Path) -> None:
    weights = read_weights(save(tmp_path / "a.pth", region_state()))
    with pytest.raises(ConfigError, match="a model of regions has no normalisation"):
        fold_normalization(weights, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
