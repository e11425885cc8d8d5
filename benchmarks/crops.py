"""How fast are the crops of one image, on one thread, against torchvision on Pillow images?

Both read the same JPEG patches and make 2 views of 224 px and 8 of 96 px. Rounds of both alternate and medians are
compared, so that a busy machine slows both alike.

    python benchmarks/crops.py [--images 64] [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from common import append_result, machine, photo_patches
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from dinowds.config import CropsConfig
from dinowds.crops.recipe import Jitter, View, patch_recipe, sample_generator, sample_views
from dinowds.crops.render import get_renderer

PACKAGES = ("numpy", "opencv-python-headless", "pillow", "torch", "torchvision")

PATCH_SIZE = 256
RECIPE = patch_recipe(CropsConfig())
OPERATIONS: dict[str, dict[str, Any]] = {
    "crop": {},
    "flip": {"flip": True},
    "jitter": {"jitter": Jitter(1.2, 0.8, 1.1, 0.05, (0, 1, 2, 3))},
    "grey": {"grey": True},
    "blur 0.2": {"blur": 0.2},
    "blur 1.0": {"blur": 1.0},
    "blur 2.0": {"blur": 2.0},
    "solarize": {"solarize": 128},
}


class RandomBlur:
    """Pillow's Gaussian blur with a radius between 0.1 and 2."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class RandomSolarize:
    """Pillow's solarization."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.solarize(picture) if random.random() < self.probability else picture


def reference_transform(size: int, scale: tuple[float, float], blur: float, solarize: float) -> transforms.Compose:
    """One view of the reference recipe, uint8 [size, size, 3] at the end."""
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(0.2),
            RandomBlur(blur),
            RandomSolarize(solarize),
            np.asarray,
        ]
    )


def reference_recipe() -> Callable[[bytes], list[npt.NDArray[np.uint8]]]:
    """Pillow decodes, torchvision draws its own numbers and works on Pillow images."""
    views = [reference_transform(224, (0.4, 1.0), 1.0, 0.0), reference_transform(224, (0.4, 1.0), 0.1, 0.2)]
    views += [reference_transform(96, (0.05, 0.4), 0.5, 0.0)] * 8

    def run(payload: bytes) -> list[npt.NDArray[np.uint8]]:
        picture = Image.open(io.BytesIO(payload)).convert("RGB")
        return [view(picture) for view in views]

    return run


def decode(payload: bytes) -> npt.NDArray[np.uint8]:
    """JPEG → uint8 [H, W, 3], RGB."""
    image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(image, np.uint8)


def own_recipe(name: str) -> Callable[[bytes], list[npt.NDArray[np.uint8]]]:
    """OpenCV decodes, `sample_views` draws the numbers, a renderer writes into memory that stays."""
    render = get_renderer(name)
    outs = [np.empty((output.count, output.size, output.size, 3), np.uint8) for output in RECIPE.outputs]
    flat = [view for out in outs for view in out]
    samples = iter(range(10**9))

    def run(payload: bytes) -> list[npt.NDArray[np.uint8]]:
        image = decode(payload)
        height, width = image.shape[:2]
        records = sample_views(sample_generator(0, 0, next(samples)), RECIPE, height, width)
        for view, out in zip(records, flat, strict=True):
            render(image, view, out)
        return flat

    return run


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def run_all(pipeline: Callable[[bytes], object], payloads: list[bytes]) -> None:
    for payload in payloads:
        pipeline(payload)


def compare_recipes(payloads: list[bytes], rounds: int) -> dict[str, float]:
    """Median milliseconds an image of each pipeline; rounds alternate."""
    pipelines: dict[str, Callable[[bytes], object]] = {
        "reference": reference_recipe(),
        "pil": own_recipe("pil"),
        "cpu": own_recipe("cpu"),
        "decode": decode,
    }
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for pipeline in pipelines.values():
        run_all(pipeline, payloads)
    for _ in range(rounds):
        for name, pipeline in pipelines.items():
            times[name].append(milliseconds(partial(run_all, pipeline, payloads)) / len(payloads))
    return {name: statistics.median(values) for name, values in times.items()}


def numbers_alone(count: int = 500) -> float:
    """Milliseconds an image for the generator and the records."""
    return (
        milliseconds(lambda: [sample_views(sample_generator(0, 0, i), RECIPE, 256, 256) for i in range(count)]) / count
    )


def compare_operations(image: npt.NDArray[np.uint8], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds that each operation adds to a crop alone, for both renderers and sizes."""
    rows = []
    for size, side in ((224, 200), (96, 120)):
        plain = View(20, 30, side, side, size, False, None, False, None, None)
        medians = {
            name: _operation_times(image, plain._replace(**fields), rounds) for name, fields in OPERATIONS.items()
        }
        for name, (pil, cpu) in medians.items():
            crop_pil, crop_cpu = (0.0, 0.0) if name == "crop" else medians["crop"]
            rows.append({"size": size, "operation": name, "pil_ms": pil - crop_pil, "cpu_ms": cpu - crop_cpu})
    return rows


def _operation_times(image: npt.NDArray[np.uint8], view: View, rounds: int) -> tuple[float, float]:
    out = np.empty((view.size, view.size, 3), np.uint8)
    medians = []
    for render in (get_renderer("pil"), get_renderer("cpu")):
        times = [milliseconds(partial(render, image, view, out)) for _ in range(rounds * 10)]
        medians.append(statistics.median(times))
    return medians[0], medians[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="JPEG patches of 256 px")
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds; the median counts")
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    payloads = photo_patches(options.images, PATCH_SIZE, seed=0)
    recipes = compare_recipes(payloads, options.rounds)
    numbers = numbers_alone()
    operations = compare_operations(decode(payloads[0]), options.rounds)

    print(machine(PACKAGES))
    print(f"\n{'2×224 + 8×96, one thread':34s} {'ms/image':>9s} {'images/s':>9s} {'× reference':>12s}")
    titles = {
        "reference": "Pillow + torchvision on PIL",
        "pil": "renderer pil",
        "cpu": "renderer cpu",
        "decode": "decode alone",
    }
    for name, title in titles.items():
        ratio = recipes["reference"] / recipes[name]
        print(f"{title:34s} {recipes[name]:9.2f} {1e3 / recipes[name]:9.0f} {ratio:12.2f}")
    print(f"{'numbers alone':34s} {numbers:9.3f}")
    print(f"\n{'one view':10s} {'operation':12s} {'pil ms':>8s} {'cpu ms':>8s} {'ratio':>7s}")
    for row in operations:
        shown = f"{row['pil_ms'] / row['cpu_ms']:7.1f}" if row["cpu_ms"] > 0.002 else "      –"
        print(f"{row['size']:<10d} {row['operation']:12s} {row['pil_ms']:8.3f} {row['cpu_ms']:8.3f} {shown}")
    if options.json:
        ratio = recipes["reference"] / recipes["cpu"]
        content = {"images": options.images, "ratio_cpu": ratio, "ms_per_image": recipes, "numbers_ms": numbers}
        append_result(options.json, "crops", {**content, "operations": operations}, PACKAGES)


if __name__ == "__main__":
    main()
