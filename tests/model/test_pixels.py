"""Pixels as a backbone takes them."""

from __future__ import annotations

import torch

from dinowds.model.pixels import normalise

IMAGES = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalise__imagenet_by_default() -> None:
    pixels = normalise(IMAGES)
    assert (pixels.shape, pixels.dtype) == ((5, 3, 8, 6), torch.float32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels[3, :, 4, 5], (IMAGES[3, :, 4, 5].float() / 255 - mean) / std)


def test_normalise__as_asked_for() -> None:
    halves = normalise(IMAGES, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125))
    scale = torch.tensor([0.5, 0.25, 0.125])[:, None, None]
    torch.testing.assert_close(halves, (IMAGES.float() / 255 - 0.5) / scale)
    assert torch.equal(normalise(IMAGES), normalise(IMAGES))  # the other one has left nothing behind


def test_normalise__is_rounded_once() -> None:
    assert torch.equal(normalise(IMAGES, torch.bfloat16), normalise(IMAGES).bfloat16())
