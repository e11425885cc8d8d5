from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

from dinowds.eval import bootstrap, scores
from dinowds.eval.bootstrap import Draws, Interval, WeightedFigures, clusters_of, intervals


def scores_of(num: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shares with many ties, somewhat right, and labels; of three or more classes the last is not among them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(2, num_classes - 1), (num,), generator=generator)
    shares = (torch.rand(num, num_classes, generator=generator) * 8).round()
    shares[torch.arange(num), labels] += 2
    return shares / shares.sum(1, keepdim=True), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_figures__are_those_of_scikit_learn(num_classes: int) -> None:
    shares, labels = scores_of(200, num_classes)
    found, predicted, present = scores.figures(shares, labels), shares.argmax(1), torch.unique(labels).tolist()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(predicted == labels)[labels == c].double().mean() for c in present])
    )
    areas = [roc_auc_score(labels == c, shares[:, c]) for c in ([1] if num_classes == 2 else present)]
    assert found["auroc"] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_weighted_figures__are_those_of_samples_drawn_as_often(num_classes: int) -> None:
    shares, labels = scores_of(60, num_classes)
    weights = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (5, 60))).float()
    for row, figures in zip(weights, WeightedFigures(shares, labels)(weights.T).tolist(), strict=True):
        repeated = torch.arange(60).repeat_interleave(row.long())
        expected = scores.figures(shares[repeated], labels[repeated])
        assert figures == pytest.approx(list(expected.values()))


def test_weighted_figures__follow_scikit_learn_s_sample_weights() -> None:
    shares, labels = scores_of(80, 2)
    weights = torch.rand(1, 80, generator=torch.Generator().manual_seed(1))
    ((accuracy, balanced, area),) = WeightedFigures(shares, labels)(weights.T).tolist()
    options = {"sample_weight": weights[0].numpy()}
    assert accuracy == pytest.approx(accuracy_score(labels, shares.argmax(1), **options))
    assert balanced == pytest.approx(balanced_accuracy_score(labels, shares.argmax(1), **options))
    assert area == pytest.approx(roc_auc_score(labels, shares[:, 1], **options), rel=1e-5)


def test_weighted_figures__what_a_draw_has_no_samples_for_is_not_defined() -> None:
    shares, labels = scores_of(10, 2)
    (row,) = WeightedFigures(shares, labels)((labels == 0).float()[:, None]).tolist()
    assert row[0] == row[1]
    assert math.isnan(row[2])


def test_clusters_of__unknown_slides_are_their_own() -> None:
    clusters = clusters_of(np.array([9, 0, 5, 9, 0, 5, 7], np.uint64))
    assert clusters[0] == clusters[3]
    assert clusters[2] == clusters[5]
    assert sorted(set(clusters.tolist())) == list(range(5))


@pytest.mark.parametrize("values", [1 << 20, 40])
def test_draws__take_whole_clusters_as_many_as_there_are(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    clusters = np.array([0, 1, 0, 2, 1, 0, 3])
    draws = Draws(clusters, 50, seed=3)
    expected = torch.cat(list(draws.weights(torch.device("cpu"))), dim=1).T
    assert expected.shape == (50, 7)
    for row in expected:
        assert all(len(set(row[clusters == c].tolist())) == 1 for c in range(4))
        assert sum(row[clusters == c][0] for c in range(4)) == 4
    monkeypatch.setattr(bootstrap, "_BLOCK_VALUES", values)
    torch.testing.assert_close(torch.cat(list(draws.weights(torch.device("cpu"))), dim=1).T, expected)


def test_intervals__cover_as_the_normal_approximation_says() -> None:
    """Of 400 independent samples; and wider where 20 slides have 20 samples each that are all right or all wrong."""
    labels = torch.arange(400) % 2
    is_right = (torch.arange(400) // 20) % 4 > 0
    shares = torch.nn.functional.one_hot(torch.where(is_right, labels, 1 - labels), 2).float()
    by_sample = intervals([shares], labels, Draws(np.arange(400), 2000))["accuracy"]
    by_slide = intervals([shares], labels, Draws(np.arange(400) // 20, 2000))["accuracy"]
    assert by_sample.value == by_slide.value == 0.75
    for interval, count in ((by_sample, 400), (by_slide, 20)):
        width = 2 * 1.96 * math.sqrt(0.75 * 0.25 / count)
        assert interval.high - interval.low == pytest.approx(width, rel=0.15)


def test_intervals__of_several_seeds_are_about_their_mean() -> None:
    """Two seeds, of which one is always right: draws are of each in turn."""
    labels = torch.arange(100) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    found = intervals([right, 1 - right], labels, Draws(np.arange(100), 200))["accuracy"]
    assert found == Interval(0.5, 0.0, 1.0)


def test_intervals__none_of_one_slide_or_without_draws() -> None:
    shares, labels = scores_of(20, 2)
    for draws in (Draws(np.zeros(20, np.int64), 100), Draws(np.arange(20), 0)):
        found = intervals([shares], labels, draws)["auroc"]
        assert found.value == scores.auroc(shares, labels)
        assert found.to_json() == {"value": found.value, "low": None, "high": None}
