"""The run folder: whose it is, and what is in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dinowds.config import COMMANDS, RunConfig, differences, kind_of, load_config, to_yaml
from dinowds.config.plain import parse_plain
from dinowds.errors import ConfigError, OutputError
from dinowds.files import is_locked, lock_file, output_errors, read_regular, remove_temporaries, write_atomic
from dinowds.train.checkpoint import list_checkpoints

CONFIG_NAME = "config.yaml"
CHECKPOINTS_NAME = "checkpoints"
_LOCK_NAME = ".lock"
_LOOK_SECONDS = 0.2
"""Longer than `is_at_work` holds the lock, on a network file system too."""


def _check_foreign(folder: Path) -> None:
    """Refuse what is not a run's folder, before anything is written there."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for the run; give another --out")
    if folder.exists() and not (folder / CONFIG_NAME).exists() and any(folder.glob("[!.]*")):
        raise OutputError(f"{folder}: is not empty and not a run's folder; give another --out")


def _check_config(folder: Path, config: RunConfig) -> None:
    """Refuse to go on from checkpoints of another configuration."""
    if not list_checkpoints(folder / CHECKPOINTS_NAME):
        return
    saved = read_saved(folder / CONFIG_NAME)
    if (kind := kind_of(saved)) != config.kind:
        raise ConfigError(f"{folder}: is a run of 'dinowds train {COMMANDS[kind]}'; use that, or give another --out")
    if changed := differences(saved, config):
        raise ConfigError(
            f"{folder}: this run was started with other values ({'; '.join(changed)}); "
            "repeat them to go on with it, or give another --out"
        )


@contextmanager
def own_folder(folder: Path, config: RunConfig) -> Iterator[None]:
    """Create the folder, keep other runs out of it, and write its `config.yaml`. For rank 0.

    Raises:
        OutputError: it cannot be written, is not a run's, or another run is at work in it.
        ConfigError: it holds checkpoints of another configuration.
    """
    _check_foreign(folder)
    with ExitStack() as stack:
        try:
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                _lock(stack, folder / _LOCK_NAME)
        except BlockingIOError:
            raise OutputError(f"{folder}: another run is at work in it; wait for it, or give another --out") from None
        _check_config(folder, config)
        with output_errors(folder):
            remove_temporaries(folder)
            write_atomic(folder / CONFIG_NAME, to_yaml(config).encode())
        yield


def read_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`, as `config.yaml` says it.

    Raises:
        ConfigError: the folder is no run's, or its `config.yaml` cannot be read.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(
            f"{folder}: has no {CONFIG_NAME}, so it is no run's folder; give the --out of 'dinowds train'"
        )
    return load_config(path, (), kind_of(read_saved(path)))


def is_at_work(folder: Path) -> bool | None:
    """Whether a run is at work in `folder`, on any host; None where the file system cannot tell."""
    return is_locked(folder / _LOCK_NAME)


def _lock(stack: ExitStack, path: Path) -> None:
    """Once more after a moment, for somebody may just have looked (`is_at_work`)."""
    try:
        stack.enter_context(lock_file(path))
    except BlockingIOError:
        time.sleep(_LOOK_SECONDS)
        stack.enter_context(lock_file(path))


def read_saved(path: Path) -> dict[str, Any]:
    """A run's `config.yaml` as it is; {} of one that is no mapping. Raises ConfigError where it cannot be read."""
    try:
        content = parse_plain(read_regular(path), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    return content if isinstance(content, dict) else {}
