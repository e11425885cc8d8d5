"""Blank, blurred and double images, and the cap on slides."""

from __future__ import annotations

import numpy as np
import pytest

from dinowds.shard.choice.quality import find_duplicates, is_blank, is_blurred, over_cap

from .support import images

NAN = float("nan")


def test_blank__is_nearly_all_white_or_nearly_all_black() -> None:
    white = np.array([0.95, 0.94, 0.0, 0.5, NAN, NAN], np.float32)
    black = np.array([0.0, 0.05, 1.0, 0.5, NAN, 1.0], np.float32)
    assert is_blank(white, black).tolist() == [True, False, True, False, False, True]


def test_blurred__is_less_sharp_than_the_minimum() -> None:
    assert is_blurred(np.array([9.9, 10.0, 0.0, NAN]), 10.0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("half", [slice(0, 8), slice(8, 16), slice(0, 16), slice(0, 0)])
def test_duplicates__are_those_that_equal_an_earlier_one(half: slice) -> None:
    random = np.random.default_rng(0)
    digests = np.zeros((3000, 16), np.uint8)
    digests[:, half] = random.integers(0, 256, (1000, 16), dtype=np.uint8)[random.integers(0, 1000, 3000)][:, half]
    seen: set[bytes] = set()
    expected = []
    for digest in map(bytes, digests):
        expected.append(digest in seen)
        seen.add(digest)
    assert find_duplicates(digests).tolist() == expected
    assert find_duplicates(digests[:0]).tolist() == []


def test_duplicates__that_differ_in_one_half_are_none() -> None:
    digests = np.zeros((3, 16), np.uint8)
    digests[1, 15] = digests[2, 8] = 1
    assert not find_duplicates(digests).any()


def kept_by_slide(slides: list[str], cohorts: list[str], most: int, seed: int) -> dict[tuple[str, str], set[str]]:
    """The paths that are left of each cohort's slide; the k-th sample of a slide has the path slide/k."""
    paths = [f"{slide}/{slides[:i].count(slide)}" for i, slide in enumerate(slides)]
    over = over_cap(images(paths, [*slides], cohorts), most, seed)
    left: dict[tuple[str, str], set[str]] = {pair: set() for pair in zip(cohorts, slides, strict=True)}
    for path, slide, cohort, is_over in zip(paths, slides, cohorts, over.tolist(), strict=True):
        if not is_over:
            left[cohort, slide].add(path)
    return left


def test_cap__leaves_that_many_of_each_cohorts_slide() -> None:
    slides, cohorts = ["a"] * 30 + ["b"] * 3 + ["a"] * 9, ["A"] * 33 + ["B"] * 9
    left = kept_by_slide(slides, cohorts, 5, 0)
    assert {pair: len(paths) for pair, paths in left.items()} == {("A", "a"): 5, ("A", "b"): 3, ("B", "a"): 5}


def test_cap__draws_a_slide_alike_whatever_else_there_is() -> None:
    alone = kept_by_slide(["m"] * 30, ["A"] * 30, 5, 7)
    among = kept_by_slide(["a"] * 20 + ["m"] * 30 + ["z"] * 9, ["A"] * 59, 5, 7)
    assert among["A", "m"] == alone["A", "m"]
    assert kept_by_slide(["m"] * 30, ["A"] * 30, 5, 8) != alone
    assert {path[2:] for path in among["A", "a"]} != {path[2:] for path in among["A", "m"]}


def test_cap__is_fixed() -> None:
    # What a dataset takes must not change between versions.
    assert kept_by_slide(["m"] * 30, ["A"] * 30, 4, 2**70) == {("A", "m"): {"m/0", "m/21", "m/23", "m/7"}}


def test_cap__draws_each_sample_equally_often() -> None:
    counts = np.zeros(10)
    for seed in range(1500):
        counts += ~over_cap(images([f"s/{i}" for i in range(10)]), 3, seed)
    assert np.abs(counts - 450).max() < 90  # 5 standard deviations of a binomial distribution
