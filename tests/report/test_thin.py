"""Thinning keeps what a curve looks like."""

from __future__ import annotations

import numpy as np
import pytest

from dinowds.report.thin import Thinner, thin


def _plain(x: np.ndarray, y: np.ndarray, limit: int) -> list[int]:
    """The same, point by point."""
    num_stretches = (limit - 2) // 2
    kept = {0, len(x) - 1}
    width = (x[-1] - x[0]) / num_stretches
    stretches: dict[int, list[int]] = {}
    for place, value in enumerate(x):
        stretches.setdefault(min(int((value - x[0]) / width), num_stretches - 1), []).append(place)
    for places in stretches.values():
        kept |= {min(places, key=lambda place: y[place]), max(places, key=lambda place: y[place])}
    return sorted(kept)


@pytest.mark.parametrize("length", [101, 1000, 4321])
@pytest.mark.parametrize("limit", [4, 10, 100])
@pytest.mark.parametrize("kind", ["noise", "steps", "constant"])
def test_thin__least_and_largest_of_each_stretch(length: int, limit: int, kind: str) -> None:
    random = np.random.default_rng(length)
    x = np.cumsum(random.integers(1, 10, length)).astype(float)
    y = {"noise": random.normal(size=length), "steps": np.round(x / 500), "constant": np.ones(length)}[kind]
    thin_x, thin_y = thin(x, y, limit)
    expected = _plain(x, y, limit)
    np.testing.assert_array_equal(thin_x, x[expected])
    np.testing.assert_array_equal(thin_y, y[expected])
    assert len(thin_x) <= limit


def test_thin__short_curves_stay() -> None:
    x = np.arange(5.0)
    assert thin(x, -x, 5)[1].tolist() == (-x).tolist()
    assert len(thin(np.empty(0), np.empty(0), 4)[0]) == 0


@pytest.mark.parametrize("piece", [1, 7, 1000, 60_000])
def test_thinner__pieces_are_as_the_whole(piece: int) -> None:
    x = np.arange(60_000 if piece > 1 else 3000).astype(float)
    y = np.sin(x / 900)
    y[1234], y[2345] = 50.0, -50.0
    thinner = Thinner(40)
    for first in range(0, len(x), piece):
        thinner.add(x[first : first + piece], y[first : first + piece])
    thin_x, thin_y = thinner.points()
    assert len(thin_x) <= 40
    assert {(1234.0, 50.0), (2345.0, -50.0)} <= set(zip(thin_x.tolist(), thin_y.tolist(), strict=True))
    assert (np.diff(thin_x) > 0).all()
    np.testing.assert_allclose(np.interp(x[::100], thin_x, thin_y).mean(), y.mean(), atol=2.5)


def test_thinner__points_out_of_order_are_sorted_in() -> None:
    thinner = Thinner(10)
    for first in (500, 0, 250):
        thinner.add(np.arange(first, first + 400.0), np.arange(400.0))
    thin_x, _ = thinner.points()
    assert len(thin_x) <= 10
    assert (np.diff(thin_x) >= 0).all()
