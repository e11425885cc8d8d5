"""Views are rendered into memory that is used again, and stay what they are for who has them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops import cpu, pil
from dinowds.crops.batches import Batch, Crop
from dinowds.crops.recipe import patch_recipe, sample_generator, sample_views
from dinowds.data.blocks import Blocks
from dinowds.data.decode import decode_image, decode_reduced
from dinowds.data.source import BadSample
from dinowds.errors import SampleError

RECIPE = patch_recipe(CropsConfig(global_=GlobalCropsConfig(size=24), local=LocalCropsConfig(size=16, count=3)))
SHAPES = {"global": (2, 4, 3, 24, 24), "local": (3, 4, 3, 16, 16)}
LARGE = 480
"""Side, px, of which every view shows a box of some 90 px or more: enough for a reduced decode."""


class Source:
    """Of batches of 4; a grey image stands in for a bad one."""

    rank_batch = 4

    def first_good(self, raw: dict[str, Any], read: Callable[[bytes], Any]) -> tuple[dict[str, Any], Any]:
        try:
            return raw, read(raw["jpg"])
        except SampleError as error:
            return self.first_good(self.replace(raw, str(error)), read)

    def replace(self, raw: dict[str, Any], reason: str) -> dict[str, Any]:
        bad = BadSample(0, raw["__key__"], "url", reason, "grey")
        return {**raw, "__key__": "grey", "jpg": jpeg(np.full((30, 20, 3), 99, np.uint8)), "__bad__": [bad]}


def encoded(pixels: Any, file_format: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, file_format, quality=90)
    return content.getvalue()


jpeg = partial(encoded, file_format="JPEG")


def samples(count: int, side: int = 40) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    raws = []
    for i in range(count):
        few = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
        place = {"__key__": f"key{i}", "__sample__": 7 * i, "__step__": i // 4, "__visit__": 0, "__bad__": []}
        raws.append({**place, "__ext__": "jpg", "jpg": jpeg(np.array(few.resize((side - i, side + i))))})
    return raws


def crop(renderer: str = "cpu", blocks: Blocks | None = None) -> Crop:
    return Crop(Source(), RECIPE, renderer, 5, blocks)  # type: ignore[arg-type]


def content(batch: Batch) -> list[Any]:
    return [
        batch.step,
        batch.keys,
        batch.samples.tolist(),
        {n: v.clone().numpy().tobytes() for n, v in batch.views.items()},
        batch.images and [batch.images.pixels.tolist(), batch.images.shapes, batch.images.views.tobytes()],
    ]


def test_batches__of_views() -> None:
    batches = list(crop()(samples(22)))
    assert [batch.step for batch in batches] == list(range(5))  # what is left over makes no batch
    assert [key for batch in batches for key in batch.keys] == [f"key{i}" for i in range(20)]
    assert [number for batch in batches for number in batch.samples.tolist()] == list(range(0, 140, 7))
    for batch in batches:
        assert {name: tuple(views.shape) for name, views in batch.views.items()} == SHAPES


@pytest.mark.parametrize("renderer", ["cpu", "device"])
@pytest.mark.parametrize("are_kept", [False, True])
def test_batches__do_not_change_when_others_are_made(are_kept: bool, renderer: str) -> None:
    alone = [content(next(iter(crop(renderer)(samples(40)[start : start + 4])))) for start in range(0, 40, 4)]
    kept, found, addresses = [], [], set()
    for batch in crop(renderer, Blocks())(samples(40)):
        found.append(content(batch))
        addresses.add((batch.images.pixels if batch.images else batch.views["local"]).data_ptr())
        if are_kept:
            kept.append(batch)
        del batch
    assert found == alone
    assert [content(batch) for batch in kept] == (alone if are_kept else [])
    assert (len(addresses) == 1) != are_kept


def test_batches__of_images_hold_what_the_renderer_needs() -> None:
    raws = samples(4, LARGE)
    (batch,) = crop("device")([dict(raw) for raw in raws])
    assert batch.views == {}
    assert batch.images is not None
    ends = np.cumsum([height * width * 3 for height, width in batch.images.shapes])
    parts = np.split(batch.images.pixels.numpy(), ends[:-1])
    for place, raw in enumerate(raws):
        reduction = int(batch.images.reductions[place])
        expected, applied = decode_reduced(raw["jpg"], reduction)
        assert applied == reduction
        np.testing.assert_array_equal(parts[place].reshape(*batch.images.shapes[place], 3), expected)
        views = sample_views(sample_generator(5, 0, 7 * place), RECIPE, LARGE + place, LARGE - place)
        assert batch.images.views[place].tobytes() == views.tobytes()
    assert batch.images.reductions.max() > 1


def test_batches__of_the_reference_are_decoded_in_full() -> None:
    raws = samples(4, LARGE)
    (batch,) = crop("pil")([dict(raw) for raw in raws])
    for place, raw in enumerate(raws):
        image = decode_image(raw["jpg"])
        views = sample_views(sample_generator(5, 0, 7 * place), RECIPE, *image.shape[:2])
        outs = [np.empty((3, view["size"], view["size"]), np.uint8) for view in views]
        pil.render(image, views, outs)
        found = [view for views in batch.views.values() for view in views[:, place].numpy()]
        for one, other in zip(found, outs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_batches__of_reduced_images_are_rendered_as_such(file_format: str) -> None:
    """A PNG is decoded in full, whatever the views would allow."""
    raws = samples(4, LARGE)
    if file_format == "PNG":
        raws = [{**raw, "jpg": encoded(decode_image(raw["jpg"]), "PNG")} for raw in raws]
    (images,) = (batch.images for batch in crop("device")([dict(raw) for raw in raws]))
    (batch,) = crop("cpu")([dict(raw) for raw in raws])
    assert images is not None
    assert (images.reductions.max() > 1) == (file_format == "JPEG")
    for place, raw in enumerate(raws):
        reduction = int(images.reductions[place])
        outs = [np.empty((3, view["size"], view["size"]), np.uint8) for view in images.views[place]]
        cpu.render(decode_reduced(raw["jpg"], reduction)[0], images.views[place], outs, reduction)
        found = [view for views in batch.views.values() for view in views[:, place].numpy()]
        for one, other in zip(found, outs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_batches__records_outlive_the_memory_of_the_images() -> None:
    stage = crop("device", Blocks())(samples(8))
    first = next(stage)
    assert first.images is not None
    views, expected, address = first.images.views, first.images.views.tobytes(), first.images.pixels.data_ptr()
    del first
    second = next(stage)
    assert second.images is not None
    assert second.images.pixels.data_ptr() == address
    assert second.images.views.tobytes() != expected
    assert views.tobytes() == expected


@pytest.mark.parametrize("renderer", ["cpu", "device"])
def test_batches__all_pixels_are_pinned(renderer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = crop(renderer)(samples(4))
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.neg)
    pixels = [batch.images.pixels] if batch.images else list(batch.views.values())
    pinned = batch.pin_memory()
    found = [pinned.images.pixels] if pinned.images else list(pinned.views.values())
    assert all(torch.equal(one, -other) for one, other in zip(found, pixels, strict=True))


def test_batches__name_all_that_was_bad() -> None:
    raws = samples(4)
    bad = [BadSample(0, f"bad{i}", "url", "reason", "other") for i in range(3)]
    raws[1]["__bad__"], raws[3]["__bad__"] = bad[:2], bad[2:]
    (batch,) = crop()(raws)
    assert batch.bad == bad


@pytest.mark.parametrize("renderer", ["cpu", "device"])
@pytest.mark.parametrize("damage", ["header", "content"])
def test_batches__with_a_bad_sample_have_its_substitute(renderer: str, damage: str) -> None:
    raws = samples(4)
    whole = raws[2]["jpg"]
    raws[2]["jpg"] = b"no image" if damage == "header" else whole[: len(whole) // 3]
    (batch,) = crop(renderer)(raws)
    assert batch.keys == ["key0", "key1", "grey", "key3"]
    assert [bad.key for bad in batch.bad] == ["key2"]
    if batch.images:
        assert batch.images.shapes[2] == (30, 20)
        views = sample_views(sample_generator(5, 0, 14), RECIPE, 30, 20)
        assert batch.images.views[2].tobytes() == views.tobytes()
        assert batch.images.reductions[2] == 1
    others = next(iter(crop(renderer)(samples(4))))
    for name, group in batch.views.items():
        assert torch.equal(group[:, [0, 1, 3]], others.views[name][:, [0, 1, 3]])
