"""What is evaluated: the models of a checkpoint, and the baselines beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dinowds.data.dataset import Dataset
from dinowds.embed.encoder import PRECISIONS
from dinowds.errors import CheckpointError, ConfigError
from dinowds.eval.baselines import baselines
from dinowds.eval.extract import Inputs, Model
from dinowds.model.weights import Weights, load_backbone, read_weights
from dinowds.model.weights.weights import Which
from dinowds.remote.files import shown
from dinowds.train.devices import choose_device
from dinowds.train.kinds import cell_features
from dinowds.world import World


@dataclass(frozen=True)
class ModelOptions:
    """Which models, and how they compute."""

    checkpoint: str
    """As for `model.weights.read_weights`."""
    which: tuple[Which, ...] = ("teacher",)
    pos_interpolation: str | None = None
    """None: what the weights say."""
    image_size: int | None = None
    """Side that images get by `stream.fit`, px; None: the one that the weights' positions are made for."""
    precision: str = "auto"
    batch_size: int = 256
    workers: int | None = None
    """Loader processes; None: chosen by the cores."""
    max_bad: int = 100
    """Unreadable samples of a dataset at most."""


@dataclass(frozen=True)
class Subjects:
    """On one device, in evaluation mode. They all get the same samples."""

    weights: Weights
    """Of the first of `trained`."""
    trained: tuple[Which, ...]
    models: dict[str, Model]
    """By the names that they are shown by: first the trained ones."""
    inputs: Inputs
    device: torch.device
    options: ModelOptions

    @classmethod
    def open(cls, options: ModelOptions) -> Subjects:
        """Raises CheckpointError or ConfigError for what cannot be evaluated."""
        weights = [
            read_weights(options.checkpoint, which, pos_interpolation=options.pos_interpolation)
            for which in options.which
        ]
        if weights[0].step is None and len({one.fingerprint for one in weights}) < len(weights):
            raise CheckpointError(f"{options.checkpoint}: holds one model, not a teacher and a student; ask for one")
        first = weights[0]
        if options.precision not in PRECISIONS:
            raise ConfigError(f"precision is {options.precision!r}, expected one of {', '.join(PRECISIONS)}")
        _check_side(first, options)
        inputs = Inputs.of_weights(first, options.image_size, options.batch_size, options.precision, options.workers)
        device = choose_device(World())
        models: dict[str, Model] = {one.which: load_backbone(one).to(device) for one in weights}
        trained = tuple(one.which for one in weights)
        return cls(first, trained, models | baselines(first.architecture, inputs, device), inputs, device, options)

    def check(self, option: str, dataset: Dataset) -> None:
        """Raise ConfigError for a dataset, given by `option`, whose samples the models cannot take."""
        kind, architecture = dataset.manifest.kind, self.weights.architecture
        if kind != architecture.kind:
            raise ConfigError(
                f"{option}: {shown(dataset.url)} holds {kind}s, {self.weights.path} is a model of {architecture.kind}s"
            )
        if kind == "region" and (found := cell_features(dataset)) != architecture.in_dim:
            raise ConfigError(
                f"{option}: cells of {shown(dataset.url)} have {found} features, {self.weights.path} takes "
                f"{architecture.in_dim}"
            )


def _check_side(weights: Weights, options: ModelOptions) -> None:
    side, architecture = options.image_size, weights.architecture
    if side is None:
        return
    if architecture.kind == "region":
        raise ConfigError(f"--image-size is {side}, but {weights.path} is a model of regions, which are never resized")
    if side < 1 or side % architecture.patch_size:
        raise ConfigError(
            f"--image-size is {side}, expected a multiple of {architecture.patch_size}, the patch size of "
            f"{weights.path}"
        )
