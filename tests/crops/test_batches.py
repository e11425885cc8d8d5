"""Views are rendered into memory that is used again, and stay what they are for who has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dinowds.config import CropsConfig
from dinowds.crops.batches import Batch, Crop
from dinowds.crops.recipe import patch_recipe
from dinowds.data.blocks import Blocks

RECIPE = patch_recipe(CropsConfig(global_crops_size=24, local_crops_size=16, local_crops_number=3))
SHAPES = {"global": (2, 4, 24, 24, 3), "local": (3, 4, 16, 16, 3)}


def samples(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "__key__": f"key{i}", "__sample__": 7 * i, "__step__": i // 4, "__visit__": 0, "__bad__": [],
            "image": random.integers(0, 256, (40 + i, 60 - i, 3), np.uint8),
        }
        for i in range(count)
    ]  # fmt: skip


def content(batch: Batch) -> list[Any]:
    return [
        batch.step,
        batch.keys,
        batch.samples.tolist(),
        {n: v.clone().numpy().tobytes() for n, v in batch.views.items()},
    ]


def test_batches__of_views() -> None:
    batches = list(Crop(RECIPE, "cpu", 0, 4)(samples(22)))
    assert [batch.step for batch in batches] == list(range(5))  # what is left over makes no batch
    assert [key for batch in batches for key in batch.keys] == [f"key{i}" for i in range(20)]
    assert [number for batch in batches for number in batch.samples.tolist()] == list(range(0, 140, 7))
    for batch in batches:
        assert {name: tuple(views.shape) for name, views in batch.views.items()} == SHAPES


@pytest.mark.parametrize("are_kept", [False, True])
def test_batches__do_not_change_when_others_are_made(are_kept: bool) -> None:
    alone = [
        content(next(iter(Crop(RECIPE, "cpu", 0, 4)(samples(40)[start : start + 4])))) for start in range(0, 40, 4)
    ]
    kept, found, addresses = [], [], set()
    for batch in Crop(RECIPE, "cpu", 0, 4, Blocks())(samples(40)):
        found.append(content(batch))
        addresses.add(batch.views["local"].data_ptr())
        if are_kept:
            kept.append(batch)
        del batch
    assert found == alone
    assert [content(batch) for batch in kept] == (alone if are_kept else [])
    assert (len(addresses) == 1) != are_kept
