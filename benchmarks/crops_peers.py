"""The peers of `crops.py`: the same recipe, 2 × 224 + 8 × 96 px, in other libraries. Each draws its own numbers."""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2

Pipeline = Callable[[list[bytes]], object]
"""JPEG payloads → their views, uint8, on one thread."""

GLOBAL, LOCAL = (224, (0.4, 1.0)), (96, (0.05, 0.4))
VIEWS = ((*GLOBAL, 1.0, 0.0), (*GLOBAL, 0.1, 0.2), *[(*LOCAL, 0.5, 0.0)] * 8)
"""Side, scale, probability of blur and of solarization of each view."""


class _RandomBlur:
    """Pillow's Gaussian blur with a radius between 0.1 and 2."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class _RandomSolarize:
    """Pillow's solarization."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.solarize(picture) if random.random() < self.probability else picture


def _reference_view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(0.2),
            _RandomBlur(blur),
            _RandomSolarize(solarize),
            np.asarray,
        ]
    )


def reference() -> Pipeline:
    """Pillow decodes, torchvision works on Pillow images: what DINO's own code does."""
    views = [_reference_view(*view) for view in VIEWS]

    def run(payloads: list[bytes]) -> object:
        pictures = (Image.open(io.BytesIO(payload)).convert("RGB") for payload in payloads)
        return [[view(picture) for view in views] for picture in pictures]

    return run


def _v2_view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, solarize),
        ]
    )


def torchvision_v2() -> Pipeline:
    """torchvision decodes, its v2 transforms work on uint8 tensors."""
    views = [_v2_view(*view) for view in VIEWS]

    def run(payloads: list[bytes]) -> object:
        buffers = (torch.frombuffer(bytearray(payload), dtype=torch.uint8) for payload in payloads)
        images = (decode_jpeg(buffer, mode=ImageReadMode.RGB) for buffer in buffers)
        return [[view(image) for view in views] for image in images]

    return run


def dali() -> Pipeline:
    """NVIDIA DALI's CPU operators, one thread."""
    from nvidia.dali import fn, pipeline_def, types

    def chance(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    @pipeline_def(num_threads=1, device_id=None, enable_conditionals=True, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        encoded = fn.external_source(name="payloads", dtype=types.UINT8)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        outs = []
        for size, scale, blur, solarize in VIEWS:
            out = fn.random_resized_crop(
                image, size=size, random_area=scale, interp_type=types.INTERP_CUBIC, antialias=True
            )
            out = fn.flip(out, horizontal=fn.random.coin_flip(dtype=types.INT32))
            if chance(0.8):
                out = fn.color_twist(
                    out,
                    brightness=fn.random.uniform(range=(0.6, 1.4)),
                    contrast=fn.random.uniform(range=(0.6, 1.4)),
                    saturation=fn.random.uniform(range=(0.8, 1.2)),
                    hue=fn.random.uniform(range=(-36.0, 36.0)),
                )
            if chance(0.2):
                out = fn.hsv(out, saturation=0.0)
            if chance(blur):
                out = fn.gaussian_blur(out, sigma=fn.random.uniform(range=(0.1, 2.0)))
            if solarize and chance(solarize):
                dark = fn.cast(out < 128, dtype=types.UINT8)
                out = out * dark + (255 - out) * (types.Constant(1, dtype=types.UINT8) - dark)
                out = fn.cast(out, dtype=types.UINT8)
            outs.append(out)
        return tuple(outs)

    built: dict[int, Any] = {}

    def run(payloads: list[bytes]) -> object:
        if len(payloads) not in built:
            built[len(payloads)] = pipeline(batch_size=len(payloads))
            built[len(payloads)].build()
        pipe = built[len(payloads)]
        pipe.feed_input("payloads", [np.frombuffer(payload, np.uint8) for payload in payloads])
        return [out.as_array() for out in pipe.run()]

    return run


def has_dali() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
