"""Few groups out of many."""

from __future__ import annotations

import numpy as np

from dinowds.report.dataset.groups import main_groups


def test_main_groups__largest_in_order_and_the_rest() -> None:
    codes = np.array([0, 1, 1, 2, 2, 2, 4, 4, 4, 4, -1])
    found = main_groups(codes, list("abcde"), 3)
    assert found.names == ["c", "e", "3 others"]
    assert found.codes.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 2]
    assert main_groups(codes, list("abcde")).names == ["a", "b", "c", "e", "none"]
