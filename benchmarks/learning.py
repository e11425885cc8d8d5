"""Does a run learn? Texture16: which of 16 photographs is a grey patch from, by the features of a small ViT.

    python benchmarks/learning.py --seeds 0 1 2 --json benchmarks/results/learning.json [KEY=VALUE]...

64 px patches of scikit-image's photographs, standardised to one mean and contrast, so that texture alone is left: 240
of the left 60 % of each to train on, 80 of the right 40 % to test with. Weighted 20-NN accuracy of raw pixels, of local
binary patterns, of the ViT before training, and of student and teacher after it. Labels are used for this figure alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import append_result
from skimage.feature import local_binary_pattern
from task import Task, load_labelled, raw_pixels
from torch import Tensor

from dinowds.config import load_config
from dinowds.data.decode import decode_image
from dinowds.demo.photos import write_cohorts
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.learner import initial_models
from dinowds.train.loop import train
from dinowds.train.monitor import METRICS_NAME, last_figure

PACKAGES = ("torch", "timm", "scikit-image")
MODEL = (
    "student.arch=vit_tiny", "student.depth=6", "student.patch_size=8",
    "crops.global.size=64", "crops.local.size=32", "crops.local.count=4",
    "train.batch_size=64", "train.save_every=1000", "train.save_every_steps=0", "train.log_every=20",
)  # fmt: skip
"""What the task says."""
RECIPE = (
    "student.use_bn_in_head=true", "student.out_dim=1024", "student.drop_path_rate=0",
    "optim.lr=0.003", "optim.epochs=6", "optim.warmup_epochs=1", "teacher.momentum_teacher=0.98",
    "crops.global.blur=[0.0]", "crops.local.blur=[0.0]", "crops.global.solarize=[0.0]",
)  # fmt: skip
"""What is chosen, see docs/experiments.md."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="append the result to this list")
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as optim.lr=1e-3")
    arguments = parser.parse_args()
    overrides = [*MODEL, *RECIPE, *arguments.overrides]
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder))
        fixed = {"raw_pixels": task.accuracy(raw_pixels), "binary_patterns": task.accuracy(binary_patterns)}
        print(f"{json.dumps(fixed)}; chance: {1 / 16:.3f}", flush=True)
        results = [run(Path(folder), task, seed, overrides) for seed in arguments.seeds]
    least = min(result["teacher"] for result in results)
    mean = float(np.mean([result["teacher"] for result in results]))
    print(f"teacher, {len(results)} seeds: mean {mean:.3f}, least {least:.3f}")
    if arguments.json:
        content = {"overrides": overrides, **fixed, "runs": results}
        append_result(arguments.json, "learning", content, PACKAGES)


def make_task(folder: Path) -> Task:
    for split in ("train", "test"):
        cohorts = write_cohorts(folder / "cohorts" / split, split)
        build_dataset(cohorts, folder / split, ShardOptions(max_count=1000))
    return Task(*(load_labelled(folder / split, decode_image) for split in ("train", "test")))


def binary_patterns(images: Tensor) -> Tensor:
    """Square roots of how frequent each of the 256 local binary patterns is (8 neighbours at 1 px; Ojala et al. 2002).

    What an accuracy without learning can be, where the finest structure of a patch is looked at.
    """
    codes = (local_binary_pattern(image, 8, 1).astype(np.int64).ravel() for image in images[..., 0].numpy())
    return torch.from_numpy(np.stack([np.bincount(code, minlength=256) for code in codes])).float().sqrt()


def run(folder: Path, task: Task, seed: int, overrides: list[str]) -> dict[str, Any]:
    config = load_config(None, [*overrides, f"train.seed={seed}"])
    untrained, _ = initial_models(config)
    begin, out = time.perf_counter(), folder / f"run-{seed}"
    outcome = train(folder / "train", out, config)
    result = {
        "seed": seed,
        "steps": outcome.step,
        "untrained": task.accuracy_of(untrained.backbone),
        "student": task.accuracy_of(outcome.student.backbone),
        "teacher": task.accuracy_of(outcome.teacher.backbone),
        "loss_share": last_figure(out / METRICS_NAME, "loss_share"),
        "seconds": round(time.perf_counter() - begin),
    }
    print(json.dumps(result), flush=True)
    return result


if __name__ == "__main__":
    main()
