"""Stain jitter: what factors and shifts of haematoxylin, eosin and DAB do to colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from skimage.color import hed2rgb, rgb2hed

from dinowds.crops.stain import STAINS, concentrations, optical_density, stain_maps, stained

Floats = npt.NDArray[np.float64]
TISSUE = np.ascontiguousarray(skimage.data.immunohistochemistry()[100:180, 200:300])


def stain_map(factors: list[float], shifts: list[float]) -> npt.NDArray[np.float32]:
    return stain_maps(np.array(factors), np.array(shifts)).astype(np.float32)


def in_stains(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Amount of each stain, by least squares on optical density: uint8 [..., 3] → [n, 3]."""
    density = -np.log(np.maximum(pixels.reshape(-1, 3), 1) / 255)
    return np.asarray(np.linalg.lstsq(STAINS.T, density.T, rcond=None)[0].T)


def of_stains(amounts: Floats) -> Floats:
    """Amounts of stains [n, 3] → colours [n, 3], not rounded."""
    return np.asarray(np.clip(255 * np.exp(-amounts @ STAINS), 0, 255))


def test_stained__factor_1_and_shift_0_change_nothing() -> None:
    grey_levels = np.stack(np.meshgrid(*[np.arange(1, 256, 2, dtype=np.uint8)] * 3), axis=-1)
    neutral = stain_map([1, 1, 1], [0, 0, 0])
    assert np.array_equal(stained(grey_levels, neutral), grey_levels)
    assert np.array_equal(stained(TISSUE, neutral), TISSUE)
    assert stained(np.zeros((1, 3), np.uint8), neutral).tolist() == [
        [1, 1, 1]
    ]  # density is that of 1: no logarithm of 0


def test_stained__one_unit_of_a_stain_twice() -> None:
    """255 · exp(−2 · (0.65, 0.70, 0.29)): the haematoxylin of Ruifrok and Johnston."""
    once = np.rint(255 * np.exp(-np.array([[0.65, 0.70, 0.29]]))).astype(np.uint8)
    assert once.tolist() == [[133, 127, 191]]
    twice = stained(once, stain_map([2, 1, 1], [0, 0, 0]))
    assert np.abs(twice.astype(int) - [[69, 63, 143]]).max() <= 1
    other = stained(once, stain_map([1, 2, 2], [0, 0, 0]))
    assert np.abs(other.astype(int) - once).max() <= 1


def test_stained__shift_adds_stain_to_white() -> None:
    white = np.full((1, 3), 255, np.uint8)
    for stain in range(3):
        shifts = [0.0, 0.0, 0.0]
        shifts[stain] = 0.5
        expected = np.rint(255 * np.exp(-0.5 * STAINS[stain]))
        assert stained(white, stain_map([1, 1, 1], shifts)).tolist() == [expected.tolist()]
    assert stained(white, stain_map([1, 1, 1], [-1, -1, -1])).tolist() == [[255, 255, 255]]
    assert stained(white, stain_map([1, 1, 1], [-1e4, -1e4, -1e4])).tolist() == [[255, 255, 255]]
    assert stained(white, stain_map([1, 1, 1], [1e4, 1e4, 1e4])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_stained__is_unmixing_changing_and_mixing(seed: int) -> None:
    random = np.random.default_rng(seed)
    factors, shifts = random.uniform(0.8, 1.2, 3), random.uniform(-0.2, 0.2, 3)
    for pixels in (TISSUE, random.integers(0, 256, (50, 3), np.uint8)):
        found = stained(pixels, stain_maps(factors, shifts).astype(np.float32))
        assert found.shape == pixels.shape
        assert found.dtype == np.uint8
        expected = of_stains(in_stains(pixels) * factors + shifts)
        assert np.abs(found.reshape(-1, 3) - expected).max() <= 0.5 + 1e-3


def test_stained__as_scikit_image_separates_stains() -> None:
    """Which allows no negative amount of a stain, and has the same three."""
    amounts = np.random.default_rng(0).uniform(0.05, 0.7, (40, 50, 3))
    pixels = np.rint(of_stains(amounts)).astype(np.uint8)
    factors = np.array([1.15, 0.9, 1.1])
    found = stained(pixels, stain_maps(factors, np.zeros(3)).astype(np.float32))
    expected = 255 * hed2rgb(rgb2hed(pixels) * factors)
    assert np.abs(found - expected).max() < 0.51
    assert np.abs(found.astype(int) - pixels).mean() > 2


def test_stain_maps__of_many_are_those_of_each() -> None:
    random = np.random.default_rng(0)
    factors, shifts = random.uniform(0.8, 1.2, (4, 5, 3)), random.uniform(-0.2, 0.2, (4, 5, 3))
    maps = stain_maps(factors, shifts)
    assert maps.shape == (4, 5, 3, 4)
    np.testing.assert_allclose(maps[2, 3], stain_maps(factors[2, 3], shifts[2, 3]), rtol=1e-12)


def test_optical_density__of_every_grey_level() -> None:
    density = optical_density()
    assert density.shape == (256,)
    assert density.dtype == np.float32
    assert density[0] == density[1] == pytest.approx(np.log(255))
    assert density[255] == 0
    np.testing.assert_allclose(255 * np.exp(-density[1:]), np.arange(1, 256), rtol=1e-5)


def test_concentrations__one_and_two_units_of_each_stain() -> None:
    for stain in range(3):
        for amount in (1.0, 2.0):
            pixel = 255 * np.exp(-amount * STAINS[stain])
            found = concentrations(np.rint(pixel).astype(np.uint8)[None])[0]
            assert found == pytest.approx(amount * np.eye(3)[stain], abs=0.06)
    assert concentrations(np.full((1, 3), 255, np.uint8))[0] == pytest.approx([0, 0, 0])


def test_concentrations__order_pixels_as_scikit_image() -> None:
    tissue = np.ascontiguousarray(skimage.data.immunohistochemistry()[:64, :64])
    ours, theirs = concentrations(tissue).reshape(-1, 3), rgb2hed(tissue).reshape(-1, 3)
    for stain in (0, 2):  # of eosin there is none, which scikit-image cuts to 0
        assert np.corrcoef(ours[:, stain], theirs[:, stain])[0, 1] > 0.95
