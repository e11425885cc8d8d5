"""How fast does a run train from shards, and does the GPU wait? Against a plain step that is fed by the same loader.

    python benchmarks/gpu_train.py [--steps 100] [--batch 256] [--part 256] [--workers N] [--data DATASET]
                                   [--device cuda] [--json FILE] [KEY=VALUE …]

dinowds is `dinowds.train.loop.train` as the command line calls it, from a dataset on disk (by default one of JPEG
patches of 256 px, cut from photographs): loader processes decode, the device renders, with the schedule, the guard and
metrics.jsonl, whose lines give images/s and the share of the time that is spent waiting for data. The plain step
(plain.py) gets the views of the same loader, without accumulation. Steps before `--warm` do not count.

MFU: images/s · `step_flops` / the maker's figure of dense products in that precision.

KEY=VALUE are a run's own overrides, such as train.compile=true. To see that it runs, without a GPU:

    python benchmarks/gpu_train.py --device cpu --batch 4 --steps 2 --warm 1 --images 16 --workers 0 \\
        student.arch=vit_tiny student.depth=1 student.out_dim=64 crops.global.size=32 crops.local.size=16
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import append_result, machine, photo_patches
from plain import plain_trainer, plain_views

from dinowds.config import PatchConfig, load_config
from dinowds.data.dataset import Dataset
from dinowds.data.order.make import make_plan, order_of
from dinowds.model.dino import architecture_of, num_prototypes
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.devices import numerics
from dinowds.train.diagnostics import peak_flops, step_flops
from dinowds.train.feed import cache_options, feed
from dinowds.train.kinds import resolve_kind, view_maker
from dinowds.train.learner import initial_models
from dinowds.train.loop import resolve, train
from dinowds.train.monitor import METRICS_NAME, Progress, SilentObserver
from dinowds.train.schedule import values_at
from dinowds.world import World

PACKAGES = ("numpy", "pillow", "simplejpeg", "timm", "torch", "torchvision", "webdataset")
PATCH_SIZE = 256


def make_dataset(folder: Path, count: int) -> Path:
    source = folder / "source"
    source.mkdir()
    for index, payload in enumerate(photo_patches(count, PATCH_SIZE, seed=0)):
        (source / f"{index:06d}.jpg").write_bytes(payload)
    build_dataset([source], folder / "dataset", ShardOptions())
    return folder / "dataset"


def make_config(options: argparse.Namespace) -> PatchConfig:
    return load_config(
        None,
        [
            f"train.batch_size={options.batch}",
            f"train.max_batch_per_device={options.part}",
            f"train.log_every={max(1, min(10, options.steps // 2))}",
            "train.save_every_steps=0",
            "train.save_every=1000",
            "optim.epochs=1000",
            f"optim.max_steps={options.warm + options.steps}",
            *([] if options.workers is None else [f"speed.num_workers={options.workers}"]),
            *options.overrides,
        ],
    )


class Clock(SilentObserver):
    """When each step was done: metrics are read one step late, so always by the same."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def progress(self, progress: Progress) -> None:
        self.times.setdefault(progress.step, time.perf_counter())


def of_dinowds(data: Path, folder: Path, config: PatchConfig, warm: int) -> dict[str, float]:
    """A run as it is."""
    clock, batch = Clock(), config.train.batch_size
    end = train(data, folder / "run", config, clock).step
    lines = [json.loads(line) for line in (folder / "run" / METRICS_NAME).read_text().splitlines()]
    lines = [line for line in lines if line["step"] > warm and line.get("images_per_second")]
    spent = [batch / line["images_per_second"] for line in lines]  # for one step
    shares = [line["waiting_share"] for line in lines]
    waiting_share = sum(map(operator.mul, spent, shares)) / sum(spent)
    return figures((end - warm) * batch, clock.times[end] - clock.times[warm], waiting_share)


def of_plain(data: Path, config: PatchConfig, warm: int, device: torch.device) -> dict[str, float]:
    """The plain step in a plain loop, on the views of dinowds' loader."""
    dataset = Dataset.open(data)
    plan = make_plan(dataset, order_of(config))
    config = resolve_kind(resolve(config, plan.order, len(dataset), device), dataset, device, cache_options(config))
    trainer = plain_trainer(initial_models(config)[0].state_dict(), config, device)
    maker, world, end = view_maker(config, device), World(), config.optim.max_steps
    assert end is not None
    waited, began = 0.0, time.perf_counter()
    for step, fed in enumerate(feed(dataset, plan, config, maker, world, device, 0, end)):
        if step == warm:
            waited, began = 0.0, time.perf_counter()
        waited += fed.waited
        trainer.step(plain_views(fed.views), values_at(config, plan.steps_per_epoch, step), config.crops.global_.count)
        del fed
    spent = time.perf_counter() - began
    return figures((end - warm) * config.train.batch_size, spent, waited / spent)


def figures(images: int, spent: float, waiting_share: float) -> dict[str, float]:
    return {"images_per_second": images / spent, "waiting_share": waiting_share, "peak_gib": peak_gib()}


def peak_gib() -> float:
    """Of the device since it was last asked; of this process on the CPU, since it began."""
    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(folder: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = options.data or make_dataset(folder, options.images)
    config = make_config(options)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    dataset = Dataset.open(data)
    resolved = resolve(config, make_plan(dataset, order_of(config)).order, len(dataset), device)
    flops = step_flops(architecture_of(config), config, num_prototypes(resolved.student))
    peak = peak_flops(name, resolved.speed.precision, resolved.speed.tf32)
    found = {"dinowds": of_dinowds(data, folder, config, options.warm)}
    with numerics(device, config.speed.tf32, config.train.deterministic):
        found["plain"] = of_plain(data, config, options.warm, device)
    for who, row in found.items():
        if peak:
            row["mfu"] = row["images_per_second"] * flops / peak
        shown = f"{row['mfu']:6.1%} MFU" if peak else "no peak FLOP/s known"
        print(
            f"{who:8s} {row['images_per_second']:9,.1f} images/s  {shown}  waiting {row['waiting_share']:6.2%}  "
            f"peak {row['peak_gib']:.1f} GiB"
        )
    ratio = found["dinowds"]["images_per_second"] / found["plain"]["images_per_second"]
    print(f"dinowds / plain: {ratio:.2f}")
    return {
        "device": name,
        "precision": resolved.speed.precision,
        "batch": options.batch,
        "part": options.part,
        "steps": options.steps,
        "workers": options.workers,
        "overrides": options.overrides,
        "flops_per_image": flops,
        "peak_flops_per_s": peak,
        **found,
        "ratio": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--data", type=Path, help="a dataset of images, instead of a made one")
    parser.add_argument("--images", type=int, default=8192, help="of the made dataset; epochs repeat them")
    parser.add_argument("--batch", type=int, default=256, help="images of a step")
    parser.add_argument("--part", type=int, default=256, help="images that go through dinowds' model at once")
    parser.add_argument("--workers", type=int, help="loader processes; dinowds' choice by default")
    parser.add_argument("--warm", type=int, default=20, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=100, help="that count")
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of dinowds' configuration")
    options = parser.parse_intermixed_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu shows that it runs")
    print(machine(PACKAGES))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DINOWDS_CACHE"] = f"{folder}/cache"
        result = measure(Path(folder), options, torch.device(options.device))
    if options.json:
        append_result(options.json, "gpu_train", result, PACKAGES)


if __name__ == "__main__":
    main()
