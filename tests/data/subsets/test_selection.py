"""Places and ids of selected samples, against a plain list."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinowds.data.subsets.selection import Selection, pack_mask
from dinowds.errors import DatasetError

GRID = [(shape, density, seed) for shape in range(5) for density in (0.0, 0.01, 0.5, 1.0) for seed in range(3)]


def shard_counts(shape: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    many: list[int] = random.integers(1, 3000, 12).tolist()
    small: list[int] = random.integers(1, 4, 2000).tolist()
    shapes = [[1], [8] * 9, [513, 511], many, small]
    return shapes[shape]


@pytest.mark.parametrize(("shape", "density", "seed"), GRID)
def test_selection__is_the_list_of_ones(shape: int, density: float, seed: int) -> None:
    counts = shard_counts(shape, seed)
    random = np.random.default_rng(seed)
    chosen = random.random(sum(counts)) < density
    ids = np.flatnonzero(chosen)
    selection = Selection(counts, pack_mask(chosen))
    assert len(selection) == len(ids)
    assert selection.counts.tolist() == [int(part.sum()) for part in np.split(chosen, np.cumsum(counts)[:-1])]
    assert selection.all_ids().tolist() == ids.tolist()
    assert selection.chosen().tolist() == chosen.tolist()
    places = random.integers(0, max(1, len(ids)), 10_000 if len(ids) else 0)
    assert selection.ids(places).tolist() == ids[places].tolist()
    other = random.random(len(chosen)) < 0.5
    assert (selection & pack_mask(other)).all_ids().tolist() == np.flatnonzero(chosen & other).tolist()


def test_selection__of_all() -> None:
    selection = Selection([3, 4])
    assert (len(selection), selection.counts.tolist()) == (7, [3, 4])
    assert selection.ids(np.array([6, 0])).tolist() == [6, 0]
    assert selection.all_ids().tolist() == list(range(7))
    chosen = np.array([1, 0, 0, 1, 0, 0, 1], dtype=np.bool_)
    assert (selection & pack_mask(chosen)).all_ids().tolist() == [0, 3, 6]


def test_selection__mask_of_another_size() -> None:
    masks: list[Any] = [np.zeros(2, np.uint8), np.zeros(1, np.int8), np.zeros((1, 1), np.uint8)]
    for mask in masks:
        with pytest.raises(DatasetError, match="does not fit 7 samples"):
            Selection([3, 4], mask)


def test_selection__pickled_maps_the_mask_again(tmp_path: Path) -> None:
    chosen = np.random.default_rng(0).random(1 << 20) < 0.3
    path = tmp_path / "mask.npy"
    np.save(path, pack_mask(chosen))
    selection = Selection([1 << 20], np.load(path, mmap_mode="r"))
    content = pickle.dumps(selection)
    assert len(content) < 1000
    again: Selection = pickle.loads(content)  # noqa: S301
    assert isinstance(again.mask, np.memmap)
    assert again.all_ids().tolist() == np.flatnonzero(chosen).tolist()
    path.unlink()
    np.save(path, pack_mask(~chosen))
    with pytest.raises(DatasetError, match=r"mask\.npy: the subset was made anew while it was in use"):
        pickle.loads(content)  # noqa: S301
    in_memory: Selection = pickle.loads(pickle.dumps(selection & pack_mask(chosen)))  # noqa: S301
    assert in_memory.all_ids().tolist() == np.flatnonzero(chosen).tolist()
