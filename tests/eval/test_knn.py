"""kNN against loops."""

from __future__ import annotations

import math

import pytest
import torch

from dinowds.eval.knn import knn_accuracy, knn_predict


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_knn_predict__equals_loops(k: int) -> None:
    torch.manual_seed(k)
    train, test, labels = torch.randn(60, 8), torch.randn(25, 8), torch.randint(0, 4, (60,))
    expected = []
    for row in test:
        cosines = [
            (float(torch.dot(row, t) / row.norm() / t.norm()), int(n)) for t, n in zip(train, labels, strict=True)
        ]
        cosines.sort(reverse=True)
        votes = [0.0] * 4
        for cosine, label in cosines[:k]:
            votes[label] += math.exp(cosine / 0.07)
        expected.append(votes.index(max(votes)))
    assert knn_predict(train, labels, test, k).tolist() == expected


def test_knn_accuracy__of_itself_and_of_noise() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(400, 16), torch.randint(0, 4, (400,))
    assert knn_accuracy(features, labels, features, labels, k=1) == 1.0
    assert knn_accuracy(features, labels, torch.randn(2000, 16), torch.randint(0, 4, (2000,))) == pytest.approx(
        0.25, abs=0.05
    )
