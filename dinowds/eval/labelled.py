"""Samples with labels: those whose neighbours are looked up, and those that are classified by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
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


class Coded(NamedTuple):
    """Labels of samples as a dataset numbers them."""

    option: str
    """Key or option that the dataset was given by, for messages."""
    place: str
    """Where it lies."""
    codes: Ids
    """int64 [N], positions in `names`; -1 for none."""
    names: Sequence[str]


def match_labels(
    query: Dataset, test: Dataset, options: tuple[str, str] = (QUERY_KEY, TEST_KEY)
) -> tuple[Task, list[str]]:
    """Samples of two datasets whose labels have the same names, whatever their numbers, and notices of those left out.

    Args:
        options: keys or options that the datasets were given by, for messages.

    Raises:
        ConfigError: a dataset without labels, or fewer than two classes in common.
    """
    names, (of_query, of_test), notices = match_names(_coded(options[0], query), _coded(options[1], test))
    return Task(_labelled(query, of_query), _labelled(test, of_test), names), notices


def match_names(query: Coded, test: Coded) -> tuple[tuple[str, ...], tuple[Ids, Ids], list[str]]:
    """Labels of the classes, [C]; the class of each sample of query and test, int64 [N], -1 for those left out; and
    notices of these.

    Raises:
        ConfigError: as `match_labels`.
    """
    notices = [_check_labels(coded) for coded in (query, test)]
    names, test_names = ([coded.names[code] for code in _codes_in(coded)] for coded in (query, test))
    position = {name: place for place, name in enumerate(names)}
    of_query, of_test = (
        np.array([*(position.get(name, -1) for name in coded.names), -1], np.int64)[coded.codes]
        for coded in (query, test)
    )
    if len(np.unique(of_test[of_test >= 0])) < 2:
        raise ConfigError(
            f"{test.option}: {test.place} has the labels {some(test_names)}, {query.option} has {some(names)}; "
            "expected at least two in common"
        )
    if num_strange := int((of_test < 0).sum() - (test.codes < 0).sum()):
        strange = [name for name in test_names if name not in position]
        notices.append(
            f"{test.option}: {num_strange:,} samples are left out: no sample of {query.option} has their labels "
            f"{some(strange)}"
        )
    return tuple(names), (of_query, of_test), [notice for notice in notices if notice]


def _check_labels(coded: Coded) -> str:
    """What to tell of samples without a label; '' for nothing. Raises where none has one, or one has no name."""
    num_without = int((coded.codes < 0).sum())
    if num_without == len(coded.codes):
        raise ConfigError(
            f"{coded.option}: no sample of {coded.place} has a label; make it with 'dinowds shard --labels', or give "
            "another"
        )
    if (largest := coded.codes.max()) >= len(coded.names):
        raise DatasetError(f"{coded.place}: label {largest} has no name; make the dataset again")
    text = f"{coded.option}: {num_without:,} of {len(coded.codes):,} samples have no label and are left out"
    return text if num_without else ""


def _codes_in(coded: Coded) -> list[int]:
    codes: list[int] = np.unique(coded.codes[coded.codes >= 0]).tolist()
    return codes


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _coded(option: str, dataset: Dataset) -> Coded:
    """Of the selected samples, in the order of their ids."""
    ids = dataset.selection.all_ids()
    codes = np.empty(len(ids), np.int64)
    for shard, places, positions in dataset.by_shard(ids):
        codes[places] = dataset.rows(shard).label[positions]
    return Coded(option, shown(dataset.url), codes, dataset.manifest.label_names)


def _labelled(dataset: Dataset, classes: Ids) -> Labelled:
    """Of the classes of all selected samples, those that have one."""
    is_in = classes >= 0
    return Labelled(dataset, dataset.selection.all_ids()[is_in], torch.from_numpy(classes[is_in]))
