"""Sections that need pixels: samples, their views, colours and stains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.config import CropsConfig
from dinowds.crops.examples import describe_crops, draw_examples
from dinowds.crops.recipe import patch_recipe
from dinowds.crops.sheet import LEGEND, SheetSample, what_was_done, with_boxes
from dinowds.data.dataset import Dataset
from dinowds.data.subsets.selection import Ids
from dinowds.data.summary import Summary
from dinowds.errors import DatasetError
from dinowds.report.dataset.colour import Colours, measure_colours
from dinowds.report.dataset.columns import Columns, read_rows_of
from dinowds.report.dataset.draw import draw_evenly
from dinowds.report.dataset.figures import encode
from dinowds.report.dataset.groups import main_groups
from dinowds.report.dataset.reading import Unreadable
from dinowds.report.page import Block, Folded, Gallery, Notice, Picture, Section, Text
from dinowds.shard.repeats import ranks_among_equals

_GALLERIES, _OF_GALLERY = 12, 8
_VIEW_SAMPLES = 3
_BOX_SIDE = 320
"""Of the picture with the boxes of its views, px."""
_MOST_PIXELS = 1 << 30
"""Of all images that are read, as they are stored; fewer are read where they are larger."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class Images:
    """Some images, and what is known of them."""

    colours: Colours
    rows: Sequence[Mapping[str, Any]]
    """[n]: cohort, slide, label, key of each that could be read."""
    cohort: NDArray[np.int32]
    """[n]: positions in the manifest's cohorts."""
    label: NDArray[np.int32]
    """[n]: positions in the manifest's label names; -1 for none."""
    slide: NDArray[np.uint64]
    """[n]: a number for each slide."""
    is_random: NDArray[np.bool_]
    """[n]: whether it was drawn for its cohort; the others are there for their label alone."""
    wanted: int
    """That were to be read."""


def read_images(dataset: Dataset, columns: Columns, count: int, seed: int) -> Images:
    """Draw `count` images spread over the cohorts, and some of each of the most frequent labels, and measure them.

    Raises:
        StorageError: a remote shard cannot be reached.
    """
    by_cohort = draw_evenly(columns.cohort, count, seed)
    pixels = np.array([row["width"] * row["height"] for row in read_rows_of(dataset, columns.ids[by_cohort], _SIZE)])
    if pixels.sum() > _MOST_PIXELS:
        by_cohort = draw_evenly(columns.cohort, max(1, int(_MOST_PIXELS / pixels.mean())), seed)
    places = np.union1d(by_cohort, _of_labels(columns, seed))
    rows = read_rows_of(dataset, columns.ids[places], (*_SIZE, "key", "cohort", "slide", "label"))
    sizes = np.array([[row["width"], row["height"]] for row in rows], np.int64).reshape(-1, 2)
    colours = measure_colours(dataset, columns.ids[places], sizes)
    good = places[colours.places]
    return Images(
        colours,
        [rows[place] for place in colours.places.tolist()],
        columns.cohort[good],
        columns.label[good],
        columns.slide[good],
        np.isin(good, by_cohort),
        len(places),
    )


_SIZE = ("width", "height")


def _of_labels(columns: Columns, seed: int) -> Ids:
    """Places of a few samples of each of the most frequent labels."""
    labelled = np.flatnonzero(columns.label >= 0)
    if not len(labelled):
        return labelled
    groups = np.bincount(columns.label[labelled])
    shown = np.argsort(-groups, kind="stable")[:_GALLERIES]
    labelled = labelled[np.isin(columns.label[labelled], shown)]
    count = _OF_GALLERY * int(np.count_nonzero(groups[shown]))
    return labelled[draw_evenly(columns.label[labelled], count, seed)]


def unreadable_notice(unreadable: Sequence[Unreadable], wanted: int) -> Notice | None:
    """Names some of the samples that could not be read."""
    if not unreadable:
        return None
    named = [f"{one.key}: {one.reason}" for one in unreadable[:_MOST_NAMED]]
    if len(unreadable) > _MOST_NAMED:
        named.append(f"{len(unreadable) - _MOST_NAMED:,} more")
    text = (
        f"{len(unreadable):,} of {wanted:,} samples that were drawn cannot be read. 'dinowds inspect DATASET --verify' "
        "looks for all damage."
    )
    return Notice("problem", text, {"Samples": named})


# ---- samples ----


def sample_section(images: Images, summary: Summary) -> Section:
    """A gallery for each label, or each cohort where there are none."""
    by_label = bool((images.label >= 0).any())
    what, counts = ("label", summary.labels) if by_label else ("cohort", summary.cohorts)
    groups = main_groups(images.label if by_label else images.cohort, list(counts), _GALLERIES)
    blocks: list[Block] = [
        Text(f"Drawn at random: {_OF_GALLERY} of each {what}, or fewer. {len(images.rows):,} images were read in all.")
    ]
    for code, name in enumerate(groups.names):
        members = np.flatnonzero(groups.codes == code)
        mixed = members[_mixed((images.cohort if by_label else images.slide)[members])][:_OF_GALLERY]
        pictures = [_picture(images, place, by_label) for place in mixed.tolist()]
        is_none = by_label and bool((images.label[members] < 0).all())
        title = "without a label" if is_none else name
        total = summary.samples_without_label if is_none else counts.get(name)
        caption = title if total is None else f"{title} · {total:,} samples"
        blocks.append(Gallery(caption, pictures, _OF_GALLERY))
    return Section("Samples", "samples", blocks)


def _mixed(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """[n] → their order such that one of each group comes first, then a second of each, and so on."""
    return np.argsort(ranks_among_equals(groups), kind="stable")


def _picture(images: Images, place: int, by_label: bool) -> Picture:
    row = images.rows[place]
    about = " · ".join(filter(None, (row["cohort"] if by_label else None, row["slide"]))) or row["key"]
    alt = f"Sample {row['key']} of cohort {row['cohort']}"
    alt += f", slide {row['slide']}" if row["slide"] else ""
    return Picture(encode(images.colours.thumbnails[place]), alt, about)


# ---- views ----


def view_section(dataset: Dataset, seed: int) -> Section:
    """Three samples with the views that the default recipe makes of them."""
    crops = CropsConfig()
    recipe = patch_recipe(crops)
    notices: list[str] = []
    try:
        samples = list(draw_examples(dataset, _VIEW_SAMPLES, ["cpu"], recipe, seed, True, notices.append))
    except DatasetError as error:
        return Section("Views", "views", [Notice("problem", f"No views can be shown: {error}")])
    letters = {part[0] for sample in samples for record in sample.records for part in what_was_done(record).split()}
    legend = ", ".join(f"{letter}: {meaning}" for letter, meaning in LEGEND.items() if letter in letters)
    blocks: list[Block] = [
        Text(
            "What a model sees of a sample in one epoch, by the default recipe. 'dinowds inspect DATASET --crops 8 "
            "--out crops.png KEY=VALUE' draws those of another."
        ),
        *(_views(sample, recipe.outputs) for sample in samples),
        Text(f"Below a view stand its number, which its box has too, and what was done to it: {legend}."),
        Folded("The default recipe", [Text(line) for line in describe_crops(crops)]),
        *(Notice("warning", notice) for notice in notices),
    ]
    return Section("Views", "views", blocks)


def _views(sample: SheetSample, outputs: Sequence[Any]) -> Gallery:
    height, width = sample.image.shape[:2]
    boxed = np.asarray(with_boxes(sample.image, sample.records, outputs, _BOX_SIDE))
    names = [output.name for output in outputs for _ in range(output.count)]
    pictures = [Picture(encode(boxed), f"Sample {sample.name} with the boxes of its views", f"{width} × {height} px")]
    for number, (name, record, view) in enumerate(
        zip(names, sample.records, sample.renderings[0].views, strict=True), 1
    ):
        done = what_was_done(record)
        alt = f"View {number} of sample {sample.name}, {name}: {done or 'nothing else was done'}"
        pictures.append(Picture(encode(view.transpose(1, 2, 0)), alt, f"{number} {name}  {done}".rstrip()))
    return Gallery(f"{sample.name} and its {len(names)} views", pictures, 6)
