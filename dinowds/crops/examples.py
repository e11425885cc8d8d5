"""A few samples of a dataset and their views, as a run's first visit has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.config import CropsConfig
from dinowds.crops.recipe import Recipe, Views, patch_recipe, sample_generator, sample_views
from dinowds.crops.reduction import best_reduction
from dinowds.crops.render import get_renderer
from dinowds.crops.sheet import Pixels, Rendering, SheetSample, contact_sheet, mean_difference
from dinowds.data.dataset import Dataset, Sample
from dinowds.data.decode import decode_image, decode_reduced
from dinowds.data.store.store import Store, open_store
from dinowds.errors import DatasetError, SampleError
from dinowds.remote.urls import shown

_MAX_SUBSTITUTES = 100


def example_sheet(
    name: str,
    dataset: Dataset,
    count: int,
    renderers: Sequence[str],
    crops: CropsConfig,
    seed: int,
    verify: bool,
    notice: Callable[[str], None],
) -> tuple[Image.Image, int]:
    """A contact sheet, RGB, of `draw_examples`, and the number of samples on it. `name`: of the dataset, for people."""
    recipe = patch_recipe(crops)
    samples = list(draw_examples(dataset, count, renderers, recipe, seed, verify, notice))
    details = [f"renderer {', '.join(renderers)}  ·  seed {seed}", *describe_crops(crops)]
    title = f"{name}  ·  {len(samples)} of {len(dataset):,} samples"
    return contact_sheet(title, details, recipe.outputs, samples), len(samples)


def draw_examples(
    dataset: Dataset,
    count: int,
    renderers: Sequence[str],
    recipe: Recipe,
    seed: int,
    verify: bool,
    notice: Callable[[str], None],
) -> Iterator[SheetSample]:
    """`count` samples, or all, with the views of their visit 0 by each renderer, `pil` first among several.

    Args:
        verify: whether digests are compared.
        notice: is told of each sample that cannot be read and is replaced.

    Raises:
        DatasetError: no sample can be read.
        StorageError: a remote shard cannot be reached.
    """
    for sample, payload, image in good_samples(dataset, count, seed, verify, notice):
        views = sample_views(sample_generator(seed, 0, sample.id), recipe, *image.shape[:2])
        yield SheetSample(sample.key, image, views, render_views(renderers, payload, image, views))


def good_samples(
    dataset: Dataset, count: int, seed: int, verify: bool, notice: Callable[[str], None]
) -> Iterator[tuple[Sample, bytes, Pixels]]:
    """Samples with their bytes and pixels. Each that cannot be read is replaced by the next one that can."""
    store = open_store(dataset, verify)
    places = _spread(len(dataset), count, seed)
    found, used = 0, set(places)
    for place in places:
        following = (other % len(dataset) for other in range(place + 1, place + 1 + _MAX_SUBSTITUTES))
        for candidate in (place, *(other for other in following if other not in used)):
            used.add(candidate)
            sample = dataset[int(dataset.selection.ids(np.array([candidate]))[0])]
            try:
                payload, image = _read(store, dataset, sample)
            except SampleError as error:
                notice(f"{error}; the next sample is drawn")
                continue
            found += 1
            yield sample, payload, image
            break
    if not found:
        raise DatasetError(f"{shown(dataset.url)}: no sample can be drawn; 'dinowds inspect --verify' looks for damage")


def _spread(total: int, count: int, seed: int) -> list[int]:
    """`count` of `total` places, or all: one at random of each of so many equal parts."""
    count = min(count, total)
    edges = np.arange(count + 1) * total // max(1, count)
    places: list[int] = np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()
    return places


def _read(store: Store, dataset: Dataset, sample: Sample) -> tuple[bytes, NDArray[np.uint8]]:
    """The payload and its pixels; the message of a SampleError says where they lie."""
    payload = store.read(sample)
    try:
        return payload, decode_image(payload)
    except SampleError as error:
        where = f"{shown(dataset.shard_url(sample.shard))}: {sample.key}.{sample.ext}"
        raise SampleError(f"{where}: {error}") from None


def render_views(names: Sequence[str], payload: bytes, image: Pixels, views: Views) -> list[Rendering]:
    """As in training: the reference from the full image, the others from one that is reduced as far as views allow."""
    reduced, reduction = decode_reduced(payload, int(best_reduction(views)))
    made = {}
    for name in dict.fromkeys(["pil", *names] if len(names) > 1 else names):
        outs = [np.empty((3, size, size), np.uint8) for size in views["size"].tolist()]
        get_renderer(name)(*((image, views, outs) if name == "pil" else (reduced, views, outs, reduction)))
        made[name] = outs
    if len(names) == 1:
        return [Rendering("", made[names[0]])]
    labels = {
        name: f"{name}  ·  mean difference from pil {mean_difference(made[name], made['pil']):.2f} of 255"
        for name in made
    }
    return [Rendering({**labels, "pil": "pil  ·  reference"}[name], made[name]) for name in names]


def describe_crops(crops: CropsConfig) -> list[str]:
    """The recipe in two lines: what differs between the outputs, and what they share."""
    outputs = [
        f"{name}: {of.scale[0]:g} to {of.scale[1]:g} of the area, blur {_list(of.blur)}, solarize {_list(of.solarize)}"
        for name, of in (("global", crops.global_), ("local", crops.local))
        if of.count
    ]
    if crops.local.inside_global:
        outputs.append("local inside global")
    shared = [
        *(
            f"{name} {value:g}"
            for name, value in (("flip", crops.flip), ("vertical flip", crops.vertical_flip))
            if value
        ),
        *(["quarter turns"] if crops.quarter_turns else []),
        *([f"stain {crops.stain:g} (strength {crops.stain_strength:g})"] if crops.stain else []),
        f"jitter {crops.jitter:g} (brightness {crops.brightness:g}, contrast {crops.contrast:g}, "
        f"saturation {crops.saturation:g}, hue {crops.hue:g})",
        f"grey {crops.grey:g}",
    ]
    return ["  ·  ".join(outputs), "  ·  ".join(shared)]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
