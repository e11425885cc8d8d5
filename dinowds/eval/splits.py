"""Training and test samples with their features by all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.data.dataset import Dataset
from dinowds.errors import CheckpointError, ConfigError, DatasetError
from dinowds.eval.bootstrap import clusters_of
from dinowds.eval.extract import Extractor
from dinowds.eval.labelled import Labelled, match_labels
from dinowds.eval.overlap import Overlap, find_overlap
from dinowds.eval.subjects import Subjects
from dinowds.world import World

TRAIN, TEST = "--train", "--test"

Notice = Callable[[str], None]
"""Gets one line that is worth reading."""
Report = Callable[[int, int], None]
"""(samples done, in all)."""


@dataclass(frozen=True)
class Split:
    """Samples of a dataset that have a label and could be read."""

    name: str
    """Of the dataset, with that of its subset."""
    vectors: Mapping[str, Tensor]
    """Model → float32 [N, D], on the device; first the trained ones."""
    classes: Tensor
    """int64 [N], 0 … C − 1, on the device."""
    clusters: NDArray[np.int64]
    """[N]: by slide, as `bootstrap.clusters_of`."""
    num_slides: int
    """0 where no slide is known."""

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Splits:
    """A task of classification."""

    train: Split
    test: Split
    labels: tuple[str, ...]
    """[C], each with training samples."""
    leakage: str
    """What the two share, in words."""
    checkpoint: str
    """That the trained models are of."""
    step: int | None
    """Of the checkpoint, where it says so."""

    @property
    def device(self) -> torch.device:
        return self.test.classes.device


def make_splits(
    train: str, test: str, subjects: Subjects, allow_leakage: bool, notice: Notice, report: Report
) -> Splits:
    """Of datasets 'DATASET' or 'DATASET:SUBSET'.

    Raises:
        ConfigError: they do not fit the models or each other, or share slides or images, unless `allow_leakage`.
        DatasetError, StorageError: they cannot be read.
    """
    datasets = {option: Dataset.open(location) for option, location in ((TRAIN, train), (TEST, test))}
    for option, dataset in datasets.items():
        subjects.check(option, dataset)
    task, notices = match_labels(datasets[TRAIN], datasets[TEST], (TRAIN, TEST))
    for line in notices:
        notice(line)
    overlap = find_overlap(task.test, task.query.dataset, with_payloads=True)
    nothing = f"no sample in common; {overlap.describe_nothing()}"
    leakage = describe_leakage(overlap, allow_leakage, nothing)
    total = len(task.query.ids) + len(task.test.ids)
    of_train = _embedded(TRAIN, task.query, subjects, notice, _after(0, total, report))
    of_test = _embedded(TEST, task.test, subjects, notice, _after(len(task.query.ids), total, report))
    if not of_train.classes.bincount(minlength=len(task.names)).all():
        raise DatasetError(
            f"{TRAIN}: no sample of some label could be read; check them with 'dinowds inspect --verify'"
        )
    weights = subjects.weights
    return Splits(of_train, of_test, task.names, leakage, weights.path, weights.step)


def describe_leakage(found: Overlap, is_allowed: bool, nothing: str) -> str:
    """What of the test data is in the training data, in words; `nothing` for nothing.

    Raises ConfigError for something, unless that `is_allowed`.
    """
    if common := found.describe():
        if not is_allowed:
            raise ConfigError(f"{TEST}: {common} are in {TRAIN} too; give others, or --allow-leakage if this is meant")
        return f"{common} are in the training data too"
    return nothing


def unlabelled_vectors(
    location: str, subjects: Subjects, most: int, seed: int, notice: Notice, report: Report
) -> tuple[str, dict[str, Tensor]]:
    """Name of a dataset and features of at most `most` of its samples, with labels or without, drawn with `seed`."""
    dataset = Dataset.open(location)
    subjects.check("DATASET", dataset)
    if not len(dataset):
        raise DatasetError(f"{location}: has no samples, expected some to look at")
    places = np.arange(len(dataset))
    if most < len(dataset):
        places = np.sort(np.random.default_rng(seed).choice(len(dataset), most, replace=False))
    ids = dataset.selection.ids(places)
    part = Labelled(dataset, ids, torch.zeros(len(ids), dtype=torch.int64))
    split = _embedded("DATASET", part, subjects, notice, _after(0, len(ids), report))
    return split.name, dict(split.vectors)


def _after(before: int, total: int, report: Report) -> Callable[[int], None]:
    return lambda done: report(before + done, total)


def _embedded(option: str, part: Labelled, subjects: Subjects, notice: Notice, report: Callable[[int], None]) -> Split:
    found = Extractor(subjects.inputs, World(), report)(list(subjects.models.values()), part)
    if text := found.missing(option, subjects.options.max_bad, "--max-bad"):
        notice(f"{text} and are left out")
    vectors = {name: values[found.is_good] for name, values in zip(subjects.models, found.vectors, strict=True)}
    for name in subjects.trained:
        if not vectors[name].isfinite().all():
            raise CheckpointError(
                f"{subjects.weights.path}: the {name} gives features that are not finite; check the weights, or give "
                "--precision fp32"
            )
    good = found.is_good.cpu().numpy()
    slides = part.dataset.slides_of(part.ids)[good]
    dataset = part.dataset
    return Split(
        name=dataset.manifest.name if dataset.subset is None else f"{dataset.manifest.name}:{dataset.subset}",
        vectors=vectors,
        classes=part.classes[torch.from_numpy(good)].to(subjects.device),
        clusters=clusters_of(slides),
        num_slides=len(np.unique(slides[slides != 0])),
    )
