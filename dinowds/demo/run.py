"""The way itself: cohorts → datasets → patch run → regions → region run, each evaluated, and their pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dinowds.config import PatchConfig, RegionConfig, RunConfig
from dinowds.crops.examples import example_sheet
from dinowds.data.dataset import Dataset
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.demo.photos import CELL_SIZE, photo_folder, photo_names, write_cohorts, write_labels, write_lattices
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.eval.attend.run import AttendOptions, attend
from dinowds.eval.evaluate import EvalOptions, evaluate_knn
from dinowds.eval.history import keep_evaluation, read_evaluations
from dinowds.eval.subjects import ModelOptions
from dinowds.eval.tune import evaluation_of
from dinowds.files import atomic_write
from dinowds.report.make import make_report
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.choice import Choice
from dinowds.train.loop import train
from dinowds.train.monitor import Observer

REGION_SIZE, STRIDE = 6 * CELL_SIZE, CELL_SIZE
"""px."""
SPLITS = ("train", "test")
NUM_EXAMPLES = 4
"""Samples whose views are drawn."""
NUM_NEIGHBOURS = 20
LOOKED_AT = ("ihc.png", "chelsea.png")
"""Photographs, whole and in their colours; patches of them, grey, are trained on."""
SOME, SOME_SHARE = "some", 1 / 3
"""The subset that is classified while a run goes on, to save time, and its share of the samples."""


@dataclass(frozen=True)
class Result:
    """What the demo finds."""

    num_classes: int
    patches: dict[str, Any]
    """Of the patch run's teacher and student, and of baselines: as `eval.evaluate.Evaluation.to_json`."""
    regions: dict[str, Any]
    """The same of the region run."""
    pictures: list[str]
    """PNG files: views of samples, and what the patch run's teacher looks at in photographs."""
    pages: list[str]
    """HTML files."""


def run_demo(out: Path, patch_config: PatchConfig, region_config: RegionConfig, observer: Observer) -> Result:
    """Everything in folder `out`: `cohorts/`, datasets, features, run folders and pages. Goes on if stopped."""
    labels = write_labels(out / "cohorts" / "labels.csv")
    for split in SPLITS:
        _make_dataset(out, split, labels, write_cohorts, observer)
    patches = _train_and_evaluate(out, "train", "test", "run", patch_config, observer)
    for split in SPLITS:
        _make_dataset(out, f"lattice-{split}", labels, write_lattices, observer)
        _make_regions(out, split, observer)
    regions = _train_and_evaluate(out, "regions-train", "regions-test", "region-run", region_config, observer)
    pictures = [_draw_views(out, patch_config, observer), *_draw_attention(out, observer)]
    pages = [_make_page(out / name, observer) for name in ("train", "run", "region-run")]
    return Result(len(photo_names()), patches, regions, pictures, pages)


def _train_and_evaluate(
    out: Path, data: str, test: str, run: str, config: RunConfig, observer: Observer
) -> dict[str, Any]:
    """Train in folder `run`, and the evaluation of what it ends with; of an earlier call, if it was made by one."""
    some = [_some(out / name) for name in (data, test)]
    knn = replace(config.tune.knn, query_dataset_path=some[0], test_dataset_path=some[1])
    config = replace(config, tune=replace(config.tune, knn=knn))
    kind, configs = ("patch", "demo") if config.kind == "image" else ("region", "demo_region")
    observer.message(
        f"$ dinowds train {kind} --data {out / data} --out {out / run} --config configs/{configs}.yaml "
        f"tune.knn.query_dataset_path={some[0]} tune.knn.test_dataset_path={some[1]}"
    )
    evaluation = partial(evaluation_of, config, out / data, observer.message)
    outcome = train(out / data, out / run, config, observer, evaluation)
    for content in read_evaluations(out / run)[0]:
        if _is_own(content, outcome.step):
            return content
    size = f" --image-size {knn.image_size}" if knn.image_size else ""
    observer.message(
        f"$ dinowds eval knn --checkpoint {out / run} --train {out / data} --test {out / test} --both{size}"
    )
    models = ModelOptions(str(out / run), ("teacher", "student"), image_size=knn.image_size)
    found = evaluate_knn(
        str(out / data), str(out / test), EvalOptions(models), (NUM_NEIGHBOURS,), notice=observer.message
    )
    content = found.to_json()
    keep_evaluation(out / run, content)
    return content


def _is_own(content: dict[str, Any], step: int) -> bool:
    """Whether an evaluation is the demo's, not one that somebody made of its run since."""
    results = content.get("results") or []
    is_whole = {"teacher", "student"} <= {found["model"] for found in results}
    is_default = all(found["settings"].get("k") == NUM_NEIGHBOURS for found in results)
    test = (content.get("test") or {}).get("name")
    return content.get("step") == step and is_whole and is_default and test in ("test", "regions-test")


def _some(folder: Path) -> str:
    """A part of a dataset that is drawn once."""
    dataset = Dataset.open(folder)
    subset, mask, _ = choose_subset(dataset, SOME, SubsetOptions(fraction=SOME_SHARE))
    write_subset(dataset.url, subset, mask, dataset.files)
    return f"{folder}:{SOME}"


def _make_dataset(
    out: Path, name: str, labels: Path, write: Callable[[Path, str], Sequence[Path]], observer: Observer
) -> None:
    dataset, cohorts = out / name, out / "cohorts" / name
    if (dataset / MANIFEST_NAME).exists():
        return
    observer.message(f"$ dinowds shard {cohorts}/*.tar --labels {labels} --out {dataset} --max-count 1000")
    paths = write(cohorts, name.removeprefix("lattice-"))
    manifest = build_dataset(paths, dataset, ShardOptions(max_count=1000, choice=Choice(labels=labels)))
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


def _draw_views(out: Path, config: PatchConfig, observer: Observer) -> str:
    path, data = out / "crops.png", out / "train"
    observer.message(
        f"$ dinowds inspect {data} --crops {NUM_EXAMPLES} --out {path} --config configs/demo.yaml --overwrite"
    )
    sheet, _ = example_sheet(
        str(data), Dataset.open(data), NUM_EXAMPLES, ["cpu"], config.crops, config.train.seed, True, observer.message
    )
    with atomic_write(path) as file:
        sheet.save(file, "PNG")
    return str(path)


def _draw_attention(out: Path, observer: Observer) -> list[str]:
    photos = [str(photo_folder() / name) for name in LOOKED_AT]
    folder = out / "attention"
    observer.message(f"$ dinowds attend --checkpoint {out / 'run'} {' '.join(photos)} --out {folder} --overwrite")
    return [str(drawn.picture) for drawn in attend(photos, folder, AttendOptions(str(out / "run"), overwrite=True))]


def _make_page(target: Path, observer: Observer) -> str:
    observer.message(f"$ dinowds report {target} --overwrite")
    return str(make_report([str(target)], overwrite=True).path)
