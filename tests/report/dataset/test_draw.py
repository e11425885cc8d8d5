"""Random samples that are spread evenly over groups."""

from __future__ import annotations

import numpy as np
import pytest

from dinowds.report.dataset.draw import draw_evenly, even_shares


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([5, 5], 4, [2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([1, 9, 9], 10, [1, 5, 4]),
        ([3, 2], 99, [3, 2]),
        ([4, 0, 4], 3, [2, 0, 1]),
        ([7, 7, 7], 2, [1, 1, 0]),
        ([], 5, []),
        ([3], 0, [0]),
    ],
)
def test_even_shares(counts: list[int], total: int, expected: list[int]) -> None:
    assert even_shares(np.array(counts, np.int64), total).tolist() == expected


def test_draw__even_seeded_and_anywhere_in_a_group() -> None:
    groups = np.array([0] * 900 + [1] * 90 + [2] * 10)
    places = draw_evenly(groups, 100, seed=1)
    assert np.bincount(groups[places]).tolist() == [45, 45, 10]
    assert np.array_equal(places, np.unique(places))
    assert np.array_equal(places, draw_evenly(groups, 100, seed=1))
    other = draw_evenly(groups, 100, seed=2)
    assert not np.array_equal(places, other)
    firsts = places[groups[places] == 0]
    assert firsts.min() < 200
    assert firsts.max() > 700
    assert draw_evenly(np.zeros(0, np.int64), 5, 0).tolist() == []
