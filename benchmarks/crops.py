"""How fast are the crops of one image, on one thread, against torchvision on Pillow images?

    python benchmarks/crops.py [--images 64] [--rounds 9] [--json FILE]

All read the same JPEG patches of 256 px and make 2 views of 224 px and 8 of 96 px; `hand-over` decodes them into the
memory of a batch and draws the numbers, for a device that renders. Rounds of all alternate and medians are compared, so
that a busy machine slows all alike. NVIDIA DALI takes part where it is installed (`pip install -e '.[benchmark]'`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from common import append_result, machine, photo_patches
from crops_peers import Pipeline, dali, has_dali, reference, torchvision_v2

from dinowds.config import CropsConfig
from dinowds.crops.batches import Crop
from dinowds.crops.recipe import patch_recipe, plain_view, sample_batch
from dinowds.crops.render import get_renderer
from dinowds.data.decode import decode_image
from dinowds.data.source import PlanSource

PACKAGES = ("numpy", "simplejpeg", "pillow", "torch", "torchvision")
PATCH_SIZE = 256
RECIPE = patch_recipe(CropsConfig())
OPERATIONS: dict[str, dict[str, Any]] = {
    "crop": {},
    "flip": {"flip": 1},
    "turn": {"turns": 1},
    "brightness": {"brightness": 1.2},
    "jitter": {"brightness": 1.2, "contrast": 0.8, "saturation": 1.1, "hue": 0.05},
    "grey": {"grey": 1},
    "blur 0.2": {"blur": 0.2},
    "blur 1.0": {"blur": 1.0},
    "blur 2.0": {"blur": 2.0},
    "solarize": {"solarize": 128},
}


class Payloads:
    """In the place of a PlanSource: payloads that are in memory already, all good."""

    def __init__(self, count: int) -> None:
        self.rank_batch = count

    def first_good(self, raw: dict[str, Any], read: Callable[[bytes], Any]) -> tuple[dict[str, Any], Any]:
        return raw, read(raw["jpg"])


def own(renderer: str, count: int) -> Pipeline:
    """The stage of the training stream: numbers, decoding and crops into the memory of a batch."""
    stage = Crop(cast(PlanSource, Payloads(count)), RECIPE, renderer, 0)

    def run(payloads: list[bytes]) -> object:
        place = {"__key__": "", "__ext__": "jpg", "__visit__": 0, "__step__": 0, "__bad__": []}
        raws = [{**place, "__sample__": number, "jpg": payload} for number, payload in enumerate(payloads)]
        return next(iter(stage(raws)))

    return run


def decode(payloads: list[bytes]) -> object:
    """simplejpeg alone."""
    return [simplejpeg.decode_jpeg(payload, "RGB") for payload in payloads]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def compare_pipelines(payloads: list[bytes], rounds: int) -> dict[str, float]:
    """Median milliseconds an image of each pipeline; rounds alternate."""
    pipelines: dict[str, Pipeline] = {
        "Pillow + torchvision on PIL": reference(),
        "torchvision v2 on tensors": torchvision_v2(),
        **({"NVIDIA DALI, CPU operators": dali()} if has_dali() else {}),
        "renderer pil": own("pil", len(payloads)),
        "renderer cpu": own("cpu", len(payloads)),
        "hand-over to the device": own("device", len(payloads)),
        "decode alone": decode,
    }
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for pipeline in pipelines.values():
        pipeline(payloads)
    for _ in range(rounds):
        for name, pipeline in pipelines.items():
            times[name].append(milliseconds(partial(pipeline, payloads)) / len(payloads))
    return {name: statistics.median(values) for name, values in times.items()}


def numbers_alone(count: int = 256) -> float:
    """Milliseconds an image for the random numbers and the records."""
    sizes = [PATCH_SIZE] * count
    draw = partial(sample_batch, 0, [0] * count, range(count), RECIPE, sizes, sizes)
    return statistics.median(milliseconds(draw) for _ in range(9)) / count


def compare_operations(image: npt.NDArray[np.uint8], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds that each operation adds to a crop alone, for both renderers and sizes."""
    rows = []
    for size, side in ((224, 200), (96, 120)):
        medians = {
            name: [_operation_time(renderer, image, plain_view(20, 30, side, side, size, **changes), rounds)
                   for renderer in ("pil", "cpu")]
            for name, changes in OPERATIONS.items()
        }  # fmt: skip
        for name, (pil, cpu) in medians.items():
            crop_pil, crop_cpu = (0.0, 0.0) if name == "crop" else medians["crop"]
            rows.append({"size": size, "operation": name, "pil_ms": pil - crop_pil, "cpu_ms": cpu - crop_cpu})
    return rows


def _operation_time(renderer: str, image: npt.NDArray[np.uint8], view: Any, rounds: int) -> float:
    views = np.array([view] * 4)  # several, as in a recipe: what is done once an image is shared
    outs = [np.empty((3, int(view["size"]), int(view["size"])), np.uint8) for _ in views]
    work = partial(get_renderer(renderer), image, views, outs)
    return statistics.median(milliseconds(work) for _ in range(rounds * 5)) / len(views)


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
    packages = (*PACKAGES, "nvidia-dali-cuda120") if has_dali() else PACKAGES
    pipelines = compare_pipelines(payloads, options.rounds)
    numbers = numbers_alone()
    operations = compare_operations(decode_image(payloads[0]), options.rounds)

    print(machine(packages))
    print(f"\n{'2×224 + 8×96, one thread':34s} {'ms/image':>9s} {'images/s':>9s} {'× reference':>12s}")
    first = next(iter(pipelines.values()))
    for name, value in pipelines.items():
        print(f"{name:34s} {value:9.3f} {1e3 / value:9.0f} {first / value:12.2f}")
    print(f"{'numbers alone':34s} {numbers:9.4f}")
    print(f"\n{'one view':10s} {'operation':12s} {'pil ms':>8s} {'cpu ms':>8s} {'ratio':>7s}")
    for row in operations:
        shown = f"{row['pil_ms'] / row['cpu_ms']:7.1f}" if row["cpu_ms"] > 0.002 else "      –"
        print(f"{row['size']:<10d} {row['operation']:12s} {row['pil_ms']:8.3f} {row['cpu_ms']:8.3f} {shown}")
    if options.json:
        ratios = {name: first / value for name, value in pipelines.items()}
        content = {"images": options.images, "ratios": ratios, "ms_per_image": pipelines, "numbers_ms": numbers}
        append_result(options.json, "crops", {**content, "operations": operations}, packages)


if __name__ == "__main__":
    main()
