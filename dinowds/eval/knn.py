"""Weighted nearest neighbours, the usual first test of self-supervised features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1024


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Label of each test feature: the most votes of its k nearest by cosine, each weighted exp(cosine / T).

    (Wu et al. 2018, §3.4; k and T as in Caron et al. 2021.)

    Args:
        train_features: float [N, D].
        train_labels: int64 [N], 0 … C − 1.
        test_features: float [M, D].
        k: neighbours; all N where there are fewer.

    Returns:
        int64 [M].
    """
    reference, num_classes = F.normalize(train_features, dim=1), int(train_labels.max()) + 1
    predictions = []
    for block in torch.split(F.normalize(test_features, dim=1), _BLOCK):
        similarity, neighbours = (block @ reference.T).topk(min(k, len(reference)), dim=1)
        votes = similarity.new_zeros(len(block), num_classes).scatter_add_(
            1, train_labels[neighbours], (similarity / temperature).exp()
        )
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test features that `knn_predict` labels right, 0 to 1."""
    predicted = knn_predict(train_features, train_labels, test_features, k, temperature)
    return float((predicted == test_labels).float().mean())
