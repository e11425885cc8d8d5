"""Training and test samples whose features are on disk, as `dinowds embed patch` or others wrote them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dinowds.data.location import split_subset
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.embed.patches.reader import FEATURE, read_features
from dinowds.errors import ConfigError, DatasetError
from dinowds.eval.bootstrap import clusters_of
from dinowds.eval.labelled import Coded, match_names
from dinowds.eval.overlap import Overlap
from dinowds.eval.splits import TEST, TRAIN, Notice, Split, Splits, describe_leakage
from dinowds.remote.files import is_remote
from dinowds.train.devices import choose_device
from dinowds.world import World


@dataclass(frozen=True)
class _Stored:
    """All rows that have a feature."""

    name: str
    vectors: NDArray[np.float32]
    """[N, D]."""
    labels: Coded
    slides: NDArray[Any]
    """[N], text; None where unknown."""
    about: dict[str, Any]
    """What `features.json` says; {} for files of others."""

    @property
    def weights(self) -> dict[str, Any]:
        found: dict[str, Any] = self.about.get("weights", {})
        return found


def stored_splits(train: str, test: str, allow_leakage: bool, notice: Notice) -> Splits:
    """Of folders of features, or Parquet files of others with a column `label`. There are no baselines, for want of
    images and weights. What the two share is looked for among slides alone.

    Raises:
        ConfigError: one is a dataset; they are of other weights, settings or lengths, share slides (unless
            `allow_leakage`), or their labels do not fit.
        DatasetError: they cannot be read.
    """
    of_train, of_test = (_read(option, location, notice) for option, location in ((TRAIN, train), (TEST, test)))
    if (length := of_train.vectors.shape[1]) != of_test.vectors.shape[1]:
        raise ConfigError(f"{TEST}: {test} has features of {of_test.vectors.shape[1]} values, {TRAIN} of {length}")
    if of_train.weights.get("fingerprint") != of_test.weights.get("fingerprint"):
        raise ConfigError(f"{TEST}: {test} has features of other weights than {TRAIN}; embed both with the same")
    for setting in ("image_size", "precision"):
        ours, others = (part.about.get("question", {}).get(setting) for part in (of_test, of_train))
        if ours != others:
            raise ConfigError(
                f"{TEST}: {test} was embedded with {setting} {ours}, {TRAIN} with {others}; embed both with the same"
            )
    labels, (train_classes, test_classes), notices = match_names(of_train.labels, of_test.labels)
    for line in [*notices, "no baselines are shown: they need images and weights, here are features alone"]:
        notice(line)
    overlap = _overlap(of_test, of_train, test_classes >= 0)
    leakage = describe_leakage(overlap, allow_leakage, f"{overlap.describe_nothing()}; samples are not compared")
    name = of_train.weights.get("which", "features")
    device = choose_device(World())
    return Splits(
        _split(of_train, train_classes, name, device),
        _split(of_test, test_classes, name, device),
        labels,
        leakage,
        of_train.weights.get("path", train),
        None,
    )


def _read(option: str, location: str, notice: Notice) -> _Stored:
    if is_remote(location) or (Path(split_subset(location)[0]) / MANIFEST_NAME).exists():
        raise ConfigError(
            f"--checkpoint is missing: {option} {location} is a dataset; give the weights to embed it with"
        )
    features = read_features(location)
    columns = ["slide", "label", FEATURE]
    if not features.about:
        columns = ["slide", FEATURE, *_labels_of_others(option, location, features.files)]
    tables = list(features.tables(columns))
    vectors = np.concatenate([features.matrix(table).astype(np.float32) for table in tables])
    try:
        table = pa.concat_tables([table.drop_columns([FEATURE]) for table in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(f"{option}: {location}: columns of its files differ in type ({error})") from None
    is_good = np.isfinite(vectors).all(1)
    if num_bad := int((~is_good).sum()):
        notice(f"{option}: {num_bad:,} of {len(is_good):,} samples have no feature and are left out")
    rows = table.filter(pa.array(is_good))
    codes, names = _codes(rows["label"], features.about.get("label_names"))
    slides = np.array(rows["slide"].to_pylist(), dtype=object)
    dataset = features.about.get("dataset", {})
    name = ":".join(part for part in (dataset.get("name"), dataset.get("subset")) if part) or Path(location).name
    return _Stored(name, vectors[is_good], Coded(option, location, codes, names), slides, features.about)


def _labels_of_others(option: str, location: str, files: tuple[Path, ...]) -> list[str]:
    if "label" not in pq.read_schema(files[0]).names:
        raise DatasetError(f"{option}: {location} has no column 'label'; give features of samples with labels")
    return ["label"]


def _codes(column: Any, names: list[str] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers of labels, -1 for none, and their names; those of others are numbered here."""
    if names is not None:
        found: NDArray[np.int64] = column.fill_null(-1).to_numpy().astype(np.int64)
        return found, names
    texts = [_text(value) for value in column.to_pylist()]
    names = sorted({text for text in texts if text is not None})
    position = {name: place for place, name in enumerate(names)}
    return np.array([-1 if text is None else position[text] for text in texts], np.int64), names


def _text(value: Any) -> str | None:
    """A label; a table with gaps has its integers as floats, and NaN for none."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None else str(value)


def _overlap(test: _Stored, train: _Stored, is_in: NDArray[np.bool_]) -> Overlap:
    slides = set(test.slides[is_in]) - {None}
    is_unknown = None in set(train.slides) | set(test.slides[is_in])
    return Overlap(sorted(slides & set(train.slides)), len(slides), [], int(is_in.sum()), is_unknown)


def _split(stored: _Stored, classes: NDArray[np.int64], name: str, device: torch.device) -> Split:
    is_in = classes >= 0
    slides = stored.slides[is_in]
    position = {slide: place + 1 for place, slide in enumerate(sorted(set(slides) - {None}))}
    return Split(
        stored.name,
        {name: torch.from_numpy(stored.vectors[is_in]).to(device)},
        torch.from_numpy(classes[is_in]).to(device),
        clusters_of(np.array([position.get(slide, 0) for slide in slides], np.uint64)),
        len(position),
    )
