"""The picture of a few samples' views: everything is there, in its place, at any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from dinowds.crops.recipe import Output, plain_view
from dinowds.crops.sheet import Rendering, SheetSample, contact_sheet, mean_difference, what_was_done

VERMILION, BLUE = (213, 94, 0), (0, 114, 178)
GROUND = (250, 240, 90)

Pixels = npt.NDArray[np.uint8]


def colour_of(row: int, view: int) -> tuple[int, int, int]:
    """Unlike any other on the sheet."""
    return 5 + 40 * row, 200 - 7 * view, 40 + 9 * view


def one_colour(colour: Sequence[int], height: int, width: int) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def make_sample(
    outputs: Sequence[Output], rows: Sequence[str] = ("",), height: int = 100, width: int = 100
) -> SheetSample:
    sizes = [output.size for output in outputs for _ in range(output.count)]
    box = (height // 4, width // 4, max(1, height // 2), max(1, width // 2))
    records = np.array([plain_view(*box, size) for size in sizes])
    renderings = [
        Rendering(
            label,
            [np.moveaxis(one_colour(colour_of(row, view), size, size), -1, 0) for view, size in enumerate(sizes)],
        )
        for row, label in enumerate(rows)
    ]
    return SheetSample("slide0/0_0", one_colour(GROUND, height, width), records, renderings)


def places_of(sheet: Image.Image, colour: Sequence[int]) -> npt.NDArray[np.int64]:
    """[n, 2]: row and column of each pixel of a colour."""
    return np.argwhere(np.all(np.asarray(sheet) == colour, axis=-1))


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        ([(2, 224), (8, 96)], 1),
        ([(2, 48), (2, 24)], 4),
        ([(1, 518), (3, 100)], 288 / 518),
        ([(3, 200)], 1),
        ([(1, 100), (2, 40)], 1),
        ([(1, 60), (2, 40)], 3),
        ([(2, 300), (0, 96)], 288 / 300),
        ([(1, 96), (2, 224), (4, 64)], 1),
        ([(1, 2), (12, 1)], 96),
    ],
)
def test_sheet__shows_every_view_whole_and_once(sizes: list[tuple[int, int]], scale: float) -> None:
    outputs = [Output(f"output {i}", count, size) for i, (count, size) in enumerate(sizes)]
    sheet = contact_sheet("title", ["details"], outputs, [make_sample(outputs)])
    assert sheet.mode == "RGB"
    view = 0
    for output in outputs:
        side = round(scale * output.size)
        for _ in range(output.count):
            found = places_of(sheet, colour_of(0, view))
            assert len(found) == side**2
            assert np.ptp(found, axis=0).tolist() == [side - 1, side - 1]
            view += 1
    edges = np.concatenate([np.asarray(sheet)[[0, -1]].reshape(-1, 3), np.asarray(sheet)[:, [0, -1]].reshape(-1, 3)])
    assert np.all(edges == 255)


def test_sheet__enlarged_pixels_stay_squares() -> None:
    outputs = [Output("global", 1, 64)]
    sample = make_sample(outputs)
    checks = np.indices((64, 64)).sum(axis=0) % 2
    colours = np.array([colour_of(0, 0), colour_of(1, 1)], np.uint8)[checks]
    sample.renderings[0].views[0][:] = colours.transpose(2, 0, 1)
    sheet = np.asarray(contact_sheet("title", [], outputs, [sample]))
    top, left = places_of(Image.fromarray(sheet), colour_of(0, 0)).min(axis=0)
    np.testing.assert_array_equal(
        sheet[top : top + 192, left : left + 192], colours.repeat(3, axis=0).repeat(3, axis=1)
    )


def test_sheet__numbers_of_views_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, __, text, *___, **____: drawn.append(text))
    outputs = [Output("global", 2, 224), Output("local", 3, 96)]
    contact_sheet("title", [], outputs, [make_sample(outputs)])
    # Of a view and of its box
    assert sorted(text for text in drawn if text.isdigit()) == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "5"]


def test_sheet__views_are_in_order_beside_their_original() -> None:
    outputs = [Output("global", 2, 224), Output("local", 8, 96)]
    sheet = contact_sheet("title", [], outputs, [make_sample(outputs)])
    corners = [places_of(sheet, colour_of(0, view)).min(axis=0).tolist() for view in range(10)]
    original = places_of(sheet, GROUND).min(axis=0).tolist()
    assert len({corner[0] for corner in [original, *corners[:6]]}) == 1  # two globals and four locals in one line
    assert len({corner[0] for corner in corners[6:]}) == 1
    columns = [corner[1] for corner in [original, *corners[:6]]]
    assert columns == sorted(set(columns))
    assert [corner[1] for corner in corners[6:]] == [corner[1] for corner in corners[2:6]]


def test_sheet__row_for_each_sample_and_renderer() -> None:
    outputs = [Output("global", 1, 200), Output("local", 2, 90)]
    tops = []
    sheet = contact_sheet("title", [], outputs, [make_sample(outputs, ("pil", "cpu", "device"))])
    for row in range(3):
        tops.append([int(places_of(sheet, colour_of(row, view))[:, 0].min()) for view in range(2)])
    assert [row[0] for row in tops] == [row[1] for row in tops]
    assert tops[1][0] - tops[0][0] == tops[2][0] - tops[1][0] > 200
    one = contact_sheet("title", [], outputs, [make_sample(outputs)])
    two = contact_sheet("title", [], outputs, [make_sample(outputs)] * 2)
    assert one.width == two.width == sheet.width
    assert len(places_of(two, colour_of(0, 0))) == 2 * 200**2
    assert len(places_of(one, GROUND)) * 2 == len(places_of(two, GROUND))
    # Without labels there is no room for them.
    labelled = contact_sheet("title", [], outputs, [make_sample(outputs, ("pil",))])
    assert labelled.height > one.height


def test_sheet__boxes_are_where_the_records_say() -> None:
    outputs = [Output("global", 1, 224), Output("local", 1, 96)]
    sample = make_sample(outputs, height=400, width=800)
    sample.records[0] = plain_view(100, 200, 200, 400, 224)
    sample.records[1] = plain_view(0, 600, 80, 120, 96)
    sheet = contact_sheet("title", [], outputs, [sample])
    ground = places_of(sheet, GROUND)
    left, bottom = int(ground[:, 1].min()), int(ground[:, 0].max())
    scale = (int(ground[:, 1].max()) + 1 - left) / 800
    top = round(bottom + 1 - 400 * scale)
    for colour, box in ((VERMILION, (100, 200, 300, 600)), (BLUE, (0, 600, 80, 720))):
        found = places_of(sheet, colour)
        found = found[(found[:, 0] >= top) & (found[:, 0] <= bottom) & (found[:, 1] < left + 800 * scale)]
        found = found - np.array([top, left])
        edges = (*found.min(axis=0), *(found.max(axis=0) + 1))
        assert np.abs(np.array(edges) - scale * np.array(box)).max() <= 1.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 1000), (5000, 3), (30, 20)])
def test_sheet__of_odd_images(height: int, width: int) -> None:
    outputs = [Output("global", 1, 64), Output("local", 1, 32)]
    sheet = contact_sheet("title", [], outputs, [make_sample(outputs, height=height, width=width)])
    assert len(places_of(sheet, colour_of(0, 0))) == 192**2


def test_sheet__long_names_stay_in_their_column() -> None:
    outputs = [Output("global", 1, 224)]
    sample = make_sample(outputs)
    long = SheetSample("slide/" + 60 * "w" + "_end", sample.image, sample.records, sample.renderings)
    short, found = (contact_sheet("title", [], outputs, [of]) for of in (sample, long))
    assert found.size == short.size
    original, view = places_of(found, GROUND), places_of(found, colour_of(0, 0))
    between = np.asarray(found)[view[:, 0].min() : view[:, 0].max() + 15, original[:, 1].max() + 1 : view[:, 1].min()]
    assert between.shape[1] > 10
    assert np.all(between == 255)
    assert not np.array_equal(np.asarray(found), np.asarray(short))


def test_sheet__is_as_wide_as_its_text() -> None:
    outputs = [Output("global", 1, 224)]
    narrow, *others = (
        contact_sheet(title, details, outputs, [make_sample(outputs, [label])])
        for title, details, label in (("t", [], ""), (100 * "t", [], ""), ("t", [200 * "d"], ""), ("t", [], 100 * "l"))
    )
    for wide in others:
        assert wide.width > narrow.width
        assert np.all(np.asarray(wide)[:, -20:] == 255)


def test_sheet__headings_do_not_overlap() -> None:
    outputs = [Output("global", 1, 100), Output("local", 1, 40)]
    sheet = contact_sheet("title", [], outputs, [make_sample(outputs)])
    line = np.asarray(sheet)[: places_of(sheet, colour_of(0, 0))[:, 0].min() - 15]
    left, right = (np.argwhere(np.all(line == colour, axis=-1))[:, 1] for colour in (VERMILION, BLUE))
    assert left.max() + 10 < right.min()


def test_sheet__legend_is_of_what_there_is() -> None:
    outputs = [Output("global", 1, 224)]
    plain, solarized = make_sample(outputs), make_sample(outputs)
    solarized.records["solarize"] = 128
    sheets = [np.asarray(contact_sheet("title", [], outputs, [sample])) for sample in (plain, solarized)]
    first = places_of(Image.fromarray(sheets[0]), colour_of(0, 0))[:, 0].min()
    assert not np.array_equal(sheets[0][:first], sheets[1][:first, : sheets[0].shape[1]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"flip": 1, "turns": 3, "hue": 0.1, "blur": 1.26}, "f  t3  j  b1.3"),
        ({"vertical_flip": 1, "stain": 1, "grey": 1, "solarize": 128}, "v  s  g  z"),
        ({"solarize": 255}, "z"),
    ],
)
def test_what_was_done__letters(changes: dict[str, int], words: str) -> None:
    assert what_was_done(plain_view(0, 0, 8, 8, 8, **changes)) == words


def test_mean_difference__of_views_that_count_the_same() -> None:
    dark, light = np.zeros((3, 20, 20), np.uint8), np.full((3, 4, 4), 255, np.uint8)
    assert mean_difference([dark, light], [dark, light]) == 0
    assert mean_difference([dark + np.uint8(4), light], [dark, light]) == 2
    assert mean_difference([dark, light - np.uint8(255)], [dark, light]) == 127.5
    with pytest.raises(ValueError, match=r"zip\(\)"):
        mean_difference([dark], [dark, light])
