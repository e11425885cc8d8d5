"""The output folder while a dataset is made: who may write there, what is left of an earlier run, and what may go.

Everything unfinished lies in `OUT/.unfinished`; only renames put files into OUT, and the manifest comes last.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dinowds.data.manifest import MANIFEST_NAME, QUARANTINE_NAME, SAMPLES_NAME, SHARDS_NAME, UNFINISHED_NAME
from dinowds.errors import OutputError, SourceError
from dinowds.files import fsync_folder, remove_temporaries, write_atomic

_STATE = "state.json"
_LOCK = "lock"
_OWN_FILES = (MANIFEST_NAME, SAMPLES_NAME, QUARANTINE_NAME)
_SHARD_NAME = re.compile(r".+-[0-9]{6,}\.tar")


class Workspace:
    """`OUT/.unfinished`, locked for one run. Made by `claim`."""

    def __init__(self, out: Path, is_resumed: bool) -> None:
        self.out = out
        self.folder = out / UNFINISHED_NAME
        self.is_resumed = is_resumed

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run had only this folder left to remove."""
        return self.is_resumed and (self.out / MANIFEST_NAME).exists()

    def recall(self, name: str) -> Any:
        """What `note` kept under `name`, or None."""
        return _read_json(self.folder / f"{name}.json")

    def note(self, name: str, content: Any) -> None:
        """Keep JSON `content` for this run and those that go on with it."""
        write_atomic(self.folder / f"{name}.json", json.dumps(content).encode())

    def publish(self, name: str, target: str) -> None:
        """Move `name` to `target` in OUT, by rename."""
        (self.folder / name).replace(self.out / target)
        fsync_folder((self.out / target).parent)

    def start_anew(self) -> None:
        """Forget all that an earlier run did, but for what it decompressed."""
        _clear(self.out, keep=(_LOCK, _STATE), keep_prefix="source-")

    def remove(self) -> None:
        """Remove the folder: the run is finished, or leaves nothing to go on with.

        The state goes last, so that a run that dies here can be given again.
        """
        for path in self.folder.iterdir():
            if path.name != _STATE:
                path.unlink(missing_ok=True)
        (self.folder / _STATE).unlink(missing_ok=True)
        self.folder.rmdir()


def check_output(out: Path, overwrite: bool, fingerprint: dict[str, Any]) -> None:
    """Whether a run may write to `out`. Changes nothing.

    Raises:
        OutputError: it holds a dataset, another run's unfinished one, or files that are not dinowds's.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder that does not exist yet; give another --out")
    if foreign := _foreign_file(out):
        raise OutputError(f"{out}: holds {foreign!r}, which dinowds did not write; give another --out")
    state = _read_json(out / UNFINISHED_NAME / _STATE)
    if overwrite or state == fingerprint:
        return
    if state is not None:
        raise OutputError(
            f"{out}: holds the unfinished dataset of another command: {_difference(state, fingerprint)}; "
            "give that command again to go on with it, or --overwrite to start anew"
        )
    if any((out / name).exists() for name in (*_OWN_FILES, SHARDS_NAME)):
        raise OutputError(f"{out}: already holds a dataset; give another --out, or --overwrite to replace it")


@contextmanager
def claim(out: Path, overwrite: bool, fingerprint: dict[str, Any]) -> Iterator[Workspace]:
    """Lock `out` for this run and clear what it replaces.

    Raises OutputError as `check_output` does, and where another process writes there.
    """
    with suppress(OSError):
        (out / UNFINISHED_NAME).rmdir()  # A run that died at its very end can leave it, empty.
    check_output(out, overwrite, fingerprint)
    created = [path for path in (out / UNFINISHED_NAME, out, *out.parents) if not path.exists()]
    with _locked(out / UNFINISHED_NAME, out):
        check_output(out, overwrite, fingerprint)
        is_resumed = _read_json(out / UNFINISHED_NAME / _STATE) == fingerprint
        workspace = Workspace(out, is_resumed)
        if is_resumed:
            remove_temporaries(workspace.folder)
        else:
            _clear(out)
            write_atomic(workspace.folder / _STATE, json.dumps(fingerprint).encode())
        try:
            yield workspace
        except Exception as error:
            nothing_done = not any(workspace.folder.glob("shard-*.tar")) and not (out / SHARDS_NAME).exists()
            if nothing_done and (not is_resumed or isinstance(error, SourceError)):
                workspace.remove()
                for folder in created[1:]:
                    folder.rmdir()
            raise


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{out}: another 'dinowds shard' is writing there; wait for it to end") from None
        if not _is_same_file(descriptor, folder / _LOCK):
            raise OutputError(f"{out}: another 'dinowds shard' has just finished there; look at what it made")
        yield
    finally:
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear(out: Path, keep: tuple[str, ...] = (_LOCK,), keep_prefix: str = "/") -> None:
    """Remove an earlier dataset, its manifest first, and what is unfinished but for some. `check_output` allowed it."""
    for name in _OWN_FILES:
        (out / name).unlink(missing_ok=True)
    if (out / SHARDS_NAME).exists():
        shutil.rmtree(out / SHARDS_NAME)
    for path in (out / UNFINISHED_NAME).iterdir():
        if path.name not in keep and not path.name.startswith(keep_prefix):
            path.unlink()


def _foreign_file(out: Path) -> str | None:
    """The name of a file in `out` that no run of dinowds wrote."""
    for path in sorted(out.iterdir()):
        if path.name == SHARDS_NAME and path.is_dir():
            for shard in sorted(path.iterdir()):
                if not _SHARD_NAME.fullmatch(shard.name):
                    return f"{SHARDS_NAME}/{shard.name}"
        elif path.name not in (*_OWN_FILES, UNFINISHED_NAME):
            return path.name
    manifest = _read_json(out / MANIFEST_NAME)
    if (out / MANIFEST_NAME).exists() and not (isinstance(manifest, dict) and "dinowds" in manifest):
        return MANIFEST_NAME
    return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _difference(before: Any, now: dict[str, Any]) -> str:
    """What differs between two fingerprints, for people."""
    if not isinstance(before, dict):
        return "its notes cannot be read"
    found = []
    for name in now:
        if before.get(name) != now[name]:
            if name == "sources":
                found.append("other sources, or sources that changed since")
            else:
                found.append(f"{name} was {before.get(name)!r}, now {now[name]!r}")
    return ", ".join(found) or "its notes are of another version"
