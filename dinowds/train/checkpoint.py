"""Checkpoints: whole or absent, the last few kept, a damaged one passed over."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dinowds.errors import CheckpointError
from dinowds.files import atomic_write, remove_temporaries

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8})\.pt")

State = dict[str, Any]
"""`format_version`, `student`, `teacher`, `optimizer`, `dino_loss` {`center` [1, K]}, `step` (optimizer steps done),
`epoch` (epochs done), `bad_samples` (replaced so far), `config` (nested dict), `dataset` (sha256 of the index), and
`about`, plain JSON values for whoever uses the weights, which older checkpoints lack: `architecture` {`kind`,
`embed_dim`, `depth`, `num_heads`, `in_dim`, `patch_size`, `grid`, `pos_interpolation`} as in `model.architecture`,
`mean` and `std` [3] of images (null for regions), `dataset` {`name`, `samples`, `cohorts` {name: samples},
`metadata`}. Loads with `weights_only=True`."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, state: State, keep: int) -> Path:
    """Write `step-NNNNNNNN.pt`, fsynced and renamed into place, then remove older ones beyond the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, state["step"])
    with atomic_write(path) as file:
        torch.save(state, file)
    older = [old for old in list_checkpoints(folder) if old.name < path.name]
    for old in older[max(0, keep - 1) :]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)), reverse=True)


def load_checkpoint(path: Path) -> State:
    """Read one checkpoint to CPU memory.

    Raises:
        CheckpointError: missing, damaged, or not of dinowds.
        OSError: the file system failed; the file may be whole.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged zip can fail in the reader, the unpickler or a tensor's constructor
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a zip that is cut short, from a seek
            raise
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of dinowds (format_version {FORMAT_VERSION})")
    return state


def find_latest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that can be read; None where there is none at all.

    Damaged ones are named to `warn` and set aside as `*.pt.damaged`. For the only process that writes to `folder`.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    remove_temporaries(folder)
    damaged: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error}; falling back to the one before")
            damaged.append(path)
            continue
        for other in damaged:
            other.rename(other.with_name(other.name + ".damaged"))
        return path
    if damaged:
        raise CheckpointError(f"{folder}: none of the {len(damaged)} checkpoints can be read; move the run folder away")
    return None
