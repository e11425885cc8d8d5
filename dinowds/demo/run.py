"""The way itself: cohorts → datasets → patch run → regions → region run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dinowds.config import PatchConfig, RegionConfig, RunConfig
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.demo.photos import CELL_SIZE, photo_names, write_cohorts, write_lattices
from dinowds.demo.scores import Task, load_labelled, mean_of_cells, raw_pixels
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.model.dino import num_prototypes
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.learner import initial_models
from dinowds.train.loop import Outcome, train
from dinowds.train.monitor import METRICS_NAME, Observer, last_figure

PATCH_KNN_EVERY, REGION_KNN_EVERY = 50, 100
"""Optimizer steps between live kNN figures, of patches those of every third to save time."""
REGION_SIZE, STRIDE = 6 * CELL_SIZE, CELL_SIZE
"""px."""
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Score:
    """One of the two trainings."""

    accuracies: dict[str, float]
    """Features → kNN accuracy on the test samples, 0 to 1."""
    num_train: int
    num_test: int
    steps: int
    loss: float
    ln_k: float


@dataclass(frozen=True)
class Result:
    """What the demo finds."""

    num_classes: int
    patches: Score
    regions: Score

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_demo(out: Path, patch_config: PatchConfig, region_config: RegionConfig, observer: Observer) -> Result:
    """Everything in folder `out`: `cohorts/`, datasets, features and run folders. Goes on if stopped."""
    patches = _train_patches(out, patch_config, observer)
    regions = _train_regions(out, region_config, observer)
    return Result(len(photo_names()), patches, regions)


def _train_patches(out: Path, config: PatchConfig, observer: Observer) -> Score:
    for split in SPLITS:
        _make_dataset(out, split, out / "cohorts" / split, write_cohorts, observer)
    task = Task(*(load_labelled(out / split, decode_image) for split in SPLITS))
    untrained, _ = initial_models(config)
    accuracies = {"raw pixels": task.accuracy(raw_pixels), "untrained ViT": task.accuracy_of(untrained.backbone)}
    _tell(accuracies, observer)
    observer.message(f"$ dinowds train patch --data {out}/train --out {out}/run --config configs/demo.yaml")
    outcome = train(out / "train", out / "run", config, observer, partial(task.live, PATCH_KNN_EVERY, stride=3))
    return _score(task, accuracies, outcome, out / "run", config)


def _train_regions(out: Path, config: RegionConfig, observer: Observer) -> Score:
    for split in SPLITS:
        _make_dataset(out, f"lattice-{split}", out / "cohorts" / f"lattice-{split}", write_lattices, observer)
        _make_regions(out, split, observer)
    task = Task(*(load_labelled(out / f"regions-{split}", decode_grid) for split in SPLITS))
    untrained, _ = initial_models(_for_cells(config, task.train.samples.shape[-1]))
    accuracies = {
        "mean of its patches": task.accuracy(mean_of_cells),
        "untrained ViT": task.accuracy_of(untrained.backbone),
    }
    _tell(accuracies, observer)
    run = out / "region-run"
    observer.message(f"$ dinowds train region --data {out}/regions-train --out {run} --config configs/demo_region.yaml")
    outcome = train(out / "regions-train", run, config, observer, partial(task.live, REGION_KNN_EVERY, stride=1))
    return _score(task, accuracies, outcome, run, config)


def _for_cells(config: RegionConfig, channels: int) -> RegionConfig:
    return replace(config, student=replace(config.student, input_dim=channels))


def _score(task: Task, accuracies: dict[str, float], outcome: Outcome, run: Path, config: RunConfig) -> Score:
    return Score(
        accuracies
        | {
            "student": task.accuracy_of(outcome.student.backbone),
            "teacher": task.accuracy_of(outcome.teacher.backbone),
        },
        num_train=len(task.train.labels),
        num_test=len(task.test.labels),
        steps=outcome.step,
        loss=last_figure(run / METRICS_NAME, "loss"),
        ln_k=math.log(num_prototypes(config.student)),
    )


def _tell(accuracies: dict[str, float], observer: Observer) -> None:
    observer.message(", ".join(f"{name}: kNN {accuracy:.3f}" for name, accuracy in accuracies.items()))


def _make_dataset(
    out: Path, name: str, cohorts: Path, write: Callable[[Path, str], list[Path]], observer: Observer
) -> None:
    dataset = out / name
    if (dataset / MANIFEST_NAME).exists():
        return
    observer.message(f"$ dinowds shard {cohorts}/*.tar --out {dataset} --max-count 1000")
    paths = write(cohorts, name.removeprefix("lattice-"))
    manifest = build_dataset(paths, dataset, ShardOptions(max_count=1000))
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest.cohorts.items())
    observer.message(f"{manifest.num_samples:,} samples in {len(manifest.shards)} shards: {counts}")


def _make_regions(out: Path, split: str, observer: Observer) -> None:
    source, regions = out / f"lattice-{split}", out / f"regions-{split}"
    if (regions / MANIFEST_NAME).exists():
        return
    observer.message(
        f"$ dinowds embed region {source} --checkpoint {out}/run --out {regions} --region-size {REGION_SIZE} "
        f"--stride {STRIDE}"
    )
    options = RegionOptions(REGION_SIZE, stride=STRIDE, embedding=PatchOptions(str(out / "run")))
    embed_regions(source, regions, options, notice=observer.message)
