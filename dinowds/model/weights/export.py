"""Writing weights for other systems. What is written has been loaded back by its consumer's own call."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save
from torch import Tensor

from dinowds.errors import CheckpointError, ConfigError, OutputError
from dinowds.files import (
    TEMPORARY_SUFFIX,
    atomic_write,
    fsync_folder,
    output_errors,
    remove_abandoned,
    temporary_path,
    try_lock,
    write_atomic,
)
from dinowds.model.pixels import Channels
from dinowds.model.weights.card import how_to_load, model_card, note_on_positions, timm_call, timm_config
from dinowds.model.weights.check import check_export
from dinowds.model.weights.content import NOTES, read_content
from dinowds.model.weights.facts import cohort_facts, write_notes
from dinowds.model.weights.fold import fold_layer_scale, fold_normalization
from dinowds.model.weights.layout import to_timm, with_position_in_class_token
from dinowds.model.weights.timm_folder import CONFIG_NAME, WEIGHTS_NAME
from dinowds.model.weights.weights import Weights

To = Literal["timm", "dino", "hipt"]
CARD_NAME = "README.md"
_KINDS = {"timm": "image", "dino": "image", "hipt": "region"}
_OLD_SUFFIX = ".old"
_OWN_FILES = {CONFIG_NAME, WEIGHTS_NAME, CARD_NAME}


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: str
    to: To
    weights: Weights
    """As written: with another normalisation, if one was folded."""
    difference: float
    """The largest between the consumer's features and ours, as a share of the largest feature."""
    calls: list[str]
    """That load it."""
    note: str
    """What its consumer does otherwise; '' where nothing."""


def export_weights(
    weights: Weights,
    out: Path | str,
    to: To,
    *,
    normalization: tuple[Channels, Channels] | None = None,
    with_head: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write `weights` for another system, and check them there, in a process of its own, before they appear.

    Args:
        out: `timm`: a folder; `dino`, `hipt`: a file.
        to: `timm`: `model.safetensors`, `config.json` and a model card, as on the Hugging Face Hub. `dino`: the
            backbone's state dict as the original DINO names it, or {"teacher": backbone.*, head.*} with its head.
            `hipt`: {"teacher": backbone.*} of a region model, as HIPT's loader expects.
            LayerScale is folded into the weights for `dino` and `hipt`.
        normalization: mean and std that the consumer forces; folded into the weights.
        overwrite: replace what `out` is, where it is an export.

    Raises:
        ConfigError: `to` is not for this kind of model or knows no registers, or there is no head to write.
        OutputError: `out` exists, cannot be written, or its consumer gets other features; then `out` is as it was.
    """
    out = Path(out)
    _check_fits(weights, to, with_head)
    _clear(out)
    _check_free(out, to, overwrite)
    written = fold_normalization(weights, *normalization) if normalization else weights
    written = _for_consumer(written, to)
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        difference = (
            _write_timm(weights, written, out) if to == "timm" else _write_torch(weights, written, out, with_head)
        )
    calls = how_to_load(written, to, str(out), with_head)
    return Export(str(out), to, written, difference, calls, note_on_positions(written.architecture, to))


def with_mpp(weights: Weights, mpp: float) -> Weights:
    """The same, with the resolution of its images on record, in µm per px.

    Raises:
        ConfigError: it is not above 0, or the file says another, of all images or of a cohort.
    """
    if not 0 < mpp < float("inf"):
        raise ConfigError(f"mpp is {mpp}, expected µm per px, above 0")
    said = {"its images": weights.about, **cohort_facts(weights.about)}
    for whose, facts in said.items():
        found = facts.get("mpp")  # counts of several, where a cohort has them
        if isinstance(found, int | float) and found != mpp:
            raise ConfigError(f"{weights.path}: says mpp {found} of {whose}, not {mpp}")
    return replace(weights, about={**weights.about, "mpp": mpp})


def _check_fits(weights: Weights, to: To, with_head: bool) -> None:
    kind, registers = weights.architecture.kind, weights.architecture.registers
    if to not in _KINDS:
        raise ConfigError(f"to is {to!r}, expected one of {', '.join(_KINDS)}")
    if kind != _KINDS[to]:
        fitting = ", ".join(name for name, expected in _KINDS.items() if expected == kind)
        raise ConfigError(f"{weights.path}: a model of {kind}s cannot be written for {to}; take one of {fitting}")
    if registers and to != "timm":
        fitting = "timm" if kind == "image" else "the run itself, with dinowds.model.weights.load_backbone"
        raise ConfigError(
            f"{weights.path}: has {registers} register tokens, which {to} knows nothing of; take {fitting}"
        )
    if with_head and to != "dino":
        raise ConfigError(f"with_head: {to} has no place for a head; only dino has")
    if with_head and weights.head is None:
        raise ConfigError(f"{weights.path}: has no head to write")


def _for_consumer(weights: Weights, to: To) -> Weights:
    """What reads the same here as it does there."""
    if to == "timm":
        return replace(weights, backbone=with_position_in_class_token(weights.backbone))
    return fold_layer_scale(weights) if weights.architecture.layer_scale else weights


def _check_free(out: Path, to: To, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out}: exists; give another place, or --overwrite")
    if out.is_dir() != (to == "timm"):
        raise OutputError(f"{out}: is a {'folder' if out.is_dir() else 'file'}, expected the other; remove it first")
    if out.is_dir():
        if foreign := {path.name for path in out.iterdir()} - _OWN_FILES:
            raise OutputError(f"{out}: holds {min(foreign)}, which no export does; give another place")
    elif not _is_export(out):
        raise OutputError(f"{out}: is not an export of dinowds; give another place, or remove it first")


def _is_export(file: Path) -> bool:
    try:
        return bool(read_content(file).notes)
    except CheckpointError:
        return False


def _write_torch(original: Weights, written: Weights, out: Path, with_head: bool) -> float:
    content = _region_content(written) if written.architecture.kind == "region" else _image_content(written, with_head)
    # Inside the file, where a copy cannot lose it; a further key would not be a weight's. torch.load brings it back.
    setattr(content, NOTES, write_notes(written))
    with atomic_write(out) as file:
        torch.save(content, file)
        file.flush()
        return check_export(Path(file.name), original, written, None)


def _image_content(weights: Weights, with_head: bool) -> OrderedDict[str, Any]:
    if not with_head:
        return OrderedDict(weights.backbone)
    head = {f"head.{name}": value for name, value in cast(dict[str, Tensor], weights.head).items()}
    return OrderedDict(teacher={**_wrapped(weights), **head})


def _region_content(weights: Weights) -> OrderedDict[str, Any]:
    return OrderedDict(teacher=_wrapped(weights))


def _wrapped(weights: Weights) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in weights.backbone.items()}


def _write_timm(original: Weights, written: Weights, out: Path) -> float:
    metadata = {"format": "pt", NOTES: json.dumps(write_notes(written))}
    with _new_folder(out) as folder:
        write_atomic(folder / WEIGHTS_NAME, save(to_timm(written.backbone), metadata))
        write_atomic(folder / CONFIG_NAME, json.dumps(timm_config(written), indent=2).encode())
        write_atomic(folder / CARD_NAME, model_card(written).encode())
        return check_export(folder, original, written, timm_call(written.architecture))


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place on success, and is removed on failure.

    A folder that is there already is moved away first and comes back if the new one cannot take its place: there may
    be none for an instant, but never a mixture.
    """
    out = out.resolve()  # of a link, and `.`
    new = temporary_path(out)
    old = _moved_away(new)
    new.mkdir()
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(descriptor)  # for as long as it is open: see `_clear`
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _moved_away(new: Path) -> Path:
    """What is to be replaced by the folder `new`, while that takes its place."""
    return new.with_name(new.name.removesuffix(TEMPORARY_SUFFIX) + _OLD_SUFFIX)


def _clear(out: Path) -> None:
    """Remove what killed runs left beside `out`; one that was killed while it replaced `out` has it back."""
    out = out.resolve()

    def remove(new: Path) -> None:
        old = _moved_away(new)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new) if new.is_dir() else new.unlink()

    remove_abandoned(out, remove)
    for old in out.parent.glob(f".{glob.escape(out.name)}.*{_OLD_SUFFIX}"):
        if not old.with_name(old.name.removesuffix(_OLD_SUFFIX) + TEMPORARY_SUFFIX).exists() and out.exists():
            shutil.rmtree(old, ignore_errors=True)
