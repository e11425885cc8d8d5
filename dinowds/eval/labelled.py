"""Samples with labels: those whose neighbours are looked up, and those that are classified by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.selection import Ids
from dinowds.errors import ConfigError, DatasetError
from dinowds.remote.files import shown

QUERY_KEY, TEST_KEY = "tune.knn.query_dataset_path", "tune.knn.test_dataset_path"

_NAMED = 3


@dataclass(frozen=True)
class Labelled:
    """Some samples of a dataset."""

    dataset: Dataset
    ids: Ids
    """int64 [N], ascending."""
    classes: Tensor
    """int64 [N], 0 … C − 1."""


@dataclass(frozen=True)
class Task:
    """Tell the classes of test samples from those of the query samples: neighbours, or what a probe learns from."""

    query: Labelled
    test: Labelled
    names: tuple[str, ...]
    """[C]: labels of the classes, each of which has query samples."""


def match_labels(
    query: Dataset, test: Dataset, names: tuple[str, str] = (QUERY_KEY, TEST_KEY)
) -> tuple[Task, list[str]]:
    """Samples of two datasets whose labels have the same names, whatever their numbers, and notices of those left out.

    Args:
        names: of the keys or options that the datasets were given by, for messages.

    Raises:
        ConfigError: a dataset without labels, or fewer than two classes in common.
    """
    query_key, test_key = names
    (query_ids, query_codes), (test_ids, test_codes) = _labelled(query_key, query), _labelled(test_key, test)
    labels = tuple(query.manifest.label_names[code] for code in np.unique(query_codes).tolist())
    test_names = [test.manifest.label_names[code] for code in np.unique(test_codes).tolist()]
    query_classes, test_classes = _classes(query, query_codes, labels), _classes(test, test_codes, labels)
    is_known = test_classes >= 0
    if len(np.unique(test_classes[is_known])) < 2:
        raise ConfigError(
            f"{test_key}: {shown(test.url)} has the labels {some(test_names)}, {query_key} has {some(labels)}; "
            "expected at least two in common"
        )
    notices = [
        f"{key}: {len(dataset) - len(ids):,} of {len(dataset):,} samples have no label and are left out"
        for key, dataset, ids in ((query_key, query, query_ids), (test_key, test, test_ids))
        if len(ids) < len(dataset)
    ]
    if not is_known.all():
        strange = [name for name in test_names if name not in labels]
        notices.append(
            f"{test_key}: {(~is_known).sum():,} samples are left out: no sample of {query_key} has their labels "
            f"{some(strange)}"
        )
    task = Task(
        Labelled(query, query_ids, torch.from_numpy(query_classes)),
        Labelled(test, test_ids[is_known], torch.from_numpy(test_classes[is_known])),
        labels,
    )
    return task, notices


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _labelled(key: str, dataset: Dataset) -> tuple[Ids, Ids]:
    """int64 [N] ids of the selected samples with a label, and their positions in the manifest's label names."""
    ids = dataset.selection.all_ids()
    codes = np.empty(len(ids), np.int64)
    for shard, places, positions in dataset.by_shard(ids):
        codes[places] = dataset.rows(shard).label[positions]
    has_label = codes >= 0
    if not has_label.any():
        raise ConfigError(
            f"{key}: no sample of {shown(dataset.url)} has a label; make it with 'dinowds shard --labels', or give "
            "another"
        )
    if codes.max() >= len(dataset.manifest.label_names):
        raise DatasetError(f"{shown(dataset.url)}: label {codes.max()} has no name; make the dataset again")
    return ids[has_label], codes[has_label]


def _classes(dataset: Dataset, codes: Ids, names: Sequence[str]) -> NDArray[np.int64]:
    """int64 [N]: positions in `names` of the labels that `codes` stand for in a dataset, -1 for none."""
    position = {name: place for place, name in enumerate(names)}
    return np.array([position.get(name, -1) for name in dataset.manifest.label_names], np.int64)[codes]
