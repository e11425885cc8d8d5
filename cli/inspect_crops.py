"""`dinowds inspect --crops`: a contact sheet of a few samples' views."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shared import interruptible, print_notice

if TYPE_CHECKING:
    from dinowds.config import CropsConfig
    from dinowds.crops.recipe import Recipe, Views
    from dinowds.crops.sheet import Rendering, SheetSample
    from dinowds.data.dataset import Dataset, Sample
    from dinowds.data.store.store import Store
    from dinowds.data.subsets.selection import Ids

_MAX_SAMPLES = 64
_MAX_SUBSTITUTES = 100


def write_sheet(
    location: str,
    count: int,
    out: Path,
    names: Sequence[str],
    config: Path | None,
    overrides: Sequence[str],
    seed: int | None,
    overwrite: bool,
) -> None:
    """Draw the views of `count` samples of a dataset, as a run's first visit has them, into the PNG file `out`."""
    from dinowds.config import load_config
    from dinowds.crops.recipe import patch_recipe
    from dinowds.crops.sheet import contact_sheet
    from dinowds.data.dataset import Dataset
    from dinowds.errors import DatasetError
    from dinowds.files import write_atomic
    from dinowds.remote.urls import shown

    _check_options(count, out, overwrite)
    loaded = load_config(config, overrides)
    recipe = patch_recipe(loaded.crops)
    renderers = _renderers(names, loaded.crops)
    seed = loaded.train.seed if seed is None else seed
    with interruptible("begin anew"):
        opened = Dataset.open(location)
        if opened.manifest.kind != "image":
            raise DatasetError(
                f"{shown(location)}: holds {opened.manifest.kind} samples, a contact sheet shows the crops of images"
            )
        samples = list(_samples(opened, count, renderers, recipe, seed, loaded.data.verify_digests))
        details = [f"renderer {', '.join(renderers)}  ·  seed {seed}", *_describe(loaded.crops)]
        title = f"{shown(location)}  ·  {len(samples)} of {len(opened):,} samples"
        picture = contact_sheet(title, details, recipe.outputs, samples)
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_atomic(out, content.getvalue())
    print(f"{out}: {len(samples)} samples, {picture.width} x {picture.height} px")  # noqa: T201


def _check_options(count: int, out: Path, overwrite: bool) -> None:
    from dinowds.errors import ConfigError, OutputError

    if not 1 <= count <= _MAX_SAMPLES:
        raise ConfigError(f"--crops is {count}, expected 1 to {_MAX_SAMPLES} samples")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: expected a name that ends in .png")
    if out.is_dir():
        raise OutputError(f"{out}: is a folder; give another --out")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; give another --out, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it, or give another --out")


def _renderers(names: Sequence[str], crops: CropsConfig) -> list[str]:
    """Those that are asked for, the reference first; without any, the one that a run on this machine would take."""
    from dinowds.crops.recipe import RENDERERS
    from dinowds.errors import ConfigError
    from dinowds.train.devices import choose_device, resolve_renderer
    from dinowds.world import World

    known = ["pil", *(name for name in RENDERERS if name not in ("auto", "pil"))]
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(f"--renderer is {name!r}, expected {', '.join(known)} or all")
    asked = names or [resolve_renderer(crops.renderer, choose_device(World()))]
    return [name for name in known if name in asked or "all" in asked]


def _samples(
    dataset: Dataset, count: int, renderers: Sequence[str], recipe: Recipe, seed: int, verify: bool
) -> Iterator[SheetSample]:
    from dinowds.crops.recipe import sample_generator, sample_views
    from dinowds.crops.sheet import SheetSample

    for sample, payload, image in _good_samples(dataset, count, seed, verify):
        views = sample_views(sample_generator(seed, 0, sample.id), recipe, *image.shape[:2])
        yield SheetSample(sample.key, image, views, _renderings(renderers, payload, image, views))


def _good_samples(dataset: Dataset, count: int, seed: int, verify: bool) -> Iterator[tuple[Sample, bytes, Any]]:
    """Samples with their bytes and pixels. Each that cannot be read is replaced by the next one that can."""
    from dinowds.data.store.store import open_store
    from dinowds.errors import DatasetError, SampleError
    from dinowds.remote.urls import shown

    store = open_store(dataset, verify)
    places = _spread(len(dataset), count, seed)
    found, used = 0, set(places)
    for place in places:
        following = (other % len(dataset) for other in range(place + 1, place + 1 + _MAX_SUBSTITUTES))
        for candidate in (place, *(other for other in following if other not in used)):
            used.add(candidate)
            sample = dataset[int(dataset.selection.ids(_one(candidate))[0])]
            try:
                payload, image = _read(store, dataset, sample)
            except SampleError as error:
                print_notice(f"{error}; the next sample is drawn")
                continue
            found += 1
            yield sample, payload, image
            break
    if not found:
        raise DatasetError(f"{shown(dataset.url)}: no sample can be drawn; 'dinowds inspect --verify' looks for damage")


def _spread(total: int, count: int, seed: int) -> list[int]:
    """`count` of `total` places, or all: one at random of each of so many equal parts."""
    import numpy as np

    count = min(count, total)
    edges = np.arange(count + 1) * total // max(1, count)
    places: list[int] = np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()
    return places


def _one(place: int) -> Ids:
    import numpy as np

    return np.array([place])


def _read(store: Store, dataset: Dataset, sample: Sample) -> tuple[bytes, Any]:
    """The payload and its pixels; the message of a SampleError says where they lie."""
    from dinowds.data.decode import decode_image
    from dinowds.errors import SampleError
    from dinowds.remote.urls import shown

    payload = store.read(sample)
    try:
        return payload, decode_image(payload)
    except SampleError as error:
        where = f"{shown(dataset.shard_url(sample.shard))}: {sample.key}.{sample.ext}"
        raise SampleError(f"{where}: {error}") from None


def _renderings(names: Sequence[str], payload: bytes, image: Any, views: Views) -> list[Rendering]:
    """As in training: the reference from the full image, the others from one that is reduced as far as views allow."""
    import numpy as np

    from dinowds.crops.reduction import best_reduction
    from dinowds.crops.render import get_renderer
    from dinowds.crops.sheet import Rendering, mean_difference
    from dinowds.data.decode import decode_reduced

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


def _describe(crops: CropsConfig) -> list[str]:
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
