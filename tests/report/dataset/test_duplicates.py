"""Samples whose payloads are the same."""

from __future__ import annotations

import numpy as np

from dinowds.report.dataset.columns import Columns
from dinowds.report.dataset.duplicates import find_groups


def _columns(digests: list[int], cohort: list[int], label: list[int], slide: list[int]) -> Columns:
    count = len(digests)
    digest = np.array([[d] * 16 for d in digests], np.uint8)
    codes = (np.array(cohort, np.int32), np.array(label, np.int32), np.array(slide, np.uint64))
    return Columns(10 * np.arange(count), *codes, np.ones(count, np.int64), digest)


def test_duplicates__groups_and_what_they_cross() -> None:
    columns = _columns(
        digests=[1, 2, 1, 3, 1, 3, 4, 4, 5, 5],
        cohort=[0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        label=[0, 0, -1, 1, 0, 2, -1, 1, 0, -1],
        slide=[7, 7, 8, 7, 7, 7, 7, 0, 3, 4],
    )
    found = find_groups(columns, 2)
    assert (found.copies, found.groups) == (5, 4)
    assert (found.across_cohorts, found.across_labels, found.across_slides) == (1, 1, 2)
    assert [ids.tolist() for ids in found.largest] == [[0, 20, 40], [30, 50]]
    none = find_groups(_columns([1, 2], [0, 0], [0, 0], [0, 0]), 2)
    assert (none.copies, none.groups, none.largest) == (0, 0, ())


def test_duplicates__are_as_many_as_a_table_finds() -> None:
    digests = np.random.default_rng(0).integers(0, 60, 200).tolist()
    counts = np.bincount(digests)
    found = find_groups(_columns(digests, [0] * 200, [0] * 200, [1] * 200), 1000)
    assert found.copies == 200 - np.count_nonzero(counts)
    assert sorted(map(len, found.largest), reverse=True) == [len(ids) for ids in found.largest]
    assert sorted(map(len, found.largest)) == sorted(counts[counts > 1].tolist())
