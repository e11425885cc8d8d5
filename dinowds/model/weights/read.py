"""Reading weights of any family, strictly and by name."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dinowds.errors import CheckpointError, ConfigError
from dinowds.model.architecture import POS_INTERPOLATIONS, size_of
from dinowds.model.weights import shapes
from dinowds.model.weights.content import Content, read_content
from dinowds.model.weights.facts import Facts, check_said, read_notes
from dinowds.model.weights.layout import from_timm
from dinowds.model.weights.names import split_names
from dinowds.model.weights.timm_folder import CONFIG_NAME, TimmConfig, find_config, find_weights, read_config
from dinowds.model.weights.weights import MODELS, Weights, Which, fingerprint_of

_INTERPOLATION = {"dinowds": "timm", "dino": "dino", "hipt": "dino", "reference": "size", "timm": "timm"}
"""What each family does with `pos_embed` on another grid, where its file does not say."""
_FORMAT_VERSION = 1
_CHECKPOINT = re.compile(r"step-\d{8}\.pt")
_WRAPPED = ("state_dict", "model")


def read_weights(path: Path | str, which: Which = "teacher", *, pos_interpolation: str | None = None) -> Weights:
    """Weights of dinowds, the original DINO, HIPT, the reference and timm; see docs/weights.md.

    Args:
        path: a run's folder (its newest checkpoint that is whole), a file of torch.save or safetensors, or a folder
            of timm (`config.json` beside `model.safetensors`).
        which: of files that hold both.
        pos_interpolation: instead of what the file says, or of its family's.

    Raises:
        CheckpointError: missing, damaged, not only data, or a tensor is missing, unexpected, of another shape or dtype.
        ConfigError: there is no such `which` or `pos_interpolation`.
        OSError: the file system failed.
    """
    if which not in MODELS:
        raise ConfigError(f"which is {which!r}, expected teacher or student")
    if pos_interpolation is not None and pos_interpolation not in POS_INTERPOLATIONS:
        expected = ", ".join(POS_INTERPOLATIONS)
        raise ConfigError(f"pos_interpolation is {pos_interpolation!r}, expected one of {expected}")
    file, content = _find_content(Path(path))
    config = read_config(found) if (found := find_config(file)) else None
    tensors = shapes.only_tensors(str(path), _choose_model(str(path), content, which))
    weights = _match(
        str(path), which, tensors, _find_facts(str(path), content, config, tensors), config, pos_interpolation
    )
    step = content.values.get("step")
    return replace(weights, step=step) if type(step) is int else weights


def _match(
    path: str,
    which: Which,
    tensors: dict[str, Tensor],
    facts: Facts,
    config: TimmConfig | None,
    pos_interpolation: str | None,
) -> Weights:
    if (which, facts.which) == ("student", "teacher"):
        raise CheckpointError(f"{path}: holds no student, only a teacher; ask for that")
    backbone, head = split_names(path, tensors)
    if config is not None:
        head = {name: value for name, value in head.items() if f"head.{name}" not in config.classifier}
    backbone = from_timm(backbone)
    found = shapes.shapes_in(backbone)
    interpolation = pos_interpolation or facts.pos_interpolation or _INTERPOLATION[facts.family]
    architecture = shapes.infer_architecture(path, found, facts.num_heads, interpolation)
    check_said(path, facts.architecture, architecture)
    shapes.check_backbone(path, found, architecture)
    if head:
        shapes.check_head(path, shapes.shapes_in(head), architecture.size.embed_dim)
    values = shapes.as_float32(path, backbone)
    return Weights(
        path=path,
        family=facts.family,
        which=facts.which or which,
        architecture=architecture,
        backbone=values,
        head=shapes.as_float32(path, head) if head else None,
        mean=facts.mean,
        std=facts.std,
        about=facts.about,
        fingerprint=fingerprint_of(values, architecture, facts.mean, facts.std),
    )


def _find_content(path: Path) -> tuple[Path, Content]:
    if not path.is_dir():
        return path, read_content(path)
    if weights := find_weights(path):
        return weights, read_content(weights)
    checkpoints = _list_checkpoints(path)
    for file in checkpoints:
        try:
            return file, read_content(file)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s; falling back to the one before", error)
    if checkpoints:
        raise CheckpointError(f"{path}: none of the {len(checkpoints)} checkpoints can be read")
    raise CheckpointError(
        f"{path}: neither a run's folder (checkpoints/step-*.pt) nor one of timm (config.json, model.safetensors)"
    )


def _list_checkpoints(folder: Path) -> list[Path]:
    """Of a run's folder, or of its folder `checkpoints`; newest first."""
    found = [*folder.glob("checkpoints/step-*.pt"), *folder.glob("step-*.pt")]
    return sorted((file for file in found if _CHECKPOINT.fullmatch(file.name)), key=lambda f: f.name, reverse=True)


def _choose_model(path: str, content: Content, which: Which) -> dict[str, Any]:
    """The state dict in a file: of a full checkpoint, of one that is wrapped, or the file itself."""
    values = content.values
    models: dict[str, dict[str, Any]] = {name: values[name] for name in MODELS if isinstance(values.get(name), dict)}
    if content.notes:  # an export: its one model is where loaders look, even if it is a student
        return models.get("teacher", values)
    for model in MODELS:  # safetensors do not nest
        inside = {name[len(model) + 1 :]: value for name, value in values.items() if str(name).startswith(f"{model}.")}
        if inside:
            models[model] = inside
    if which in models:
        return models[which]
    if models:
        raise CheckpointError(f"{path}: holds no {which}, only a {next(iter(models))}; ask for that")
    return next((values[name] for name in _WRAPPED if isinstance(values.get(name), dict)), values)


def _find_facts(path: str, content: Content, config: TimmConfig | None, tensors: dict[str, Tensor]) -> Facts:
    values = content.values
    if content.notes:
        facts = read_notes(path, content.notes)
        if config is not None and (config.mean, config.std) != (facts.mean, facts.std):
            raise CheckpointError(f"{path}: {CONFIG_NAME} says another mean or std than the file of weights")
        return facts
    if config is not None:
        return Facts("timm", num_heads=config.num_heads, mean=config.mean, std=config.std)
    if "format_version" not in values:
        return Facts(_guess_family(content, tensors))
    version = values["format_version"]
    if type(version) is not int or version != _FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {str(version)[:80]}, this dinowds reads {_FORMAT_VERSION}")
    about = values.get("about")
    return (
        read_notes(path, about)
        if isinstance(about, dict)
        else Facts("dinowds", num_heads=_heads_in_config(path, values))
    )


def _guess_family(content: Content, tensors: dict[str, Tensor]) -> str:
    """By its wrapping: the original keeps its `args` in a full checkpoint, the reference does not."""
    if all(key in content.values for key in (*MODELS, "optimizer")) and "args" not in content.values:
        return "reference"
    if any(name.endswith("phi.0.weight") for name in tensors):
        return "hipt"
    is_newer = any(name.endswith(("reg_token", ".ls1.gamma")) for name in tensors)  # than the original
    is_alone = not any("backbone." in name or "last_layer" in name for name in tensors)
    return "timm" if is_alone and (content.is_safetensors or is_newer) else "dino"


def _heads_in_config(path: str, values: dict[str, Any]) -> int:
    """Of a checkpoint of dinowds from before it said what it is: its configuration does."""
    try:
        student = values["config"]["student"]
        return size_of("image", student["arch"], student.get("embed_dim"), student.get("depth")).num_heads
    except (AttributeError, KeyError, TypeError, ConfigError):
        raise CheckpointError(f"{path}: its config does not say which student it has") from None
