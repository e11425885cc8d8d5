"""Weighted nearest neighbours, the usual first test of self-supervised features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dinowds.eval import scores

BLOCK = 256
"""Test features that are compared at once."""
_REFERENCE_BLOCK = 1 << 16  # with as many training features: 64 MiB of cosines


def knn_shares(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """What share of its neighbours' votes each class gets: those of the k nearest by cosine, weighted exp(cosine / T).

    (Wu et al. 2018, §3.4; k and T as in Caron et al. 2021.)

    Args:
        train_features: float [N, D].
        train_labels: int64 [N], 0 … C − 1.
        test_features: float [M, D].
        num_classes: C.
        k: neighbours; all N where there are fewer.

    Returns:
        float32 [M, C]; rows sum to 1. Each block of `BLOCK` rows is computed by itself.
    """
    return shares_by_k(train_features, train_labels, test_features, num_classes, [k], temperature)[0]


def shares_by_k(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Tensor:
    """`knn_shares` of several k, whose neighbours are looked up once: float32 [K, M, C]."""
    reference = F.normalize(train_features, dim=1)
    shares = test_features.new_empty(len(ks), len(test_features), num_classes, dtype=torch.float32)
    blocks = torch.split(F.normalize(test_features, dim=1), BLOCK)
    for rows, block in zip(torch.split(shares, BLOCK, dim=1), blocks, strict=True):
        cosines, neighbours = _nearest(block, reference, max(ks))
        classes = train_labels[neighbours]
        for row, k in zip(rows, ks, strict=True):
            # In float64, so that all votes for one class are exactly 1 as float32, whatever their number: equal scores.
            weights = (cosines[:, :k].double() / temperature).softmax(dim=1)
            row.copy_(weights.new_zeros(row.shape).scatter_add_(1, classes[:, :k], weights))
    return shares


def _nearest(block: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[B, D], [N, D] → cosines [B, k] and rows of `reference`, int64 [B, k]."""
    cosines, neighbours = block.new_empty(len(block), 0), block.new_empty(len(block), 0, dtype=torch.int64)
    for number, part in enumerate(torch.split(reference, _REFERENCE_BLOCK)):
        found, places = (block @ part.T).topk(min(k, len(part)), dim=1)
        cosines = torch.cat([cosines, found], dim=1)
        neighbours = torch.cat([neighbours, places + number * _REFERENCE_BLOCK], dim=1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]), dim=1)
        neighbours = neighbours.gather(1, order)
    return cosines, neighbours


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """int64 [M]: the class with the largest share of votes; as `knn_shares`."""
    num_classes = int(train_labels.max()) + 1
    return knn_shares(train_features, train_labels, test_features, num_classes, k, temperature).argmax(1)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test features that `knn_predict` labels right, 0 to 1."""
    return scores.accuracy(knn_predict(train_features, train_labels, test_features, k, temperature), test_labels)
