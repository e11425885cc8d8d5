"""Confidence intervals of figures of a classification, by drawing its test samples again (Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.eval import scores

LEVEL = 0.95
_BLOCK_VALUES = 1 << 20
"""Weights that are held at once: 4 MiB, which stay in a core's cache; larger blocks take up to twice as long."""


class Interval(NamedTuple):
    """A figure, and the bounds of its interval; NaN where there are none."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


def clusters_of(slides: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Patches of a slide are alike, so slides are what is drawn, and what is held out together.

    Args:
        slides: [M], as `Dataset.slides_of`; 0 where the slide is unknown: such a sample is a cluster of its own.

    Returns:
        [M], 0 … S − 1.
    """
    clusters = np.unique(slides, return_inverse=True)[1].astype(np.int64)
    unknown = np.flatnonzero(slides == 0)
    clusters[unknown] = len(slides) + np.arange(len(unknown))
    return np.unique(clusters, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Draws:
    """How test samples are drawn again: clusters with replacement, with all of their samples."""

    clusters: NDArray[np.int64]
    """[M]: that each sample is of, 0 … S − 1, as `clusters_of` gives them."""
    count: int
    """Of draws."""
    seed: int = 0

    @property
    def num_clusters(self) -> int:
        """S."""
        return int(self.clusters.max()) + 1

    def weights(self, device: torch.device) -> Iterator[Tensor]:
        """How often each draw has each sample: float32 [M, draws], some draws at a time."""
        generator = np.random.default_rng(self.seed)
        num_clusters = self.num_clusters
        clusters = torch.from_numpy(self.clusters).to(device)
        each = max(1, _BLOCK_VALUES // len(self.clusters))
        for first in range(0, self.count, each):
            rows = min(each, self.count - first)
            drawn = (
                generator.integers(num_clusters, size=(rows, num_clusters)) + num_clusters * np.arange(rows)[:, None]
            )
            counts = np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters)
            yield torch.from_numpy(np.ascontiguousarray(counts.T, np.float32)).to(device)[clusters]


def intervals(runs: Sequence[Tensor], labels: Tensor, draws: Draws) -> dict[str, Interval]:
    """`scores.figures` with the percentile interval of `LEVEL` of each.

    Args:
        runs: scores of one or more seeds, float [M, C]. A value is the mean over them; each draw is of one in turn.
        labels: int64 [M].

    A draw in which a figure is not defined does not count. There is no interval without draws, or of one cluster.
    """
    each = [scores.figures(run, labels) for run in runs]
    values = {name: sum(figures[name] for figures in each) / len(each) for name in each[0]}
    if not draws.count or draws.num_clusters < 2:
        return {name: Interval(value, math.nan, math.nan) for name, value in values.items()}
    drawn = _drawn(runs, labels, draws)
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    bounds = torch.nanquantile(drawn, tails, dim=0).T.tolist()
    return {name: Interval(value, *bound) for (name, value), bound in zip(values.items(), bounds, strict=True)}


def _drawn(runs: Sequence[Tensor], labels: Tensor, draws: Draws) -> Tensor:
    """float64 [draws, 3], in the order of `scores.figures`; on the CPU."""
    weighted = [WeightedFigures(run, labels) for run in runs]
    parts, first = [], 0
    for weights in draws.weights(labels.device):
        part = weights.new_empty(weights.shape[1], 3, dtype=torch.float64)
        for number, figures in enumerate(weighted):
            own = slice((number - first) % len(weighted), None, len(weighted))
            part[own] = figures(weights[:, own])
        parts.append(part.cpu())
        first += len(part)
    return torch.cat(parts)


class WeightedFigures:
    """`scores.figures` of samples with weights, for many weights at once."""

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        """`scores`: float [M, C]. `labels`: int64 [M]."""
        num_classes = scores.shape[1]
        of_class = torch.nn.functional.one_hot(labels, num_classes).bool()
        self._of_class = of_class.float()
        self._is_right = self._of_class * (scores.argmax(1) == labels)[:, None]
        shown = [1] if num_classes == 2 else torch.unique(labels).tolist()
        self._ranked = [_Ranked(scores[:, c], of_class[:, c]) for c in shown]

    def __call__(self, weights: Tensor) -> Tensor:
        """float32 [M, W] → float64 [W, 3]: accuracy, balanced accuracy, AUROC; NaN where one is not defined."""
        counts = (weights.T @ self._of_class).double()
        right = (weights.T @ self._is_right).double()
        accuracy = right.sum(1) / counts.sum(1)
        balanced = (right / counts).nanmean(1)
        areas = torch.stack([ranked.areas(weights) for ranked in self._ranked], dim=1).nanmean(1)
        return torch.stack([accuracy, balanced, areas], dim=1)


class _Ranked:
    """Samples in the order of their scores for one class."""

    def __init__(self, scores: Tensor, is_positive: Tensor) -> None:
        values, self._order = scores.sort()
        self._is_positive = is_positive[self._order, None].float()
        # Of each sample, the places where those of its score begin and end.
        _, group, counts = torch.unique_consecutive(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum(0)
        self._ends, self._begins = ends[group], (ends - counts)[group]

    def areas(self, weights: Tensor) -> Tensor:
        """float32 [M, W] → float64 [W]: pairs of a positive with a negative below it, those of equal scores half.

        Weights are small whole numbers, whose sums are exact in float32.
        """
        ordered = weights[self._order]
        positives = ordered * self._is_positive
        below = torch.nn.functional.pad((ordered - positives).cumsum(0), (0, 0, 1, 0))
        pairs = (positives * (below[self._begins] + below[self._ends])).sum(0, dtype=torch.float64) / 2
        return pairs / (positives.sum(0, dtype=torch.float64) * below[-1])
