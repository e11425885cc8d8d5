"""Can the data keep up with a GPU: the device renderer, a ViT-S/16 training step, and both from shards?

    python benchmarks/gpu_data.py [--workers 1 2 4 8 16] [--batch 256] [--json FILE]

One GPU, JPEG patches of 256 px, 2 × 224 + 8 × 96 px.

- render: a batch that lies in pinned memory is copied to the device and rendered, without and with torch.compile.
- step: forward, backward and update of ViT-S/16 with K = 65,536 on views that are there already, in bf16.
- end to end: loader processes read shards from the page cache and decode, this process copies and renders. The GPU has
  nothing else to do, so this is what so many cores sustain.

`--device cpu` shows that it runs, with `--batch 4` and `--steps 2`; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import append_result, machine, photo_patches
from torch import Tensor

from dinowds.config import PatchConfig
from dinowds.crops.batches import Batch, Crop
from dinowds.crops.device import DeviceRenderer
from dinowds.crops.recipe import patch_recipe
from dinowds.data.blocks import Blocks
from dinowds.data.dataset import Dataset
from dinowds.data.loader import load
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.source import PlanSource, stream
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.loop import build_learner
from dinowds.train.schedule import values_at
from dinowds.train.step import StepSettings, train_step
from dinowds.world import World

PACKAGES = ("numpy", "simplejpeg", "pillow", "timm", "torch", "torchvision", "webdataset")
PATCH_SIZE = 256
DISTINCT = 8192
"""Patches in the dataset; epochs repeat them."""
CONFIG = PatchConfig()
RECIPE = patch_recipe(CONFIG.crops)


def make_dataset(folder: Path, count: int) -> Dataset:
    source = folder / "source"
    source.mkdir()
    for index, payload in enumerate(photo_patches(count, PATCH_SIZE, seed=0)):
        (source / f"{index:06d}.jpg").write_bytes(payload)
    build_dataset([source], folder / "dataset", ShardOptions())
    return Dataset.open(folder / "dataset")


def batches(dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> Any:
    """Without end, from the page cache."""
    plan = make_plan(dataset, Order(batch_size=batch_size, seed=0))
    source = PlanSource(dataset, plan, World(), 0)
    crop = Crop(source, RECIPE, "device", 0, Blocks(workers))
    return load(stream(source, crop), workers, pin_memory=device.type == "cuda")


def seconds(work: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median of a call that the device has done; the first three are not counted."""
    times = []
    for _ in range(3 + steps):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def render_seconds(batch: Batch, steps: int, device: torch.device, is_compiled: bool) -> float:
    render = DeviceRenderer(RECIPE, device, compile=is_compiled)
    assert batch.images is not None
    images = batch.images
    return seconds(lambda: render(*images), steps, device)


def step_seconds(views: dict[str, Tensor], steps: int, device: torch.device, max_part: int) -> float:
    """Of the training step as it is, micro-batches included."""
    batch_size = next(iter(views.values())).shape[1]
    config = replace(CONFIG, train=replace(CONFIG.train, batch_size=batch_size))
    learner = build_learner(config, device)
    settings = StepSettings(device, torch.bfloat16, min(batch_size, max_part), batch_size, 3.0, seed=0, rank=0)
    return seconds(lambda: train_step(learner, settings, views, 0, values_at(config, 1000, 0)), steps, device)


def end_to_end(dataset: Dataset, batch_size: int, workers: int, steps: int, device: torch.device) -> float:
    """Images/s that `workers` loader processes sustain, decoded, copied and rendered."""
    render = DeviceRenderer(RECIPE, device)
    stream_of = batches(dataset, batch_size, workers, device)
    first, count = 2 * workers + 2, -(-steps // workers) * workers  # processes deliver in rounds: whole ones count
    began = 0.0
    for step, batch in enumerate(stream_of):
        if step in (first, first + count):
            wait_for(device)
            began, spent = time.perf_counter(), time.perf_counter() - began
        if step == first + count:
            break
        assert batch.images is not None
        render(*batch.images)
        del batch
    stream_of.close()
    return count * batch_size / spent


def measure(folder: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    dataset = make_dataset(folder, min(DISTINCT, 32 * options.batch))
    batch = next(batches(dataset, options.batch, 0, device))
    result: dict[str, Any] = {"batch": options.batch, "device": device_name(device)}
    for name, is_compiled in (("render_s", False), ("render_compiled_s", True)):
        result[name] = render_seconds(batch, options.steps, device, is_compiled)
        print(f"{name:24s} {result[name] * 1e3:9.2f} ms {options.batch / result[name]:12,.0f} images/s")
    views = DeviceRenderer(RECIPE, device)(*batch.images)
    result["step_s"] = step_seconds(views, options.steps, device, options.part)
    print(f"{'step_s':24s} {result['step_s'] * 1e3:9.2f} ms {options.batch / result['step_s']:12,.0f} images/s")
    result["share_of_step"] = result["render_compiled_s"] / result["step_s"]
    print(f"{'share of a step':24s} {result['share_of_step']:9.1%}")
    result["end_to_end_images_per_s"] = {}
    for workers in options.workers:
        rate = end_to_end(dataset, options.batch, workers, options.steps, device)
        result["end_to_end_images_per_s"][str(workers)] = rate
        print(f"{workers:3d} loader processes     {rate:25,.0f} images/s")
    return result


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="loader processes")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--part", type=int, default=128, help="images that go through the model at once")
    parser.add_argument("--steps", type=int, default=20, help="of each measurement")
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu shows that it runs")
    device = torch.device(options.device)
    print(machine(PACKAGES))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DINOWDS_CACHE"] = f"{folder}/cache"
        result = measure(Path(folder), options, device)
    if options.json:
        append_result(options.json, "gpu_data", result, PACKAGES)


if __name__ == "__main__":
    main()
