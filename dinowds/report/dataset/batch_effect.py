"""The section of colours, stains and sharpness, which makes differences between cohorts visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.report.dataset.colour import MEASURES
from dinowds.report.dataset.columns import Columns, read_statistics
from dinowds.report.dataset.figures import box_figure, box_height, scatter_figure, sprite_of
from dinowds.report.dataset.groups import Groups, main_groups
from dinowds.report.dataset.images import Images
from dinowds.report.dataset.spread import boxes_of, share_between
from dinowds.report.page import Block, Notice, Plot, Section, Table, Text
from dinowds.report.page import Columns as Beside

_SPRITE_SIDE = 64
_LEAST_IMAGES = 8
"""That plots are made of."""
_LARGE_SHARE, _SOME_SHARE = 0.5, 0.2
"""Of the variance that lies between cohorts: a warning, and a note."""


def colour_section(dataset: Dataset, columns: Columns, images: Images) -> Section:
    """Boxes of colours and stains of each cohort, how much of their variance lies between cohorts, and a map."""
    cohorts = list(dataset.manifest.cohorts)
    chosen = np.flatnonzero(images.is_random)
    if not len(chosen):
        return Section("Colour", "colour", [Text("No image could be read.")])
    codes = images.cohort[chosen]
    groups = main_groups(codes, cohorts)
    values = {name: images.colours.of(name)[chosen] for name in MEASURES}
    stained = not images.colours.is_grey
    shares = _shares(values, codes, stained)
    blocks: list[Block] = [Text(_intro(len(chosen), groups, stained)), *_batch_effect(shares)]
    is_enough = len(chosen) >= _LEAST_IMAGES
    if is_enough:
        blocks += _boxes(values, groups, stained)
        blocks += _quality(dataset, columns, values, groups, cohorts)
    if stained and is_enough:
        blocks.append(_scatter(images, chosen, cohorts, dataset.manifest.label_names))
    blocks.append(_table(values, codes, cohorts, shares, stained))
    return Section("Colour and stain" if stained else "Brightness and sharpness", "colour", blocks)


def _intro(count: int, groups: Groups, stained: bool) -> str:
    text = f"Of {count:,} images"
    text += ", as many of each cohort as of any other." if len(groups.names) > 1 else "."
    if count >= _LEAST_IMAGES:
        text += " Boxes reach from the first to the third quartile, whiskers from the 5th to the 95th percentile."
    if stained:
        return text + (
            " Stains are those of Ruifrok and Johnston (2001), over the pixels that are not white; they mean something "
            "for haematoxylin with eosin or DAB only."
        )
    return f"{text} All of them are grey, so stains and hues are not shown."


def _shown_measures(stained: bool) -> list[str]:
    grey = ("brightness", "red_std", "sharpness", "white", "black")
    return [name for name in MEASURES if stained or name in grey]


def _title(name: str, stained: bool) -> str:
    return "standard deviation" if name == "red_std" and not stained else MEASURES[name]


def _shares(values: dict[str, NDArray[np.float64]], codes: NDArray[np.int32], stained: bool) -> dict[str, float]:
    """Title of a measure → share of its variance between cohorts, where there is one."""
    found = {_title(name, stained): share_between(values[name], codes) for name in _shown_measures(stained)}
    return {title: share for title, share in found.items() if share is not None}


def _batch_effect(shares: dict[str, float]) -> list[Block]:
    if not shares:
        return []
    largest = sorted(shares, key=lambda name: -shares[name])[:3]
    worst = shares[largest[0]]
    if worst < _SOME_SHARE:
        return [
            Notice(
                "note",
                f"Cohorts look alike: at most {100 * worst:.0f} % of the variance of a measure lies between them.",
            )
        ]
    listed = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in largest)
    text = f"Cohorts look different: of the variance between images, so much lies between cohorts: {listed}."
    advice = [
        "An encoder may tell cohorts apart by colour alone: look at its features by cohort.",
        "Stronger colour jitter, crops.stain for tissue, and batches that mix cohorts work against it.",
        "Where cohorts show different things, as tissue types, they may differ for good reason.",
    ]
    return [Notice("warning" if worst >= _LARGE_SHARE else "note", text, {"What to make of it": advice})]


def _boxes(values: dict[str, NDArray[np.float64]], groups: Groups, stained: bool) -> list[Block]:
    if not stained:
        return [
            Beside(
                [
                    _box_plot("Mean of an image", {"": "brightness"}, values, groups, "grey levels, 0 to 255"),
                    _box_plot("Standard deviation of an image", {"": "red_std"}, values, groups, "grey levels"),
                ]
            )
        ]
    means = {"red": "red", "green": "green", "blue": "blue", "grey": "brightness"}
    stds = {name: f"{name}_std" for name in ("red", "green", "blue")}
    stains = {"haematoxylin": "haematoxylin", "eosin": "eosin", "DAB": "dab"}
    return [
        _box_plot("Concentration of each stain", stains, values, groups, "mean of an image, by optical density"),
        Beside(
            [
                _box_plot("Mean of each channel", means, values, groups, "grey levels, 0 to 255"),
                _box_plot(
                    "Standard deviation of each channel", stds, values, groups, "grey levels", room_for=len(means)
                ),
            ]
        ),
    ]


def _box_plot(
    title: str,
    rows: dict[str, str],
    values: dict[str, NDArray[Any]],
    groups: Groups,
    x_title: str,
    note: str = "",
    log: bool = False,
    room_for: int = 0,
) -> Plot:
    """`rows`: name of a row → measure. `room_for`: so many rows that are beside it."""
    boxes = [boxes_of(values[measure], groups.codes, len(groups.names)) for measure in rows.values()]
    by_group = {name: [of_row[place] for of_row in boxes] for place, name in enumerate(groups.names)}
    medians = "; ".join(
        f"{row}, "
        + ", ".join(f"{name} {box.median:.3g}" for name, box in zip(groups.names, of_row, strict=True) if box)
        for row, of_row in zip(rows, boxes, strict=True)
    )
    figure = box_figure(list(rows), by_group, x_title, log)
    return Plot(
        title,
        figure,
        f"Boxes of each cohort. Medians: {medians}.",
        note,
        box_height(max(room_for, len(rows)), len(groups.names)),
    )


def _quality(
    dataset: Dataset,
    columns: Columns,
    values: dict[str, NDArray[np.float64]],
    groups: Groups,
    cohorts: Sequence[str],
) -> list[Block]:
    """Sharpness, and shares of white and black: of all samples where the index has them."""
    stored = read_statistics(dataset)
    measured: dict[str, NDArray[Any]] = {**values, **stored}
    of_all = main_groups(columns.cohort, cohorts) if stored else groups
    note = f"Of all {len(columns):,} samples, from the index." if stored else ""
    sharp = np.where(measured["sharpness"] > 0, measured["sharpness"], np.nan)
    plots: list[Block] = [
        _box_plot(
            "White and black", {"white": "white", "black": "black"}, measured, of_all, "share of the pixels", note
        ),
        _box_plot(
            "Sharpness", {"": "sharpness"}, {"sharpness": sharp}, of_all, "variance of the Laplacian", note, True, 2
        ),
    ]
    return [Beside(plots)]


def _scatter(images: Images, chosen: NDArray[np.int64], cohorts: Sequence[str], labels: Sequence[str]) -> Plot:
    red, green, blue = (images.colours.of(name)[chosen] for name in ("red", "green", "blue"))
    groupings = {"cohort": main_groups(images.cohort[chosen], cohorts)}
    if (images.label[chosen] >= 0).any():
        groupings["label"] = main_groups(images.label[chosen], labels)
    titles = ("red − green, mean", "(red + green) ∕ 2 − blue, mean")
    figure, choices = scatter_figure(red - green, (red + green) / 2 - blue, groupings, titles)
    thumbnails = [images.colours.thumbnails[place] for place in chosen.tolist()]
    return Plot(
        "Mean colour of each image",
        figure,
        f"Scatter of the mean colours of {len(chosen):,} images.",
        "Grey is at 0, 0; red to the right, green to the left, yellow above, blue below. Groups that stand apart can "
        "be told by colour alone. Point at an image to see it.",
        height=460,
        choices=choices,
        sprite=sprite_of(thumbnails, _SPRITE_SIDE),
    )


def _table(
    values: dict[str, NDArray[np.float64]],
    codes: NDArray[np.int32],
    cohorts: Sequence[str],
    shares: dict[str, float],
    stained: bool,
) -> Table:
    groups = main_groups(codes, cohorts)
    rows = []
    for name in _shown_measures(stained):
        title = _title(name, stained)
        medians = [
            None if box is None else box.median for box in boxes_of(values[name], groups.codes, len(groups.names))
        ]
        rows.append((title, None if title not in shares else round(100 * shares[title], 1), *medians))
    head = ("measure", "between cohorts, %", *groups.names)
    if len(groups.names) == 1:
        return Table("Medians", ("measure", "median"), [(title, median) for title, _, median in rows])
    return Table("Medians of each cohort, and how much of the variance lies between cohorts", head, rows)
