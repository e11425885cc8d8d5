"""A YAML of the reference system, read as one of dinowds.

Its keys that mean the same here keep their names; the others are moved, or named as not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from dinowds.config.earlier import EARLIER_NAMES, OF_COMMANDS, suggestion
from dinowds.config.keys import flatten, to_dict, unflatten, with_empty_sections
from dinowds.config.sections import CONFIGS, Kind
from dinowds.errors import ConfigError

_PLACES = ("train.dataset_path", "train.output_dir")
_MARKS = (*_PLACES, "train.batch_size_per_gpu")
"""A file of the reference has some of these, since their defaults suit no one; a file of dinowds has none."""

_UNUSED = (
    "train.experiment_name",
    "tune.knn.num_workers",
    "tune.knn.save_features",
    "tune.knn.use_cuda",
    "optim.weight_decay",  # that of lr_scheduler is taken, there as here
    "hydra.run.dir",
)
_UNUSED_SECTIONS = ("wandb.", "hydra.")
_REASONS = OF_COMMANDS | {"wandb.key": "log in with 'wandb login', or set WANDB_API_KEY"}

_DEFAULTS: dict[Kind, dict[str, Any]] = {
    "image": {"train.batch_size_per_gpu": 128},
    "region": {
        "train.batch_size_per_gpu": 128,
        "student.region_size": 4096,
        "student.patch_size": 256,
        "crops.global_crops_scale": 0.875,
        "crops.local_crops_scale": 0.375,
    },
}
"""Of the reference, where what they come to is not the default here whatever else is said."""


class Translation(NamedTuple):
    """What a file of the reference says."""

    content: dict[str, Any]
    """Sections with the keys of dinowds."""
    data: str | None
    """The dataset: a folder, a URL, or a name such as 'Pathology:root=/data'."""
    out: str | None
    """The run folder."""
    became: dict[str, str]
    """Key of dinowds → its value and how that was found, where it is another than in the file."""
    unused: list[str]
    """Keys with a value that decides nothing here."""


def is_reference(content: Any) -> bool:
    """Whether a YAML file is one of the reference."""
    return isinstance(content, dict) and not flatten(content).keys().isdisjoint(_MARKS)


def translate(content: dict[str, Any], kind: Kind, source: str, num_ranks: int) -> Translation:
    """Read the content of a file of the reference. Keys of dinowds' own may stand beside its keys.

    Args:
        source: the file, for errors.
        num_ranks: processes that will train together: the reference says what each of them takes of a batch.

    Raises:
        ConfigError: an unknown key (the nearest is named), or a value that has no counterpart.
    """
    ours = flatten(to_dict(CONFIGS[kind]()))
    used = {*ours, *EARLIER_NAMES[kind], *_DEFAULTS[kind]}
    flat = _flatten_known(content, kind, ours, source)
    values = _resolve(content, [key for key in flat if key in (*used, *_PLACES)], source)
    data, out = (values.pop(key, None) for key in _PLACES)
    values = _without_tuning(_with_defaults(values, kind))
    taken = {key: value for key, value in values.items() if key in ours}
    became = _move(taken, values, kind, num_ranks, source)
    return Translation(
        unflatten(taken),
        None if data is None else str(data),
        None if out is None else str(out),
        became,
        [_with_reason(key) for key, value in flat.items() if key not in used and _says_something(key, value)],
    )


def _flatten_known(content: dict[str, Any], kind: Kind, ours: dict[str, Any], source: str) -> dict[str, Any]:
    """Dotted keys → values. Raises ConfigError for a key of neither system."""
    known = ours | dict.fromkeys((*EARLIER_NAMES[kind], *OF_COMMANDS, *_UNUSED, *_DEFAULTS[kind]))
    flat = flatten(with_empty_sections(content, known))
    for key in flat:
        if key not in known and not key.startswith(_UNUSED_SECTIONS):
            raise ConfigError(f"{source}: unknown key {key!r}{suggestion(key, kind, known)}")
    return flat


def _resolve(content: dict[str, Any], keys: Iterable[str], source: str) -> dict[str, Any]:
    """Values of some keys, with those that they refer to as ${section.key} put in; empty ones are left out."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    found = {}
    key = ""
    try:
        node = OmegaConf.create(content)
        for key in keys:
            value = OmegaConf.select(node, key)
            found[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {key}: {str(error).splitlines()[0]}") from None
    return {key: value for key, value in found.items() if value != ""}


def _with_defaults(values: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """With the reference's values for what is neither given nor given by its name here."""
    names = EARLIER_NAMES[kind]
    missing = {key: value for key, value in _DEFAULTS[kind].items() if values.get(names.get(key, key)) is None}
    return values | {key: value for key, value in missing.items() if values.get(key) is None}


def _without_tuning(values: dict[str, Any]) -> dict[str, Any]:
    """No evaluation where the reference's `tune_every` is left blank, whatever datasets stand there."""
    if values.get("tune.tune_every", 1) is not None:
        return values
    datasets = dict.fromkeys(("tune.knn.query_dataset_path", "tune.knn.test_dataset_path"))
    return values | {"tune.tune_every": 0} | datasets


def _move(taken: dict[str, Any], values: dict[str, Any], kind: Kind, num_ranks: int, source: str) -> dict[str, str]:
    """Put the values of earlier names into `taken`; what became of them where they are others."""
    became = {}
    for key, new in EARLIER_NAMES[kind].items():
        if values.get(key) is None:
            continue
        if new in taken:
            raise ConfigError(f"{source}: has both {key!r} and {new!r}, which is the same here; leave one of them out")
        taken[new], how = _moved(key, values, kind, num_ranks, source)
        if how:
            became[new] = f"{taken[new]} ({how})"
    if (per_gpu := values.get("train.batch_size_per_gpu")) is not None:
        taken.setdefault("train.max_batch_per_device", per_gpu)
    return became


def _moved(key: str, values: dict[str, Any], kind: Kind, num_ranks: int, source: str) -> tuple[Any, str]:
    """The value under a key's name here, and how it was found; '' where it is the same."""
    value = values[key]
    if key == "train.batch_size_per_gpu":
        _check_whole(key, value, source)
        return value * num_ranks, f"{value} for each of {num_ranks} processes" if num_ranks > 1 else "one process"
    if key == "speed.use_fp16":
        if not isinstance(value, bool):
            raise ConfigError(f"{source}: {key} is {value!r}, expected true or false")
        return ("auto", "bf16 where the device computes in it; fp16 if asked for") if value else ("fp32", "no fp16")
    if kind == "region" and key.endswith("_crops_scale"):
        return _cells(key, values, source)
    return value, ""


def _cells(key: str, values: dict[str, Any], source: str) -> tuple[int, str]:
    """A view's side in cells, of its share of the region's side."""
    region_size, patch_size, share = (values[name] for name in ("student.region_size", "student.patch_size", key))
    for name, value in (("student.region_size", region_size), ("student.patch_size", patch_size)):
        _check_whole(name, value, source)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"{source}: {key} is {share!r}, expected a share of the region's side, above 0 and at most 1")
    cells = region_size // patch_size
    return int(share * cells), f"{share:g} of {cells} cells"


def _check_whole(key: str, value: object, source: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{source}: {key} is {value!r}, expected a whole number, at least 1")


def _says_something(key: str, value: object) -> bool:
    """Not what is empty, taken in another way, or the same here in any case."""
    if key in (*_PLACES, "train.resume") or value in (None, "", [], {}):
        return False
    return not (key == "train.pct" and value == 1)


def _with_reason(key: str) -> str:
    return f"{key} ({_REASONS[key]})" if key in _REASONS else key
