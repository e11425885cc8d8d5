"""kNN against loops."""

from __future__ import annotations

import math

import pytest
import torch

from dinowds.eval import knn
from dinowds.eval.knn import knn_accuracy, knn_predict, knn_shares, shares_by_k


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_knn__equals_loops(k: int) -> None:
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
        expected.append([vote / sum(votes) for vote in votes])
    torch.testing.assert_close(knn_shares(train, labels, test, 4, k), torch.tensor(expected))
    assert knn_predict(train, labels, test, k).tolist() == torch.tensor(expected).argmax(1).tolist()


def test_knn_shares__in_blocks_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    train, test, labels = torch.randn(100, 8), torch.randn(40, 8), torch.randint(0, 3, (100,))
    expected = knn_shares(train, labels, test, 3, k=9)
    monkeypatch.setattr(knn, "BLOCK", 16)
    monkeypatch.setattr(knn, "_REFERENCE_BLOCK", 7)  # fewer than k
    torch.testing.assert_close(knn_shares(train, labels, test, 3, k=9), expected)


def test_knn_shares__all_votes_for_one_class_are_equal_scores() -> None:
    torch.manual_seed(0)
    train = torch.cat([torch.randn(50, 4) * 0.3 + 5, torch.randn(50, 4) * 0.3 - 5])
    labels = torch.arange(2).repeat_interleave(50)
    shares = knn_shares(train, labels, train, 2, k=13)
    assert set(shares.flatten().tolist()) == {0.0, 1.0}


def test_knn_shares__of_a_small_temperature_are_finite() -> None:
    torch.manual_seed(0)
    shares = knn_shares(torch.randn(30, 4), torch.arange(30) % 3, torch.randn(9, 4), 3, temperature=1e-4)
    torch.testing.assert_close(shares.sum(1), torch.ones(9))


def test_knn_accuracy__of_itself_and_of_noise() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(400, 16), torch.randint(0, 4, (400,))
    assert knn_accuracy(features, labels, features, labels, k=1) == 1.0
    assert knn_accuracy(features, labels, torch.randn(2000, 16), torch.randint(0, 4, (2000,))) == pytest.approx(
        0.25, abs=0.05
    )


def test_shares_by_k__are_those_of_each_k() -> None:
    torch.manual_seed(0)
    train, test, labels, ks = torch.randn(40, 8), torch.randn(15, 8), torch.randint(0, 3, (40,)), [20, 1, 100]
    for k, found in zip(ks, shares_by_k(train, labels, test, 3, ks, 0.1), strict=True):
        torch.testing.assert_close(found, knn_shares(train, labels, test, 3, k, 0.1))
