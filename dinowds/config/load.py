"""From a YAML file and overrides to a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, overload

from dinowds.config.earlier import suggestion
from dinowds.config.keys import FREE_FORM, flatten, to_dict, with_crops_key, with_empty_sections
from dinowds.config.plain import ODD_VALUES, check_plain, parse_plain
from dinowds.config.reference import Translation, is_reference, translate
from dinowds.config.rules import check_config
from dinowds.config.sections import CONFIGS, Kind, PatchConfig, RegionConfig, RunConfig
from dinowds.errors import ConfigError


@dataclass(frozen=True)
class LoadedRun:
    """A configuration, and what a YAML of the reference says beside it."""

    config: RunConfig
    data: str | None = None
    """The dataset: a folder, a URL, or a name such as 'Pathology:root=/data'."""
    out: str | None = None
    """The run folder."""
    notices: tuple[str, ...] = ()
    """Lines that whoever starts the run should read."""


@overload
def load_config(
    path: Path | None = ..., overrides: Sequence[str] = ..., kind: Literal["image"] = ...
) -> PatchConfig: ...
@overload
def load_config(path: Path | None, overrides: Sequence[str], kind: Literal["region"]) -> RegionConfig: ...
@overload
def load_config(path: Path | None, overrides: Sequence[str], kind: Kind) -> RunConfig: ...
def load_config(path: Path | None = None, overrides: Sequence[str] = (), kind: Kind = "image") -> RunConfig:
    """`load_run` of one process, without what the file says beside it."""
    return load_run(path, overrides, kind).config


def load_run(
    path: Path | None = None, overrides: Sequence[str] = (), kind: Kind = "image", num_ranks: int = 1
) -> LoadedRun:
    """Defaults of a kind ← YAML file ← `key=value` overrides, checked. The file may be one of the reference.

    Args:
        num_ranks: processes that will train together; a file of the reference says what each of them takes of a batch.

    Raises:
        ConfigError: a file that is not YAML, an unknown key (the nearest is named), or a value of the wrong kind.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(CONFIGS[kind])
    theirs: Translation | None = None
    for source, content in [(str(path), _read_yaml(path))] if path else []:
        theirs = translate(content, kind, source, num_ranks) if is_reference(content) else None
        merged = _merge(merged, kind, theirs.content if theirs else content, source)
    given: set[str] = set()
    for override in overrides:
        content = _parse_override(override)
        merged = _merge(merged, kind, content, f"override {override!r}")
        given |= flatten(content).keys()
    try:
        config = cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path or 'overrides'}: {_first_line(error)}") from None
    check_config(config)
    if theirs is None:
        return LoadedRun(config)
    return LoadedRun(config, theirs.data, theirs.out, tuple(_notices(str(path), theirs, given)))


def _notices(source: str, theirs: Translation, given: set[str]) -> Iterator[str]:
    became = ", ".join(f"{key} is {what}" for key, what in theirs.became.items() if key not in given)
    yield f"{source}: is of the reference system" + (f"; here {became}" if became else "")
    if theirs.unused:
        yield f"{source}: not used: {', '.join(theirs.unused)}"


def _parse_override(override: str) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, like optim.lr=1e-4")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError, *ODD_VALUES) as error:
        raise ConfigError(f"override {override!r}: {_first_line(error)}") from None
    check_plain(content, f"override {override!r}")
    return content


def default_config_path(name: str) -> Path:
    """A configuration that ships with dinowds: `patch`, `region`, `patch_vit_large`, …"""
    return Path(str(files("dinowds.configs") / f"{name}.yaml"))


def _merge(merged: Any, kind: Kind, content: Any, source: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected sections such as 'train:' and 'optim:', found {type(content).__name__}")
    known = flatten(to_dict(CONFIGS[kind]()))
    content = with_empty_sections(content, known)
    for key in flatten(content):
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{suggestion(key, kind, known)}")
    content, nulls = _without_nulls(content, source)
    try:
        for key in nulls:
            OmegaConf.update(merged, key, {}, merge=False)
        return OmegaConf.merge(merged, OmegaConf.create(with_crops_key(content, "global", "global_")))
    except OmegaConfBaseException as error:
        key = (getattr(error, "full_key", None) or "").replace("crops.global_", "crops.global")
        default = known.get(key)
        what = f"expected a list, such as {default}" if isinstance(default, list) else _first_line(error)
        raise ConfigError(f"{source}: {key}: {what}") from None


def _without_nulls(content: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """`content` without the free-form keys that are null or have all their lines commented out, and these keys."""
    nulls = []
    for key in sorted(FREE_FORM):
        section, _, name = key.partition(".")
        inner = content.get(section, {})
        if name not in inner:
            continue
        pairs = inner[name]
        if pairs is None:
            nulls.append(key)
            content = {**content, section: {other: value for other, value in inner.items() if other != name}}
        elif not isinstance(pairs, dict) or any(isinstance(value, dict | list) for value in pairs.values()):
            raise ConfigError(
                f"{source}: {key}: expected COHORT: WEIGHT pairs, such as '{key}={{alpha: 2, beta: 1}}', found {pairs}"
            )
    return content, nulls


def _read_yaml(path: Path) -> Any:
    try:
        content = parse_plain(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error.strerror or error})") from None
    return {} if content is None else content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
