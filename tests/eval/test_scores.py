"""Figures against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinowds.eval.scores import accuracy, auroc, balanced_accuracy


def pairs_area(scores: list[float], is_positive: list[bool]) -> float:
    """Over all pairs of a positive and a negative."""
    positives = [score for score, positive in zip(scores, is_positive, strict=True) if positive]
    negatives = [score for score, positive in zip(scores, is_positive, strict=True) if not positive]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def some_scores(num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shares of ten votes, many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    votes = torch.randint(0, num_classes, (57, 10), generator=generator)
    return torch.nn.functional.one_hot(votes, num_classes).float().mean(1), votes[:, 0]


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_auroc__equals_loops_over_pairs(num_classes: int) -> None:
    scores, labels = some_scores(num_classes, num_classes)
    classes = [1] if num_classes == 2 else range(num_classes)
    areas = [pairs_area(scores[:, c].tolist(), (labels == c).tolist()) for c in classes]
    assert auroc(scores, labels) == pytest.approx(sum(areas) / len(areas), abs=1e-12)


def test_auroc__of_known_scores() -> None:
    positive = torch.tensor([0.1, 0.4, 0.35, 0.8])
    assert auroc(torch.stack([1 - positive, positive], 1), torch.tensor([0, 0, 1, 1])) == 0.75  # as scikit-learn
    assert auroc(torch.full((4, 2), 0.5), torch.tensor([0, 0, 1, 1])) == 0.5


def test_auroc__classes_without_samples_do_not_count() -> None:
    scores, labels = some_scores(4, 0)
    kept = labels != 2
    areas = [pairs_area(scores[kept, c].tolist(), (labels[kept] == c).tolist()) for c in (0, 1, 3)]
    assert auroc(scores[kept], labels[kept]) == pytest.approx(sum(areas) / 3, abs=1e-12)
    assert math.isnan(auroc(scores[labels == 1], labels[labels == 1]))


def test_balanced_accuracy__is_the_mean_over_the_classes_there_are() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 0, 3, 3, 5]), torch.tensor([0, 0, 0, 1, 3, 0, 6])
    assert balanced_accuracy(predicted, labels) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert accuracy(predicted, labels) == pytest.approx(4 / 7)
