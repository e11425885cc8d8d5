"""Batches of views of regions: their cells, their order, and what stands in for a bad one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dinowds.config import RegionCropsConfig, RegionGlobalConfig, RegionLocalConfig
from dinowds.crops.recipe import sample_generator
from dinowds.crops.region import RegionRecipe, region_recipe, render, sample_region_views
from dinowds.crops.region_batches import CropRegions
from dinowds.data.blocks import Blocks
from dinowds.data.source import BadSample
from dinowds.errors import SampleError
from dinowds.shard.sources.layouts.regions import region_payload

CHANNELS = 3
CROPS = RegionCropsConfig(RegionGlobalConfig(2, 5), RegionLocalConfig(3, 2))
RECIPE = region_recipe(CROPS)
UPRIGHT = region_recipe(RegionCropsConfig(RegionGlobalConfig(2, 5), RegionLocalConfig(3, 2), flip=0.0))


class Source:
    """Of batches of 4; a grid of 99 stands in for a bad one."""

    rank_batch = 4

    def first_good(self, raw: dict[str, Any], read: Callable[[bytes], Any]) -> tuple[dict[str, Any], Any]:
        try:
            return raw, read(raw["npy"])
        except SampleError as error:
            bad = BadSample(0, raw["__key__"], "url", str(error), "other")
            other = region_payload(np.full((5, 5, CHANNELS), 99, np.float16))
            return self.first_good({**raw, "__key__": "other", "npy": other, "__bad__": [bad]}, read)


def grid(index: int, side: int = 7) -> Any:
    """Each cell says where it lies: row, column, region."""
    row, column = np.indices((side, side))
    return np.stack([row, column, np.full((side, side), index)], axis=-1).astype(np.float16)


def samples(count: int) -> list[dict[str, Any]]:
    return [
        {"__key__": f"key{i}", "__sample__": 7 * i, "__step__": i // 4, "__visit__": 0, "__bad__": [], "__ext__": "npy",
         "npy": region_payload(grid(i))}
        for i in range(count)
    ]  # fmt: skip


def crop(recipe: RegionRecipe = RECIPE, blocks: Blocks | None = None) -> CropRegions:
    return CropRegions(Source(), recipe, CHANNELS, 5, blocks)  # type: ignore[arg-type]


def test_batches__shapes_and_order() -> None:
    batches = list(crop()(samples(10)))
    assert [batch.step for batch in batches] == [0, 1]  # what is left over makes no batch
    assert [key for batch in batches for key in batch.keys] == [f"key{i}" for i in range(8)]
    assert [number for batch in batches for number in batch.samples.tolist()] == list(range(0, 56, 7))
    for batch in batches:
        assert batch.images is None
        assert {name: tuple(views.shape) for name, views in batch.views.items()} == {
            "global": (2, 4, 5, 5, CHANNELS),
            "local": (3, 4, 2, 2, CHANNELS),
        }
        assert {views.dtype for views in batch.views.values()} == {torch.float16}


def test_batches__are_what_the_records_say() -> None:
    (batch,) = crop()(samples(4))
    for place in range(4):
        views = sample_region_views(sample_generator(5, 0, 7 * place), RECIPE, 7, 7)
        outs = [np.empty((view["size"], view["size"], CHANNELS), np.float16) for view in views]
        render(grid(place), views, outs)
        found = [view for views in batch.views.values() for view in views[:, place].numpy()]
        for one, other in zip(found, outs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_batches__a_view_is_a_window_of_its_region_row_by_row() -> None:
    for batch in crop(UPRIGHT)(samples(20)):
        for views in batch.views.values():
            for view in views:
                for place, cells in enumerate(view):
                    rows, columns, index = cells.unbind(-1)
                    side = torch.arange(len(cells))
                    assert torch.equal(rows, (rows[0, 0] + side)[:, None].expand_as(rows))
                    assert torch.equal(columns, (columns[0, 0] + side).expand_as(columns))
                    assert (index == batch.samples[place] // 7).all()


def test_batches__missing_cells_are_nan_in_the_views() -> None:
    raws = samples(4)
    holes = grid(0)
    holes[2:5] = np.nan
    raws[1]["npy"] = region_payload(holes)
    (batch,) = crop()(raws)
    views = batch.views["global"]
    assert views[:, 1, ..., 0].isnan().any(-1).sum() >= 4
    assert torch.equal(views.isnan().any(-1), views.isnan().all(-1))
    assert not views[:, [0, 2, 3]].isnan().any()


@pytest.mark.parametrize("are_kept", [False, True])
def test_batches__do_not_change_when_others_are_made(are_kept: bool) -> None:
    alone = [next(iter(crop()(samples(40)[start : start + 4]))).views["local"].clone() for start in range(0, 40, 4)]
    kept, addresses = [], set()
    for batch in crop(blocks=Blocks())(samples(40)):
        assert torch.equal(batch.views["local"], alone[batch.step])
        addresses.add(batch.views["global"].data_ptr())
        if are_kept:
            kept.append(batch)
        del batch
    assert all(torch.equal(batch.views["local"], expected) for batch, expected in zip(kept, alone, strict=False))
    assert (len(addresses) == 1) != are_kept


@pytest.mark.parametrize(
    "payload",
    [b"no region", region_payload(grid(0))[:-2], region_payload(np.zeros((7, 7, CHANNELS + 1), np.float16))],
)
def test_batches__with_a_bad_region_have_its_substitute(payload: bytes) -> None:
    raws = samples(4)
    raws[2]["npy"] = payload
    (batch,) = crop()(raws)
    assert batch.keys == ["key0", "key1", "other", "key3"]
    assert [bad.key for bad in batch.bad] == ["key2"]
    assert all((views[:, 2] == 99).all() for views in batch.views.values())
    others = next(iter(crop()(samples(4))))
    for name, views in batch.views.items():
        assert torch.equal(views[:, [0, 1, 3]], others.views[name][:, [0, 1, 3]])


def test_region_recipe__follows_the_configuration() -> None:
    assert region_recipe(RegionCropsConfig()) == RegionRecipe()
    crops = RegionCropsConfig(RegionGlobalConfig(3, 4), RegionLocalConfig(0, 2), flip=0.1, symmetries=True)
    recipe = region_recipe(crops)
    assert [(output.name, output.count, output.size) for output in recipe.outputs] == [("global", 3, 4)]
    assert (recipe.flip, recipe.symmetries) == (0.1, True)


def test_stage__can_be_pickled() -> None:
    stage = CropRegions(Source(), RECIPE, CHANNELS, 5)  # type: ignore[arg-type]
    stage._blocks = None  # type: ignore[assignment]  # its file goes to loader processes by their own way
    assert pickle.loads(pickle.dumps(stage))._channels == CHANNELS  # noqa: S301 - made a line before
