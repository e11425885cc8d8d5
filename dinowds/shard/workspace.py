"""The output folder while a dataset is made: who may write there, what is left of an earlier run, and what may go.

Everything unfinished lies in `OUT/.unfinished`. A dataset that is replaced stays whole until the new one is: only then
its files go, the new ones come by renames, and the manifest is the first to go and the last to come.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SHARDS_NAME,
    UNFINISHED_NAME,
    Manifest,
    read_manifest,
)
from dinowds.errors import OutputError
from dinowds.files import fsync_folder, lock_file, remove_temporaries, write_atomic

_STATE = "state.json"
_LOCK = "lock"
_REPLACED = "replaced.json"
_OWN_FILES = (MANIFEST_NAME, SAMPLES_NAME, QUARANTINE_NAME)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Workspace:
    """`OUT/.unfinished`, locked for one run. Made by `claim`."""

    def __init__(self, out: Path, overwrite: bool, fingerprint: dict[str, Any]) -> None:
        self.out = out
        self.folder = out / UNFINISHED_NAME
        self._overwrite = overwrite
        self._fingerprint = fingerprint

    @property
    def is_whole(self) -> bool:
        """Whether an earlier run of this command has made all files, and only `publish` or `remove` is missing."""
        state = _read_json(self.folder / _STATE)
        return _is_of(state, self._fingerprint) and state["tars"] is not None

    def begin(self, digests: dict[str, str], spools: Sequence[Path]) -> None:
        """Keep what an earlier run has made of the same sources, and nothing else but `spools`.

        Args:
            digests: source → digest of its list. Finished shards were made from these lists.

        Raises:
            OutputError: a source has changed since the unfinished run, and it is not to be overwritten.
        """
        state = _read_json(self.folder / _STATE)
        if not _is_of(state, self._fingerprint):
            state = None
        changed = [] if state is None else [path for path, now in digests.items() if state["digests"].get(path) != now]
        if changed and not self._overwrite:
            raise OutputError(
                f"{self.out}: holds an unfinished dataset, and {changed[0]} has changed since that was begun; "
                "give --overwrite to start anew"
            )
        if state is None or changed:
            self._remove_half_published()
            for path in self.folder.iterdir():
                if path.name != _LOCK and path not in spools:
                    path.unlink()
            self._note({"fingerprint": self._fingerprint, "digests": digests, "tars": None})

    def _remove_half_published(self) -> None:
        """Remove what an ended `publish` of another run has left in OUT; whole datasets stay."""
        if not (self.out / MANIFEST_NAME).exists():
            listed = [_listed_files(self.folder / name) for name in (MANIFEST_NAME, _REPLACED)]
            for name in {SAMPLES_NAME, QUARANTINE_NAME}.union(*listed):
                (self.out / name).unlink(missing_ok=True)

    def publish(self, manifest: Manifest, tars: Sequence[Path]) -> None:
        """Put the new dataset in its place: `tars` become the manifest's shards, and the files of its index follow.

        The index, the quarantine and the manifest lie in `folder`. `publish_again` goes on where this was ended.

        Raises:
            OutputError: a finished shard is gone or damaged.
        """
        state = _read_json(self.folder / _STATE)
        self._note({**state, "tars": [path.name for path in tars]})
        self._publish(manifest, tars)

    def publish_again(self) -> Manifest:
        """Go on with a `publish` that was ended; the manifest."""
        if not (self.folder / MANIFEST_NAME).exists():
            return read_manifest(self.out)
        manifest = read_manifest(self.folder)
        self._publish(manifest, [self.folder / name for name in _read_json(self.folder / _STATE)["tars"]])
        return manifest

    def _publish(self, manifest: Manifest, tars: Sequence[Path]) -> None:
        if (self.out / MANIFEST_NAME).exists():
            (self.out / MANIFEST_NAME).replace(self.folder / _REPLACED)
            fsync_folder(self.out)
        if (self.folder / _REPLACED).exists():
            for name in _listed_files(self.folder / _REPLACED) | {SAMPLES_NAME, QUARANTINE_NAME}:
                (self.out / name).unlink(missing_ok=True)
            (self.folder / _REPLACED).unlink()
        (self.out / SHARDS_NAME).mkdir(exist_ok=True)
        for before, shard in zip(tars, manifest.shards, strict=True):
            after = self.out / shard.url
            if before.exists():
                before.replace(after)
            if not after.exists() or after.stat().st_size != shard.num_bytes:
                self._note({**_read_json(self.folder / _STATE), "tars": None})
                raise OutputError(f"{after}: is gone or damaged; give the same command again to write it again")
        fsync_folder(self.out / SHARDS_NAME)
        for name in (SAMPLES_NAME, QUARANTINE_NAME, MANIFEST_NAME):
            if (self.folder / name).exists():
                (self.folder / name).replace(self.out / name)
                fsync_folder(self.out)

    def _note(self, state: dict[str, Any]) -> None:
        write_atomic(self.folder / _STATE, json.dumps(state).encode())

    @property
    def is_worthless(self) -> bool:
        """Whether there is nothing that a later run could go on with."""
        names = [path.name for path in self.folder.iterdir()]
        return not any(name in (MANIFEST_NAME, _REPLACED) or name.endswith(".tar") for name in names)

    def remove(self) -> None:
        """Remove what is in the folder; `claim` removes the folder.

        The state goes last of what counts, so that a run that dies here can be given again. A file system can keep the
        open lock's place until the lock is closed.
        """
        last = (_STATE, _LOCK)
        for path in [
            *(path for path in self.folder.iterdir() if path.name not in last),
            *map(self.folder.joinpath, last),
        ]:
            with suppress(OSError):
                path.unlink()


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
    unfinished = out / UNFINISHED_NAME
    state = _read_json(unfinished / _STATE)
    if overwrite or (_is_of(state, fingerprint) and state["tars"] is not None):
        return
    is_dataset = (out / MANIFEST_NAME).exists()
    if state is not None and not is_dataset and not _is_of(state, fingerprint):
        raise OutputError(
            f"{out}: holds the unfinished dataset of another command: {_difference(state, fingerprint)}; "
            "give that command again to go on with it, or --overwrite to start anew"
        )
    if is_dataset or (state is None and any((out / name).exists() for name in _OWN_FILES)):
        raise OutputError(f"{out}: already holds a dataset; give another --out, or --overwrite to replace it")


@contextmanager
def claim(out: Path, overwrite: bool, fingerprint: dict[str, Any]) -> Iterator[Workspace]:
    """Lock `out` for this run. A run that fails before it made anything of worth leaves `out` as it was.

    Raises OutputError as `check_output` does, and where another process writes there.
    """
    _remove_empty(out / UNFINISHED_NAME)
    check_output(out, overwrite, fingerprint)
    created = [path for path in (out / UNFINISHED_NAME, out, *out.parents) if not path.exists()]
    workspace = Workspace(out, overwrite, fingerprint)
    workspace.folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(workspace.folder / _LOCK):
            check_output(out, overwrite, fingerprint)
            remove_temporaries(workspace.folder)
            try:
                yield workspace
            except BaseException:
                if workspace.is_worthless:
                    workspace.remove()
                raise
    except BlockingIOError:
        raise OutputError(
            f"{out}: another 'dinowds shard' is writing there, or has just finished; wait for it to end"
        ) from None
    finally:
        for folder in dict.fromkeys((workspace.folder, *created)):
            with suppress(OSError):  # not empty, or not ours to remove
                folder.rmdir()


def _remove_empty(folder: Path) -> None:
    """Remove what a run that died at its very end has left: a folder with nothing but the lock, which no one holds."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {_LOCK}:
            with lock_file(folder / _LOCK) as is_locked:
                if is_locked:
                    (folder / _LOCK).unlink()
            folder.rmdir()


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Errors of the system that no source has caused are about the output."""
    try:
        yield
    except OSError as error:
        advice = "; make room and give the same command again to go on" if error.errno in _FULL else ""
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}){advice}") from None


def _foreign_file(out: Path) -> str | None:
    """The name of a file in `out` that no run of dinowds wrote."""
    manifest = _read_json(out / MANIFEST_NAME)
    if (out / MANIFEST_NAME).exists() and not (isinstance(manifest, dict) and "dinowds" in manifest):
        return MANIFEST_NAME
    unfinished = out / UNFINISHED_NAME
    listed = [_listed_files(path) for path in (out / MANIFEST_NAME, unfinished / MANIFEST_NAME, unfinished / _REPLACED)]
    known = set().union(*listed)
    for path in sorted(out.iterdir()):
        if path.name == SHARDS_NAME and path.is_dir():
            for shard in sorted(path.iterdir()):
                if f"{SHARDS_NAME}/{shard.name}" not in known:
                    return f"{SHARDS_NAME}/{shard.name}"
        elif path.name not in (*_OWN_FILES, UNFINISHED_NAME):
            return path.name
    return None


def _listed_files(path: Path) -> set[str]:
    """The shards that the manifest `path` lists and that lie where this command puts shards."""
    content = _read_json(path)
    try:
        urls = [shard.url for shard in Manifest.from_json(content).shards]
    except (LookupError, TypeError, ValueError, AttributeError):
        return set()
    return {url for url in urls if Path(url).parent == Path(SHARDS_NAME) and Path(url).name not in ("", "..")}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _is_of(state: Any, fingerprint: dict[str, Any]) -> bool:
    return isinstance(state, dict) and state.get("fingerprint") == fingerprint


def _difference(state: Any, now: dict[str, Any]) -> str:
    """What differs between the state's fingerprint and that of now, for people."""
    before = state.get("fingerprint") if isinstance(state, dict) else None
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
