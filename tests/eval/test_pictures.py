"""Maps over images pixel by pixel, and sheets on which every panel is found again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from dinowds.errors import ConfigError
from dinowds.eval.pictures import (
    COLOUR_MAPS,
    Bar,
    Panel,
    Pixels,
    Row,
    colour_map,
    enlarge,
    enlarged,
    outside_dimmed,
    overlay,
    panel_sheet,
    smooth,
    stretch,
)

GREYS: Pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def an_image(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_colour_map__is_plotlys_and_ever_lighter(name: str) -> None:
    from plotly.colors import get_colorscale

    colours = colour_map(name)
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    for place, text in get_colorscale(name):
        expected = [int(text[start : start + 2], 16) for start in (1, 3, 5)]
        assert np.abs(colours[round(255 * place)].astype(int) - expected).max() <= 1
    lightness = (colours / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > -0.002).all()
    assert lightness[-1] - lightness[0] > 0.5


def test_colour_map__unknown_or_without_plotly_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="colour map is 'jet', expected one of inferno, viridis"):
        colour_map("jet")
    monkeypatch.setitem(sys.modules, "plotly.colors", None)
    with pytest.raises(ConfigError, match=r"need the package 'plotly'; pip install 'dinowds\[report\]'"):
        colour_map("inferno")


def test_stretch__keeps_missing_and_a_few_do_not_take_all_colours() -> None:
    values = np.array([[np.nan, 2.0], [4.0, 3.0]])
    found = stretch(values)
    assert np.isnan(found[0, 0])
    assert found[0, 1] == 0
    assert found[1, 0] == 1
    assert 0.5 < found[1, 1] < 0.52
    many = np.arange(1000.0).reshape(20, 50)
    many[-1, -1] = 1e9
    assert stretch(many)[10, 0] == pytest.approx(500 / 989, abs=0.01)
    assert stretch(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
    assert np.isnan(stretch(np.full((2, 2), np.nan))).all()


def test_enlarge__each_token_is_its_rectangle() -> None:
    values = np.arange(6).reshape(2, 3)
    assert enlarge(values, 4, 6).tolist() == np.kron(values, np.ones((2, 2), int)).tolist()
    uneven = enlarge(values, 5, 7)
    assert uneven.shape == (5, 7)
    assert (np.diff(uneven, axis=1) >= 0).all()
    assert sorted(set(uneven.flatten().tolist())) == list(range(6))
    image = an_image(3, 2)
    large = enlarged(image, 7)
    assert large.shape == (9, 6, 3)
    assert np.array_equal(large[::3, ::3], image)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_overlay__mixes_image_and_colours(alpha: float) -> None:
    image = an_image(8, 12)
    values = np.random.default_rng(1).random((4, 3))
    found = overlay(image, values, GREYS, alpha)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    for y in range(8):
        for x in range(12):
            grey = np.rint(255 * stretch(values)[y // 2, x // 4])
            assert np.abs(found[y, x] - ((1 - alpha) * image[y, x] + alpha * grey)).max() <= 0.51


@pytest.mark.parametrize("is_smooth", [True, False])
def test_overlay__missing_tokens_are_striped_whatever_the_image(is_smooth: bool) -> None:
    values = np.array([[0.1, np.nan], [0.5, 0.9]])
    first, second = (overlay(an_image(64, 64, seed), values, GREYS, 0.5, is_smooth) for seed in (0, 1))
    assert np.array_equal(first[:32, 32:], second[:32, 32:])
    assert len(np.unique(first[:32, 32:])) == 2
    assert (first[:32, :32] != second[:32, :32]).any(axis=-1).mean() > 0.9


def test_smooth__interpolates_and_takes_nothing_from_missing_tokens() -> None:
    line = smooth(np.array([[0.0, 1.0]]), 1, 8)
    assert (np.diff(line[0]) >= 0).all()
    assert 0.2 < line[0, 3] < 0.5 < line[0, 4] < 0.8
    constant: NDArray[np.floating] = np.full((3, 3), 0.7)
    constant[1, 1] = np.nan
    found = smooth(constant, 12, 15)
    assert np.isnan(found[4:8, 5:10]).all()
    assert np.isnan(found).sum() == 20
    np.testing.assert_allclose(found[~np.isnan(found)], 0.7, rtol=1e-6)


def test_outside_dimmed__inside_stays_and_outside_is_dark_and_grey() -> None:
    image = an_image(8, 8)
    mask = np.array([[True, False], [False, True]])
    found = outside_dimmed(image, mask)
    assert np.array_equal(found[:4, :4], image[:4, :4])
    outside = found[:4, 4:]
    assert (outside == outside[..., :1]).all()
    np.testing.assert_allclose(outside[..., 0], image[:4, 4:].mean(-1) / 4, atol=0.51)


def test_panel_sheet__shows_each_panel_in_its_row_and_keeps_the_margin() -> None:
    rows = [
        Row([Panel("one", an_image(16, 32)), Panel("two", an_image(32, 32, 1))], 64),
        Row([Panel("a label that is far too long for its panel", an_image(32, 8, 2))], 32),
    ]
    sheet = np.asarray(panel_sheet("title " * 50, ["detail " * 50, "b"], rows, Bar(GREYS, "least", "most")))
    scaled = [(panel.pixels, row.side // 32) for row in rows for panel in row.panels]
    one, two, three = (_find(sheet, pixels.repeat(scale, 0).repeat(scale, 1)) for pixels, scale in scaled)
    assert one[0] == two[0] < three[0]
    assert one[1] == three[1] < two[1]
    margin = 24
    for edge in (sheet[:margin], sheet[-margin + 10 :], sheet[:, :margin], sheet[:, -margin:]):
        assert (edge == 255).all()
    _find(sheet, GREYS[None].repeat(10, axis=0))


def _find(sheet: Pixels, pixels: Pixels) -> tuple[int, int]:
    """Top and left of pixels on a sheet."""
    height, width = pixels.shape[:2]
    for top, left in np.argwhere((sheet == pixels[0, 0]).all(-1)).tolist():
        if np.array_equal(sheet[top : top + height, left : left + width], pixels):
            return top, left
    raise AssertionError("not on the sheet")
