"""What a file of weights holds. Files come from others: nothing in them is ever run."""

from __future__ import annotations

import argparse
import errno
import json
import re
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dinowds.errors import CheckpointError
from dinowds.files import open_regular

NOTES = "dinowds"
"""Under this name an exported file says what it is: a key of safetensors' metadata, an attribute of a state dict."""

_SCALARS = re.compile(r"[fiu][1248]")


@dataclass(frozen=True)
class Content:
    """`values`: the outermost dict. `notes`: what an export of dinowds says of itself, {} in other files."""

    values: dict[str, Any]
    notes: dict[str, Any]
    is_safetensors: bool = False


def read_content(path: Path) -> Content:
    """Everything in a file, on the CPU.

    Raises:
        CheckpointError: there is no such file, or it is damaged, holds more than data, or is no file of weights.
        OSError: the file system failed.
    """
    start = _read_start(path)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a pointer of Git LFS, not the weights; fetch them with `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: an HTML or XML page, not weights; download the file itself")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):  # torch.save, and as it was before 1.6
        return _read_torch(path)
    raise CheckpointError(f"{path}: neither a file of torch.save nor safetensors, or damaged at its start")


def _read_start(path: Path) -> bytes:
    try:
        with open(open_regular(path), "rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file of weights") from None


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, "pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (is no dict)
            notes = (file.metadata() or {}).get(NOTES, "{}")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({' '.join(str(error).split())})") from None
    return Content(values, _as_notes(path, _parse(path, notes)), is_safetensors=True)


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its metadata '{NOTES}' is not JSON") from None


def _as_notes(path: Path, notes: Any) -> dict[str, Any]:
    if not isinstance(notes, dict):
        raise CheckpointError(f"{path}: its metadata '{NOTES}' is not a JSON object")
    return notes


class _ScalarType:
    """Stands for numpy.dtype while unpickling: a number's, such as `f8`, and nothing else.

    numpy's own type would take a state from the file, with which bytes can be made into pointers.
    """

    def __init__(self, code: str, _align: bool = False, _copy: bool = True) -> None:
        if not isinstance(code, str) or not _SCALARS.fullmatch(code):
            raise CheckpointError("a numpy type that is no plain number's")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise CheckpointError("a numpy type that is no plain number's")
        self.order = state[1]


def _scalar(kind: _ScalarType, content: bytes) -> float | int:
    """Stands for the function that numpy pickles its scalars with. Gives a number of Python's."""
    if type(kind) is not _ScalarType or type(content) is not bytes:
        raise CheckpointError("a numpy scalar that is no plain number")
    (value,) = np.frombuffer(content, kind.order + kind.code).tolist()
    return value  # type: ignore[no-any-return]


_ADMITTED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (argparse.Namespace, "argparse.Namespace"),  # `args` of the original DINO
    (_ScalarType, "numpy.dtype"),  # learning rates of the reference
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
"""What files may name besides torch's own list. Pairs of our own, so that no one else's entries go when ours do."""

_loading = threading.Lock()  # torch keeps one list for all threads


def _read_torch(path: Path) -> Content:
    try:
        _check_size(path)
        with _loading, torch.serialization.safe_globals(_ADMITTED):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail in the reader, the unpickler or a tensor's constructor
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: torch seeks to before a zip's start
            raise
        raise CheckpointError(f"{path}: {_explain(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a dict of tensors")
    return Content(values, _as_notes(path, getattr(values, NOTES, {})))


def _check_size(path: Path) -> None:
    """Raises CheckpointError for a zip that is larger inside: torch.save does not compress, torch.load would unpack."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise CheckpointError("compressed entries, which torch.save does not write")


def _explain(error: Exception) -> str:
    """One line: torch's own messages advise to load the file without its guard."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"holds {named[1]}, which is code or an object, not weights; nothing of it was run"
    if isinstance(error, CheckpointError):
        return f"holds {error}; nothing of it was run"
    return f"damaged, or no file of torch.save ({type(error).__name__})"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError where it is none."""
    try:
        with open(open_regular(path), encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content
