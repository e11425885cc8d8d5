"""Nearest neighbours of features of a dataset of the demo's photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinowds.data.dataset import Dataset
from dinowds.data.store.store import LocalStore
from dinowds.demo.photos import photo_names, photo_of
from dinowds.embed.features import backbone_features
from dinowds.eval.baselines import flat_pixels
from dinowds.eval.knn import knn_accuracy

Embed = Callable[[Tensor], Tensor]
"""Samples [N, …] → features [N, D]."""


@dataclass(frozen=True)
class Labelled:
    """Images, uint8 [N, S, S, 3], or regions, float16 [N, n, n, C]; and int64 [N]."""

    samples: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """Tell the photograph of a test sample by its nearest neighbours among the training samples."""

    train: Labelled
    test: Labelled

    def accuracy(self, embed: Embed) -> float:
        """k = 20, T = 0.07; 0 to 1."""
        return knn_accuracy(embed(self.train.samples), self.train.labels, embed(self.test.samples), self.test.labels)

    def accuracy_of(self, backbone: nn.Module) -> float:
        """Of the class token."""
        return self.accuracy(lambda samples: backbone_features(backbone, samples))


def load_labelled(folder: Path, decode: Callable[[bytes], np.ndarray]) -> Labelled:
    """All samples of a dataset; the label is the place of its photograph."""
    dataset, names = Dataset.open(folder), photo_names()
    store = LocalStore(dataset)
    slides = dataset.columns(["slide"])["slide"].to_pylist()
    samples = np.stack([decode(store.read(dataset[i])) for i in range(len(dataset))])
    return Labelled(torch.from_numpy(samples), torch.tensor([names.index(photo_of(slide)) for slide in slides]))


def raw_pixels(images: Tensor) -> Tensor:
    """Grey values about their middle, uint8 [N, S, S, 3] → float32 [N, S²]."""
    return flat_pixels(images[..., :1].permute(0, 3, 1, 2).float() - 128, images.shape[1])
