"""What a file says of itself besides its tensors. All of it is checked: it comes from others."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, cast

from dinowds.errors import CheckpointError
from dinowds.model.architecture import POS_INTERPOLATIONS, Architecture, describe_architecture
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels
from dinowds.model.weights.weights import FAMILIES, MODELS, Weights, Which


@dataclass(frozen=True)
class Facts:
    """What names and shapes do not tell; None where the file does not either."""

    family: str
    which: Which | None = None
    num_heads: int | None = None
    pos_interpolation: str | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    about: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)


def read_notes(path: str, notes: dict[str, Any]) -> Facts:
    """What `write_notes` wrote, or what a run wrote as `about` into its checkpoint, which is of the family `dinowds`.

    Raises:
        CheckpointError: a value cannot be.
    """
    try:
        notes = json.loads(json.dumps(notes))
    except (TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: what it says of itself is more than JSON values") from None
    said, about = notes.get("architecture"), notes.get("dataset", {})
    if not isinstance(said, dict) or not isinstance(about, dict):
        raise CheckpointError(f"{path}: what it says of its architecture or dataset is not an object")
    family, which = notes.get("family", "dinowds"), notes.get("which")
    num_heads, interpolation = said.get("num_heads"), said.get("pos_interpolation")
    if (
        family not in FAMILIES
        or which not in (*MODELS, None)
        or type(num_heads) is not int
        or num_heads < 1
        or interpolation not in POS_INTERPOLATIONS
    ):
        found = f"family {family!r}, which {which!r}, num_heads {num_heads!r}, pos_interpolation {interpolation!r}"
        raise CheckpointError(f"{path}: says {found[:200]}, which cannot be")
    mean, std = notes.get("mean"), notes.get("std")
    return Facts(
        family,
        which,
        num_heads,
        cast(str, interpolation),
        IMAGENET_MEAN if mean is None else read_channels(path, "mean", mean),
        IMAGENET_STD if std is None else read_channels(path, "std", std),
        about,
        said,
    )


def write_notes(weights: Weights) -> dict[str, Any]:
    """In plain JSON values."""
    of_images = weights.architecture.kind == "image"
    return {
        "family": weights.family,
        "which": weights.which,
        "architecture": describe_architecture(weights.architecture),
        "mean": list(weights.mean) if of_images else None,
        "std": list(weights.std) if of_images else None,
        "dataset": weights.about,
    }


def cohort_facts(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What tilers said of the images of each cohort, such as `mpp` and `tile_size`; {} of one that is silent."""
    said = _dict_in(_dict_in(about, "metadata"), "cohorts")
    return {name: _dict_in(said, name) for name in _dict_in(about, "cohorts")}


def _dict_in(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def check_said(path: str, said: dict[str, Any], architecture: Architecture) -> None:
    """Raises CheckpointError where a file says something else of its architecture than its tensors do."""
    for name, found in describe_architecture(architecture).items():
        if name != "pos_interpolation" and said.get(name, found) != found:
            raise CheckpointError(f"{path}: says {name} {str(said[name])[:80]}, its tensors say {found}")


def read_channels(path: str, name: str, value: Any) -> Channels:
    """`mean` or `std`. Raises CheckpointError for what is not three finite numbers, those of `std` above 0."""
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise CheckpointError(f"{path}: {name} is {str(value)[:80]}, expected three numbers")
    if name == "std" and min(numbers) <= 0:
        raise CheckpointError(f"{path}: std is {list(numbers)}, expected numbers above 0")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
