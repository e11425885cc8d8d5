from __future__ import annotations

from pathlib import Path

import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.eval.labelled import Labelled, match_labels
from dinowds.eval.overlap import Overlap, find_overlap
from tests.eval.support import make_labelled

SLIDES = {"a": "fat", "b": "gland", "c": "fat", "d": "gland"}


def labelled_of(dataset: Dataset) -> Labelled:
    return match_labels(dataset, dataset)[0].test


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return labelled_of(Dataset.open(make_labelled(tmp_path_factory.mktemp("test") / "test", SLIDES)))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Other images of two of the slides, in a cohort of another name."""
    folder = tmp_path_factory.mktemp("other") / "other"
    return Dataset.open(make_labelled(folder, {"x": None, "d": None, "b": None}, seed=777))


def test_find_overlap__of_slides_by_name_whatever_the_cohort(labelled: Labelled, other: Dataset) -> None:
    found = find_overlap(labelled, other)
    assert found == Overlap(["b", "d"], 4, [], 24, False)
    assert found.describe() == "2 of its 4 slides ('b', 'd')"


def test_find_overlap__with_the_selected_samples_alone(labelled: Labelled, other: Dataset) -> None:
    for name, where, slides in (("some", "slide != 'b'", ["d"]), ("none", "slide == 'x'", [])):
        subset, mask, _ = choose_subset(other, name, SubsetOptions(where=where))
        write_subset(other.url, subset, mask, other.files)
        assert find_overlap(labelled, Dataset.open(f"{other.url}:{name}")).slides == slides


def test_find_overlap__of_payloads_where_slides_are_unknown(labelled: Labelled, tmp_path: Path) -> None:
    """On either side. The seeds give slide a's images and those of a slide that is not among the labelled ones."""
    bare = Dataset.open(make_labelled(tmp_path / "bare", {"a": "fat", "e": "stroma"}, with_slides=False))
    found = find_overlap(labelled, bare)
    assert (found.slides, len(found.keys), found.num_samples) == ([], 6, 24)
    assert all(key.startswith("a/") for key in found.keys)
    assert found.describe().startswith("6 of its 24 samples ('a/")
    assert found.describe().endswith(" and 3 more)")
    turned = find_overlap(labelled_of(bare), labelled.dataset)
    assert (turned.slides, turned.num_slides, len(turned.keys), turned.num_samples) == ([], 0, 6, 12)


def test_find_overlap__nothing_is_no_words(labelled: Labelled, tmp_path: Path) -> None:
    strange = Dataset.open(make_labelled(tmp_path / "strange", {"e": None}, seed=99, with_slides=False))
    assert find_overlap(labelled, strange).describe() == ""
