"""Histograms, boxes, and the share of variance between groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dinowds.report.dataset.spread import MOST_BINS, box_of, boxes_of, log_histogram, share_between


def test_box__quantiles_of_what_is_known() -> None:
    values = np.append(np.arange(101.0), np.nan)
    box = box_of(values)
    assert box is not None
    assert dataclasses.astuple(box) == pytest.approx((101, 5, 25, 50, 75, 95))
    first, none, last = boxes_of(np.array([3.0, np.nan, 1.0, 8.0]), np.array([2, 1, 0, 2]), 3)
    assert first is not None
    assert none is None
    assert last is not None
    assert (first.median, last.median) == (1, 5.5)


@pytest.mark.parametrize(
    "values", [[1], [7, 7, 7], [1, 2, 3, 1000, 10**9], list(range(1, 4000)), [9_000, 23_000] * 500, [0, 1, 2]]
)
def test_log_histogram__counts_all_between_the_least_and_the_largest(values: list[int]) -> None:
    array = np.array(values)
    groups = np.arange(len(array)) % 2
    found = log_histogram(array, groups, 2)
    assert found.counts.sum(axis=1).tolist() == np.bincount(groups, minlength=2).tolist()
    assert len(found.edges) == found.counts.shape[1] + 1
    assert 1 <= found.counts.shape[1] <= MOST_BINS
    assert found.edges[0] <= max(1, array.min())
    assert array.max() < found.edges[-1]
    ratios = found.edges[1:] / found.edges[:-1]
    assert ratios == pytest.approx(ratios[0])
    for place in range(found.counts.shape[1]):
        inside = (np.maximum(array, 1) >= found.edges[place]) & (np.maximum(array, 1) < found.edges[place + 1])
        assert found.counts[:, place].sum() == inside.sum()


def test_share_between__none_all_and_half() -> None:
    random = np.random.default_rng(0)
    groups = np.arange(4000) % 4
    noise = random.normal(0, 1, 4000)
    shares = [share_between(noise + shift * groups, groups) for shift in (0, 100, np.sqrt(1 / 1.25))]
    assert shares == pytest.approx([0, 1, 0.5], abs=0.02)
    few = [share_between(random.normal(0, 1, 12), np.arange(12) % 6) for _ in range(300)]
    assert np.mean([share for share in few if share is not None]) < 0.2  # its square root's cousin would say 0.45
    missing = np.where(np.arange(4000) % 8 == 0, np.nan, noise + 100 * groups)
    assert share_between(missing, groups) == pytest.approx(1, abs=0.02)
    assert share_between(np.ones(8), np.arange(8) % 2) is None
    assert share_between(noise, np.zeros(4000, int)) is None
    assert share_between(np.arange(3.0), np.arange(3)) is None
