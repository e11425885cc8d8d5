"""The weights that a run begins with, where `student.init_from` names some."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dinowds.config import RunConfig
from dinowds.errors import CheckpointError, ConfigError
from dinowds.model.architecture import Architecture, describe_architecture
from dinowds.model.dino import DinoModel, architecture_of
from dinowds.model.pixels import Channels
from dinowds.model.positions import resample_positions
from dinowds.model.weights import Weights, read_weights

_KEYS = {
    "embed_dim": "student.arch or student.embed_dim",
    "depth": "student.arch or student.depth",
    "num_heads": "student.arch",
    "in_dim": "student.input_dim",
    "patch_size": "student.patch_size",
    "registers": "student.registers",
    "layer_scale": "student.layer_scale",
}
"""What both must have alike → the keys that decide it."""


def begin_from(
    model: DinoModel,
    config: RunConfig,
    mean: Channels | None,
    std: Channels | None,
    message: Callable[[str], None],
) -> None:
    """Load the teacher's weights of `student.init_from` into `model`, in place, and say what was taken.

    Positions are resampled if they are of another grid. The head is taken if it has the shape of the model's.

    Args:
        mean: that images are normalised with, as `std`; None for regions.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: they are of another kind or architecture.
    """
    assert config.student.init_from is not None
    try:
        weights = read_weights(config.student.init_from)
    except OSError as error:
        raise CheckpointError(f"student.init_from: {config.student.init_from}: {error.strerror or error}") from None
    ours = architecture_of(config)
    _check(weights, ours)
    model.backbone.load_state_dict(_fitted(weights, ours))
    takes_head = _head_fits(weights, model)
    if takes_head and weights.head is not None:
        model.head.load_state_dict(weights.head)
        if config.student.norm_last_layer:
            torch.nn.init.ones_(model.head.last_layer.weight_g)
    for text in (_taken(weights, ours, takes_head), *_notes(weights, ours, mean, std)):
        message(text)


def _check(weights: Weights, ours: Architecture) -> None:
    theirs = weights.architecture
    if theirs.kind != ours.kind:
        raise ConfigError(
            f"student.init_from: {weights.path} is a model of {theirs.kind}s, this run needs one of {ours.kind}s"
        )
    found, expected = describe_architecture(theirs), describe_architecture(ours)
    for name, keys in _KEYS.items():
        if found[name] != expected[name]:
            raise ConfigError(
                f"student.init_from: {weights.path} has {name} {found[name]}, this run {expected[name]}; set {keys}"
            )


def _fitted(weights: Weights, ours: Architecture) -> dict[str, torch.Tensor]:
    """The backbone's weights, with positions for our grid."""
    positions = resample_positions(weights.backbone["pos_embed"], ours.grid, ours.grid, ours.pos_interpolation)
    return {**weights.backbone, "pos_embed": positions}


def _head_fits(weights: Weights, model: DinoModel) -> bool:
    def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in state.items()}

    return weights.head is not None and shapes(weights.head) == shapes(model.head.state_dict())


def _taken(weights: Weights, ours: Architecture, takes_head: bool) -> str:
    head = "with its head" if takes_head else "with a new head, for it has none of this shape"
    text = f"beginning from {weights.path} ({weights.family}, {weights.which}), {head}"
    if weights.architecture.grid != ours.grid:
        before, after = (f"{of.grid} × {of.grid}" for of in (weights.architecture, ours))
        text += f"; positions resampled from {before} to {after} ({ours.pos_interpolation})"
    return text


def _notes(weights: Weights, ours: Architecture, mean: Channels | None, std: Channels | None) -> list[str]:
    """What is not as it was where the weights were trained."""
    notes = []
    if weights.architecture.pos_interpolation != ours.pos_interpolation:
        notes.append(
            f"note: {weights.path} interpolates positions as '{weights.architecture.pos_interpolation}', this run as "
            f"'{ours.pos_interpolation}' (student.pos_interpolation)"
        )
    if mean is not None and (weights.mean, weights.std) != (mean, std):
        notes.append(
            f"note: {weights.path} was trained with mean {list(weights.mean)} and std {list(weights.std)}, this run "
            f"normalises images with {list(mean)} and {list(std or ())}"
        )
    return notes
