from __future__ import annotations

from pathlib import Path

import pytest

from dinowds.data.dataset import Dataset
from dinowds.errors import ConfigError
from dinowds.eval.labelled import Task, match_labels
from tests.eval.support import make_labelled


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    slides = {"q0": "gland", "q1": "stroma", "q2": "fat", "q3": None}
    return Dataset.open(make_labelled(tmp_path_factory.mktemp("query") / "query", slides))


def names_of(task: Task) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Of query and test, the slide of each sample and the name of its class."""
    pairs = []
    for part in (task.query, task.test):
        keys = [sample.key.split("/")[0] for sample in part.dataset.samples(part.ids)]
        pairs.append([(key, task.names[c]) for key, c in zip(keys, part.classes.tolist(), strict=True)])
    return pairs[0], pairs[1]


def test_match_labels__by_name_and_not_by_number(query: Dataset, tmp_path: Path) -> None:
    """In the test dataset stroma is number 1, as gland is in the other."""
    test = Dataset.open(make_labelled(tmp_path / "test", {"t0": "stroma", "t1": "fat"}))
    assert query.manifest.label_names.index("gland") == test.manifest.label_names.index("stroma")
    task, notices = match_labels(query, test)
    assert task.names == ("fat", "gland", "stroma")
    of_query, of_test = names_of(task)
    assert sorted(of_query) == [("q0", "gland")] * 6 + [("q1", "stroma")] * 6 + [("q2", "fat")] * 6
    assert sorted(of_test) == [("t0", "stroma")] * 6 + [("t1", "fat")] * 6
    assert notices == ["tune.knn.query_dataset_path: 6 of 24 samples have no label and are left out"]


def test_match_labels__what_no_query_sample_is_of_is_left_out_and_told(query: Dataset, tmp_path: Path) -> None:
    slides = {"t0": "stroma", "t1": "fat", "t2": "nerve", "t3": "bone"}
    task, notices = match_labels(query, Dataset.open(make_labelled(tmp_path / "test", slides)))
    assert {slide for slide, _ in names_of(task)[1]} == {"t0", "t1"}
    assert notices[1] == (
        "tune.knn.test_dataset_path: 12 samples are left out: no sample of tune.knn.query_dataset_path has their "
        "labels 'bone', 'nerve'"
    )


def test_match_labels__needs_labels_and_two_common_ones(query: Dataset, tmp_path: Path) -> None:
    plain = Dataset.open(make_labelled(tmp_path / "plain", {"t0": None}))
    with pytest.raises(ConfigError, match=r"query_dataset_path: no sample of .*plain/dataset has a label; make it"):
        match_labels(plain, query)
    with pytest.raises(ConfigError, match=r"test_dataset_path: no sample of .*plain/dataset has a label; make it"):
        match_labels(query, plain)
    other = Dataset.open(make_labelled(tmp_path / "other", {"t0": "fat", "t1": "bone"}))
    with pytest.raises(ConfigError, match=r"other/dataset has the labels 'bone', 'fat', .* at least two in common"):
        match_labels(query, other)
