"""Checkpoints: whole or absent, the last few and the best kept, a damaged one passed over."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from dinowds.errors import CheckpointError, OutputError
from dinowds.files import atomic_write, fsync_folder, remove_temporaries, temporary_path

FORMAT_VERSION = 1
BEST_NAME = "best.pt"
_NAME = re.compile(r"step-(\d{8})\.pt")

State = dict[str, Any]
"""`format_version`, `student`, `teacher`, `optimizer`, `dino_loss` {`center` [1, K]}, `step` (optimizer steps done),
`epoch` (epochs done), `bad_samples` (replaced so far), `bad_steps` (not applied so far), `config` (nested dict),
`dataset` (sha256 of the index), and two that older checkpoints lack: `data`, where the dataset lies
(`Dataset.location`), and `about`, plain JSON values for whoever uses the weights: `architecture` {`kind`, `embed_dim`,
`depth`, `num_heads`, `in_dim`, `patch_size`, `grid`, `pos_interpolation`} as in `model.architecture`, `mean` and `std`
[3] of images (null for regions), `dataset` {`name`, `samples`, `cohorts` {name: samples}, `metadata`}. Loads with
`weights_only=True`."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


class Writer:
    """Writes checkpoints in a thread of its own, one at a time: training waits for a copy in memory alone."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "dinowds-checkpoint")
        self._under_way: Future[Path] | None = None

    def save(self, state: State, best: bool = False) -> None:
        """Copy `state` to CPU memory and begin to write it (`save_checkpoint`). Waits for an earlier one first.

        Raises:
            OutputError: the earlier one could not be written.
        """
        self.wait()
        copy = _copy(state)
        arrived = _event_after_copies()
        self._under_way = self._thread.submit(self._write, copy, arrived, best)

    def wait(self) -> None:
        """Until what was saved is on disk. Raises OutputError if it could not be written."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def close(self) -> None:
        """Wait for what is under way, and end the thread. Raises nothing: for where another error is on its way."""
        self._thread.shutdown()

    def _write(self, state: State, arrived: torch.cuda.Event | None, best: bool) -> Path:
        if arrived:
            arrived.synchronize()
        return save_checkpoint(self._folder, state, self._keep, best)


def _copy(value: Any) -> Any:
    """With copies of all tensors, in CPU memory; those of a GPU are on their way."""
    if isinstance(value, Tensor):
        if not value.is_cuda:
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _copy(inner) for name, inner in value.items()}
    return type(value)(map(_copy, value)) if isinstance(value, list | tuple) else value


def _event_after_copies() -> torch.cuda.Event | None:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def save_checkpoint(folder: Path, state: State, keep: int, best: bool = False) -> Path:
    """Write `step-NNNNNNNN.pt`, fsynced and renamed into place, then remove older ones beyond the newest `keep`.

    `best`: it is `best.pt` too, from then on, which is never removed.

    Raises:
        OutputError: it cannot be written.
    """
    path = checkpoint_path(folder, state["step"])
    failures: list[OSError] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / BEST_NAME if best else path
        with atomic_write(first) as file:
            torch.save(state, cast(BinaryIO, _Told(file, failures)))
        if best:  # named so before: a run that goes on with it has it as its best
            _also_name(first, path)
        remove_older(path, keep)
    except (OSError, RuntimeError) as error:
        cause = failures[0] if failures else error
        reason = getattr(cause, "strerror", None) or (str(cause).splitlines() or [""])[0]
        raise OutputError(
            f"{folder}: checkpoint of step {state['step']} cannot be written ({reason}); free space there and run the "
            "same command again"
        ) from None
    return path


def remove_older(path: Path, keep: int) -> None:
    """Remove what is older than the checkpoint at `path`, but for the newest `keep` - 1 of that."""
    older = [old for old in list_checkpoints(path.parent) if old.name < path.name]
    for old in older[max(0, keep - 1) :]:
        old.unlink()


class _Told:
    """A file for `torch.save`, which makes an assertion about positions of whatever a file cannot write."""

    def __init__(self, file: BinaryIO, failures: list[OSError]) -> None:
        self._file, self._failures = file, failures

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self._failures.append(error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _also_name(path: Path, name: Path) -> None:
    """Let `name` be the same file as `path`, or a copy where the file system has no hard links."""
    temporary = temporary_path(name)
    try:
        temporary.hardlink_to(path)
    except OSError:
        with path.open("rb") as source, atomic_write(name) as file:
            shutil.copyfileobj(source, file)
        return
    temporary.replace(name)
    fsync_folder(name.parent)


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)), reverse=True)


def load_checkpoint(path: Path, is_mapped: bool = False, verify: bool = False) -> State:
    """Read one checkpoint to CPU memory.

    Args:
        is_mapped: its tensors are read as they are used, for who wants little of it.
        verify: read it twice, to compare its bytes with their checksums, which torch does not.

    Raises:
        CheckpointError: missing, damaged, or not of dinowds.
        OSError: the file system failed; the file may be whole.
    """
    try:
        if verify and (part := zipfile.ZipFile(path).testzip()):
            raise zipfile.BadZipFile(part)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
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
            load_checkpoint(path, verify=True)
        except CheckpointError as error:
            warn(f"{error}; falling back to the one before")
            damaged.append(path)
            continue
        for other in damaged:
            other.rename(other.with_name(other.name + ".damaged"))
        return path
    if damaged:
        best = folder / BEST_NAME
        told = f" ({best} is kept, for student.init_from or export)" if best.exists() else ""
        raise CheckpointError(
            f"{folder}: none of the {len(damaged)} checkpoints can be read; move the run folder away{told}"
        )
    return None
