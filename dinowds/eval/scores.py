"""Figures of a classification. Pure functions of labels and scores."""

from __future__ import annotations

import torch
from torch import Tensor


def figures(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`accuracy`, `balanced_accuracy` and `auroc`. The class with the highest score is the predicted one.

    Args:
        scores: float [M, C].
        labels: int64 [M], 0 … C − 1.
    """
    predicted = scores.argmax(1)
    return {
        "accuracy": accuracy(predicted, labels),
        "balanced_accuracy": balanced_accuracy(predicted, labels),
        "auroc": auroc(scores, labels),
    }


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 [C, C]: how often samples of the row's class are predicted to be of the column's."""
    return (labels * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of int64 [M] that is predicted right, 0 to 1."""
    return float((predicted == labels).double().mean())


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes among `labels` of the share of each that is predicted right, 0 to 1.

    Args:
        predicted: int64 [M], 0 … C − 1.
        labels: int64 [M], 0 … C − 1; classes that are not among them do not count.
    """
    counts = labels.bincount()
    right = labels[predicted == labels].bincount(minlength=len(counts))
    return float((right[counts > 0] / counts[counts > 0].double()).mean())


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve, 0 to 1: how often a sample of a class has a higher score for it than one of another
    class, where equal scores count half (Mann and Whitney 1947).

    Of two classes it is that of the second, the positive one; of more, the mean over those among `labels` (macro,
    one-vs-rest). NaN where all samples are of one class.

    Args:
        scores: float [M, C].
        labels: int64 [M], 0 … C − 1.
    """
    num_classes = scores.shape[1]
    areas = [_area(scores[:, c], labels == c) for c in ([1] if num_classes == 2 else range(num_classes))]
    return float(torch.stack(areas).nanmean())


def _area(scores: Tensor, is_positive: Tensor) -> Tensor:
    """0-d float64; NaN without positives or without negatives."""
    _, group, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the mean of the ranks that they take.
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0).double()[group]
    positives = is_positive.sum().double()
    negatives = len(scores) - positives
    area: Tensor = (ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return area
