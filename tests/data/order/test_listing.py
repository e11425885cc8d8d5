"""Names of samples, whichever shards they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dinowds.data.order.listing
from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import RowGroups
from dinowds.data.order.listing import Listing, Named
from tests.index_only import LABELS, write_index

SLIDES = [("a", "s", 30), ("b", None, 25), ("b", "s", 40), ("a", "t", 5)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.open(write_index(tmp_path / "d", SLIDES, 7))


def expected(ids: Sequence[int]) -> list[Named]:
    rows = [(cohort, slide, LABELS[i % 3]) for i, (cohort, slide, count) in enumerate(SLIDES) for _ in range(count)]
    return [Named(f"k{sample:08d}", *rows[sample]) for sample in ids]


@pytest.mark.parametrize("kept", [1 << 20, 0])
def test_listing__any_samples_in_their_order(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(dinowds.data.order.listing, "_KEPT_NAMES", kept)
    random = np.random.default_rng(0)
    listing = Listing(dataset)
    for count in (1, 3, 50, 500):
        ids = random.integers(0, 100, count)  # some more than once
        assert listing.of(ids) == expected(ids.tolist())


def test_listing__reads_a_shard_at_most_once_for_its_names(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shards there are, and in whatever order their samples come."""
    read: Counter[tuple[int, tuple[str, ...]]] = Counter()
    read_group = RowGroups.read

    def counted(self: RowGroups, group: int, columns: Sequence[str], *more: Any) -> Any:
        read[group, tuple(columns)] += 1
        return read_group(self, group, columns, *more)

    monkeypatch.setattr(RowGroups, "read", counted)
    listing = Listing(dataset)
    for seed in range(3):
        listing.of(np.random.default_rng(seed).permutation(100))
    assert set(read.values()) == {1}
    assert 3 <= sum("key" not in columns for _, columns in read) <= 4  # shards, of 15, that name the three slides
