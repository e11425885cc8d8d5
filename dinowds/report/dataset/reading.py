"""Payloads of a few samples from anywhere in a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from dinowds.data.dataset import Dataset, Sample
from dinowds.data.store.runs import run_of
from dinowds.data.store.store import open_store
from dinowds.data.subsets.selection import Ids
from dinowds.errors import DatasetError
from dinowds.remote.files import shown

T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read or decoded."""

    key: str
    reason: str
    """With the shard that it lies in."""


@dataclass(frozen=True)
class Read(Generic[T]):
    """A sample, and what was made of its payload."""

    place: int
    """Among the ids that were asked for."""
    sample: Sample
    value: T


def read_each(dataset: Dataset, ids: Ids, make: Callable[[bytes, Sample], T]) -> Iterator[Read[T] | Unreadable]:
    """Of each sample of int64 [n] ids, in their order, what `make` gives for its payload, or why there is nothing.

    Remote payloads are fetched ahead.

    Raises:
        StorageError: a remote shard cannot be reached at all.
    """
    samples = dataset.samples(ids)
    runs = [run_of(sample) for sample in samples]
    with closing(open_store(dataset)) as store:
        store.expect(runs)
        for place, (sample, run) in enumerate(zip(samples, runs, strict=True)):
            try:
                yield Read(place, sample, make(store.read(sample, run), sample))
            except DatasetError as error:
                where = shown(dataset.shard_url(sample.shard))
                yield Unreadable(sample.key, str(error) if where in str(error) else f"{where}: {error}")
