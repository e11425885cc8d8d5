"""Figures and pictures: what stands in them, in which colours, and that names stay names."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinowds.report.dataset.figures import (
    PALETTE,
    box_figure,
    encode_map,
    log_histogram_figure,
    map_cells,
    scatter_figure,
    sprite_of,
)
from dinowds.report.dataset.groups import Groups
from dinowds.report.dataset.slides import NO_SAMPLE
from dinowds.report.dataset.spread import Box, Histogram
from tests.report.dataset.support import HOSTILE

ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


def opened(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_box_figure__groups_rows_and_what_is_missing() -> None:
    boxes = {HOSTILE: [Box(9, 1, 2, 3, 4, 5), None], "b": [None, Box(9, 10, 20, 30, 40, 50)]}
    figure = box_figure(["one", "two"], boxes, HOSTILE)
    first, second = figure["data"]
    assert (first["name"], first["y"], second["y"]) == (ESCAPED, ["one"], ["two"])
    numbers = [second[name] for name in ("lowerfence", "q1", "median", "q3", "upperfence")]
    assert numbers == [[10], [20], [30], [40], [50]]
    assert [trace["line"]["color"] for trace in (first, second)] == ["@0", "@1"]
    assert figure["layout"]["xaxis"]["title"]["text"] == ESCAPED


@pytest.mark.parametrize(
    ("ends", "texts"),
    [
        ((9_000, 2_000_000), ["10k", "20k", "50k", "100k", "200k", "500k", "1M", "2M"]),
        ((290, 550), ["300", "400", "500"]),
        ((3, 4), ["3", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4"]),
        ((1, 1e12), ["1", "20", "500", "10k", "200k", "5M", "100M", "2G", "50G", "1e+03G"]),
        ((7.003, 7.004), ["7", "7"]),
    ],
)
def test_log_axis__has_a_few_ticks(ends: tuple[float, float], texts: list[str]) -> None:
    edges = np.array(ends, np.float64)
    figure = log_histogram_figure(Histogram(edges, np.array([[4], [0]])), ["a", "b"], "x", "y")
    axis = figure["layout"]["xaxis"]
    assert axis["type"] == "log"
    found = list(axis["ticktext"])
    assert 2 <= len(found) <= 11
    if len(texts) < 10:
        assert found == texts
    assert [trace["name"] for trace in figure["data"]] == ["a"]


def test_map_cells__labels_have_colours_and_empty_cells_none() -> None:
    labels = np.array([[3, 5, -1], [9, NO_SAMPLE, 3]], np.int32)
    cells = map_cells(labels, [3, 5])
    expected = [[PALETTE[0], PALETTE[1], PALETTE[-1]], [PALETTE[-1], None, PALETTE[0]]]
    for row, column in np.ndindex(2, 3):
        colour = expected[row][column]
        assert cells[row, column, 3] == (0 if colour is None else 255)
        assert colour is None or cells[row, column, :3].tolist() == colour.tolist()
    assert {tuple(colour) for colour in map_cells(labels, [])[labels != NO_SAMPLE][:, :3].tolist()} == {
        tuple(PALETTE[0].tolist())
    }


def test_encode_map__cells_are_squares_in_the_middle_of_a_square() -> None:
    cells = map_cells(np.array([[0, 1, 0, 1]], np.int32), [0, 1])
    picture = opened(encode_map(cells))
    assert picture.shape == (320, 320, 4)
    assert not picture[:80, :, 3].any()
    assert not picture[160:, :, 3].any()
    assert (picture[80:160, :, 3] == 255).all()
    assert (picture[80:160, 80:160, :3] == PALETTE[1]).all()


def test_sprite__each_thumbnail_at_its_place() -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    sprite = sprite_of([np.full((20, 12 * (1 + i), 3), colour, np.uint8) for i, colour in enumerate(colours)], 16, 2)
    picture = opened(sprite.content).astype(int)
    assert (picture.shape, sprite.side, sprite.columns) == ((32, 32, 3), 16, 2)
    for number, colour in enumerate(colours):
        top, left = (16 * place for place in divmod(number, 2))
        assert np.abs(picture[top + 4 : top + 12, left + 4 : left + 12] - colour).max() < 20


def test_scatter__every_point_once_for_each_way_of_grouping() -> None:
    x = np.arange(5.0)
    groupings = {"cohort": Groups(["a", HOSTILE], np.array([0, 1, 0, 1, 1])), "label": Groups(["x"], np.zeros(5, int))}
    figure, choices = scatter_figure(x, -x, groupings, ("x", "y"))
    assert [(choice.name, list(choice.shows)) for choice in choices] == [("cohort", [0, 1]), ("label", [2])]
    assert [trace["customdata"] for trace in figure["data"]] == [[0, 2], [1, 3, 4], [0, 1, 2, 3, 4]]
    assert figure["data"][1]["y"] == [-1, -3, -4]
    assert figure["data"][1]["name"] == ESCAPED
    assert "<script" not in str(figure)
