"""The whole way on real photographs: patches → cohort tars → shards → a small ViT → nearest neighbours.

Sixteen photographs that ship with scikit-image are cut into grey 64 px patches of equal mean and contrast, so that
neither colour nor brightness tells them apart. The left 60 % of each photograph is for training, the right 40 % for the
test; the label of a patch is its photograph.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dinowds.config import PatchConfig
from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.data.store.store import LocalStore
from dinowds.embed.features import image_features
from dinowds.errors import ConfigError
from dinowds.eval.knn import knn_accuracy
from dinowds.files import atomic_write
from dinowds.model.dino import DinoModel
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.loop import initial_models, train
from dinowds.train.monitor import METRICS_NAME, Observer, last_figure

COHORTS = {
    "tissue": ("ihc.png", "retina.jpg", "cell.png"),
    "texture": ("brick.png", "grass.png", "gravel.png", "coins.png", "moon.png", "hubble_deep_field.jpg"),
    "scenes": (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "clock_motion.png", "motorcycle_left.png",
        "rocket.jpg",
    ),
}  # fmt: skip
PATCH_SIZE = 64
TRAIN_SHARE = 0.6
TRAIN_PATCHES, TEST_PATCHES = 240, 80
"""Patches of each photograph."""
KNN_EVERY = 50
"""Optimizer steps between live kNN figures, which are of every third patch to save time."""


@dataclass(frozen=True)
class LabelledImages:
    """uint8 [N, 64, 64, 3] and int64 [N]."""

    images: Tensor
    labels: Tensor

    def every(self, stride: int) -> LabelledImages:
        return LabelledImages(self.images[::stride], self.labels[::stride])


def photo_folder() -> Path:
    """Where scikit-image keeps its photographs.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError:
        raise ConfigError("the demo needs scikit-image's photographs; pip install 'dinowds[demo]'") from None
    return Path(skimage.__file__).parent / "data"


def write_cohorts(folder: Path, split: str, seed: int = 0) -> list[Path]:
    """Cut the `train` or `test` side of every photograph; one tar a cohort, `PHOTO/X_Y.png` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    photos, paths = photo_folder(), []
    for cohort, names in COHORTS.items():
        paths.append(folder / f"{cohort}.tar")
        with atomic_write(paths[-1]) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for number, name in enumerate(names):
                generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, split == "train")))
                _add_patches(tar, photos / name, split, generator)
    return paths


def _add_patches(tar: tarfile.TarFile, photo: Path, split: str, generator: np.random.Generator) -> None:
    with Image.open(photo) as image:
        pixels = np.asarray(image.convert("L"), dtype=np.float32)
    edge = round(pixels.shape[1] * TRAIN_SHARE)
    left, right, count = (0, edge, TRAIN_PATCHES) if split == "train" else (edge, pixels.shape[1], TEST_PATCHES)
    xs = generator.integers(left, right - PATCH_SIZE + 1, count).tolist()
    ys = generator.integers(0, pixels.shape[0] - PATCH_SIZE + 1, count).tolist()
    for x, y in sorted(set(zip(xs, ys, strict=True))):
        content = io.BytesIO()
        Image.fromarray(standardise(pixels[y : y + PATCH_SIZE, x : x + PATCH_SIZE])).save(content, "PNG")
        member = tarfile.TarInfo(f"{photo.stem}/{x}_{y}.png")
        member.size = len(content.getvalue())
        tar.addfile(member, io.BytesIO(content.getvalue()))


def standardise(patch: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey [H, W] → mean 128, standard deviation 48, clipped to 0 … 255."""
    spread = max(float(patch.std()), 1e-3)
    grey: NDArray[np.uint8] = np.clip((patch - patch.mean()) * (48 / spread) + 128, 0, 255).round().astype(np.uint8)
    return grey


def load_labelled(folder: Path, names: list[str]) -> LabelledImages:
    """All images of a dataset; the label is the place of its slide (the photograph) in `names`."""
    dataset = Dataset.open(folder)
    store = LocalStore(dataset)
    slides = dataset.columns(["slide"])["slide"].to_pylist()
    images = np.stack([decode_image(store.read(dataset[i])) for i in range(len(dataset))])
    return LabelledImages(torch.from_numpy(images), torch.tensor([names.index(slide) for slide in slides]))


def photo_names() -> list[str]:
    return [Path(name).stem for names in COHORTS.values() for name in names]


def baselines(train: LabelledImages, test: LabelledImages, config: PatchConfig) -> dict[str, float]:
    """kNN accuracy of raw pixels and of the same ViT before training."""
    untrained, _ = initial_models(config)
    return {
        "raw pixels": _accuracy(lambda images: images[..., 0].flatten(1).float() - 128, train, test),
        "untrained ViT": backbone_accuracy(untrained.backbone, train, test),
    }


def backbone_accuracy(backbone: nn.Module, train: LabelledImages, test: LabelledImages) -> float:
    """kNN accuracy (k = 20, T = 0.07) of the class token."""
    return _accuracy(lambda images: image_features(backbone, images), train, test)


def live_knn(
    train: LabelledImages, test: LabelledImages, every: int
) -> Callable[[int, DinoModel, DinoModel], dict[str, float]]:
    """An evaluation for the training loop: teacher and student every `every` steps."""

    def evaluate(step: int, student: DinoModel, teacher: DinoModel) -> dict[str, float]:
        if step % every:
            return {}
        return {
            "knn_teacher": backbone_accuracy(teacher.backbone, train, test),
            "knn_student": backbone_accuracy(student.backbone, train, test),
        }

    return evaluate


def _accuracy(embed: Callable[[Tensor], Tensor], train: LabelledImages, test: LabelledImages) -> float:
    return knn_accuracy(embed(train.images), train.labels, embed(test.images), test.labels)


@dataclass(frozen=True)
class Result:
    """What the demo finds."""

    accuracies: dict[str, float]
    """Features → kNN accuracy on the test patches, 0 to 1."""
    num_classes: int
    num_train: int
    num_test: int
    steps: int
    loss: float
    ln_k: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_demo(out: Path, config: PatchConfig, observer: Observer) -> Result:
    """Everything in folder `out`: `cohorts/`, datasets `train/` and `test/`, run folder `run/`. Goes on if stopped."""
    for split in ("train", "test"):
        _make_dataset(out, split, observer)
    train_set, test_set = (load_labelled(out / split, photo_names()) for split in ("train", "test"))
    accuracies = baselines(train_set, test_set, config)
    observer.message(", ".join(f"{name}: kNN {accuracy:.3f}" for name, accuracy in accuracies.items()))
    observer.message(f"$ dinowds train patch --data {out}/train --out {out}/run --config configs/demo.yaml")
    outcome = train(
        out / "train", out / "run", config, observer, live_knn(train_set.every(3), test_set.every(3), KNN_EVERY)
    )
    accuracies["student"] = backbone_accuracy(outcome.student.backbone, train_set, test_set)
    accuracies["teacher"] = backbone_accuracy(outcome.teacher.backbone, train_set, test_set)
    return Result(
        accuracies=accuracies,
        num_classes=len(photo_names()),
        num_train=len(train_set.labels),
        num_test=len(test_set.labels),
        steps=outcome.step,
        loss=last_figure(out / "run" / METRICS_NAME, "loss"),
        ln_k=math.log(config.student.out_dim),
    )


def _make_dataset(out: Path, split: str, observer: Observer) -> None:
    cohorts, dataset = out / "cohorts" / split, out / split
    if (dataset / MANIFEST_NAME).exists():
        return
    observer.message(f"$ dinowds shard {cohorts}/*.tar --out {dataset} --max-count 1000")
    paths = write_cohorts(cohorts, split)
    manifest = build_dataset(paths, dataset, ShardOptions(max_count=1000))
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest.cohorts.items())
    observer.message(f"{manifest.num_samples:,} samples in {len(manifest.shards)} shards: {counts}")
