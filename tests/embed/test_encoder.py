from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinowds.embed.encoder import Encoder
from dinowds.errors import ConfigError
from dinowds.model.weights import load_backbone, read_weights
from tests.embed.support import MEAN, STD, TINY

CPU = torch.device("cpu")


def some_images(count: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def plain_tokens(weights_path: Path, images: Tensor) -> Tensor:
    """[N, 1 + T, D], image by image."""
    backbone = load_backbone(read_weights(weights_path))
    pixels = ((images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    return torch.cat([backbone.forward_features(image[None]) for image in pixels])


def test_encoder__gives_class_and_patch_tokens_of_the_backbone(weights_path: Path) -> None:
    encoder = Encoder(read_weights(weights_path), CPU, "fp32", batch_size=3)
    images, expected = some_images(7), plain_tokens(weights_path, some_images(7))
    features, tokens = encoder.features(images), encoder.tokens(images)
    assert features.shape == (7, encoder.dim)
    assert tokens.shape == (7, 16, encoder.dim)
    assert features.dtype == tokens.dtype == torch.float32
    torch.testing.assert_close(features, expected[:, 0], rtol=0, atol=2e-6)
    torch.testing.assert_close(tokens, expected[:, 1:], rtol=0, atol=2e-6)


def test_encoder__tokens_are_row_by_row(weights_path: Path) -> None:
    """Of an image of 2 × 3 tokens, a change in the square at row 1, column 2 changes the sixth token most."""
    encoder = Encoder(read_weights(weights_path), CPU, "fp32")
    images = some_images(1, 16, 24).repeat(2, 1, 1, 1)
    images[1, 8:, 16:] = 255 - images[1, 8:, 16:]
    before, after = encoder.tokens(images)
    assert int((after - before).norm(dim=1).argmax()) == 5


def test_encoder__other_sizes_and_no_image(weights_path: Path) -> None:
    encoder = Encoder(read_weights(weights_path), CPU, "fp32")
    images = some_images(2, 16, 40)
    torch.testing.assert_close(encoder.features(images), plain_tokens(weights_path, images)[:, 0], rtol=0, atol=2e-6)
    assert encoder.features(images[:0]).shape == (0, encoder.dim)
    assert encoder.tokens(images[:0]).shape == (0, 10, encoder.dim)


def test_encoder__bf16_is_near_fp32_and_another(weights_path: Path) -> None:
    images = some_images(4)
    fp32, bf16 = (Encoder(read_weights(weights_path), CPU, kind).features(images) for kind in ("fp32", "bf16"))
    assert bf16.dtype == torch.float32
    assert 0 < float((fp32 - bf16).abs().max()) < 0.2


def test_encoder__what_cannot_be_is_refused(weights_path: Path) -> None:
    weights = read_weights(weights_path)
    region = replace(weights, architecture=replace(TINY, kind="region"))
    for given, precision, batch_size, message in (
        (region, "fp32", 1, "a model of regions, expected one of images"),
        (weights, "fp8", 1, "precision is 'fp8', expected one of auto, bf16, fp32"),
        (weights, "fp32", 0, "batch size is 0, expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Encoder(given, CPU, precision, batch_size)
