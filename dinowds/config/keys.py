"""Configurations as nested and as dotted keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinowds.config.sections import CONFIGS, Kind, RunConfig

FREE_TO_CHANGE = frozenset(
    {
        "train.max_batch_per_device",
        "train.keep_checkpoints",
        "train.log_every",
        "train.save_every",
        "train.save_every_steps",
        "train.max_bad_steps",
        "train.compile",
        "optim.max_steps",
        "data.cache_dir",
        "data.cache_gib",
        "data.max_bad_samples",
        "data.read_ahead",
        "data.verify_digests",
        "speed.num_workers",
        "speed.prefetch_factor",
        "speed.checkpoint_activations",
        "speed.sharding",
    }
)
"""Keys that may differ when a run goes on: they decide how it is computed, not what. So may those of `_WATCHING`."""
_WATCHING = ("monitor.", "tune.", "wandb.", "mlflow.")

FREE_FORM = frozenset({"data.weights"})  # whose keys are names of the user's own


def with_crops_key(content: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """With a key of the section `crops` named otherwise: Python has no field called 'global'."""
    crops = content.get("crops")
    if not isinstance(crops, dict) or old not in crops:
        return content
    return {**content, "crops": {new if key == old else key: value for key, value in crops.items()}}


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in FREE_FORM:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} → {'a': {'b': 1}}."""
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return content


def with_empty_sections(content: dict[str, Any], known: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A section of a file whose keys are all commented out is empty, not null."""
    filled = dict(content)
    for key, value in content.items():
        place = f"{prefix}{key}."
        if any(name.startswith(place) for name in known) and (value is None or isinstance(value, dict)):
            filled[key] = with_empty_sections(value or {}, known, place)
    return filled


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dict, with the names of the keys in YAML."""
    return with_crops_key(dataclasses.asdict(config), "global_", "global")


def to_yaml(config: RunConfig) -> str:
    """Resolved configuration, every key."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def kind_of(saved: dict[str, Any]) -> Kind:
    """The kind of a saved configuration."""
    student = saved.get("student")
    return "region" if isinstance(student, dict) and "input_dim" in student else "image"


def differences(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """`key: saved → asked for`, for keys that decide what a run computes (those of `FREE_TO_CHANGE` do not).

    A key that the saved configuration lacks, since it is older than the key, had what is the default now.
    """
    new = flatten(to_dict(config))
    old = flatten(to_dict(CONFIGS[config.kind]())) | flatten(saved)
    free = FREE_TO_CHANGE | {key for key in new if key.startswith(_WATCHING)}
    # What these compute is of the samples that go through the device together
    if config.student.use_bn_in_head or config.loss.koleo_weight > 0:
        free -= {"train.max_batch_per_device"}
    keys = sorted((old.keys() | new.keys()) - free)
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
