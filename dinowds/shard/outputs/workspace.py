"""The unfinished work of a run: who may write to an output, what is left of an earlier run, and what may go.

It lies in the output's `work` folder, which is locked for one run. `state.json` in it holds the run's notes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dinowds.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from dinowds.errors import OutputError
from dinowds.files import lock_file, remove_temporaries, sha256_of, write_atomic
from dinowds.shard.outputs.local_output import REPLACED_NAME, STATE_NAME, read_json
from dinowds.shard.outputs.output import Found, LostShard, Notes, Output

_LOCK = "lock"


class Workspace:
    """The work folder of `output`, locked for one run. Made by `claim`."""

    def __init__(
        self, output: Output, overwrite: bool, fingerprint: dict[str, Any], changes_dataset: bool = False
    ) -> None:
        """`changes_dataset`: the output is a finished dataset, which the run changes (`changes`); else it makes one."""
        self.output = output
        self.folder = output.work
        self._overwrite = overwrite
        self._fingerprint = fingerprint
        self._changes_dataset = changes_dataset

    def check(self) -> None:
        """Whether this run may write to the output. Changes nothing.

        Raises:
            OutputError: it holds a dataset, another run's unfinished one, or files that are not dinowds's.
            DatasetError: it holds no dataset, and the run is to change one.
        """
        output, found = self.output, self.output.look()
        if self._changes_dataset:
            self._check_dataset(found)
            return
        if found.foreign:
            raise OutputError(f"{output}: holds {found.foreign!r}, which dinowds did not write; give another --out")
        if self._overwrite or self.is_whole:
            return
        is_ours = found.notes is None or _is_of(found.notes, self._fingerprint)
        if not is_ours and not found.has_manifest:
            raise OutputError(
                f"{output}: holds the unfinished dataset of another command: "
                f"{_difference(found.notes, self._fingerprint)}; "
                "give that command again to go on with it, or --overwrite to start anew"
            )
        if found.has_manifest or (found.notes is None and found.has_index):
            raise OutputError(f"{output}: already holds a dataset; give another --out, or --overwrite to replace it")

    def _check_dataset(self, found: Found) -> None:
        if found.notes is not None and not _is_of(found.notes, self._fingerprint):
            raise OutputError(
                f"{self.output}: holds the unfinished work of another command: "
                f"{_difference(found.notes, self._fingerprint)}; give that command again to end it"
            )
        if not found.has_manifest and not self.is_whole:
            read_manifest(self.output.root)

    @property
    def is_whole(self) -> bool:
        """Whether an earlier run of this command has made all files, and only `publish` or `end` is missing.

        Changes of a dataset that is still all there are made ready anew: its subsets may be others now.
        """
        notes = self._notes()
        if notes is None or notes["manifest"] is None:
            return False
        places = (self.folder, self.output.root)
        if self._changes_dataset and all((place / MANIFEST_NAME).exists() for place in places):
            return False
        return self.output.holds(notes)

    def begin(self, digests: dict[str, str], spools: Sequence[Path]) -> None:
        """Keep what an earlier run has made of the same sources, and nothing else but `spools`.

        Args:
            digests: source → digest of its list. Finished shards were made from these lists.

        Raises:
            OutputError: a source has changed since the unfinished run, and it is not to be overwritten.
        """
        notes = self._notes()
        if notes is not None and not self.output.holds(notes):
            notes = None
        changed = [] if notes is None else [path for path, now in digests.items() if notes["digests"].get(path) != now]
        if changed and not self._overwrite:
            raise OutputError(
                f"{self.output}: holds an unfinished dataset, and {changed[0]} has changed since that was begun; "
                "give --overwrite to start anew"
            )
        if notes is None or changed:
            self.output.discard()
            for path in self.folder.iterdir():
                if path.name != _LOCK and path not in spools:
                    path.unlink()
            run = secrets.token_hex(16)
            notes = {"fingerprint": self._fingerprint, "run": run, "digests": digests, "manifest": None}
            self._note(notes)
        self.output.begin(notes)

    def publish(self, manifest: Manifest) -> None:
        """Put the new dataset in its place. The index, the quarantine and the manifest lie in `folder`.

        Raises:
            OutputError: a finished shard is gone or damaged.
        """
        self._note({**self._own_notes(), "manifest": sha256_of(self.folder / MANIFEST_NAME)})
        self._publish(manifest, again=False)

    def publish_again(self) -> Manifest:
        """Go on with a `publish` that was ended; the manifest."""
        manifest = self.output.published(self._own_notes())
        if manifest is None:
            manifest = read_manifest(self.folder)
            self._publish(manifest, again=True)
        return manifest

    def _publish(self, manifest: Manifest, again: bool) -> None:
        notes = self._own_notes()
        try:
            self.output.publish(manifest, notes, again)
        except LostShard as lost:
            self._note({**notes, "manifest": None})
            raise OutputError(f"{lost}: is gone or damaged; give the same command again to write it again") from None

    def _own_notes(self) -> Notes:
        notes = self._notes()
        if notes is None:
            raise OutputError(f"{self.folder / STATE_NAME}: is gone or damaged; give the same command again")
        return notes

    def _notes(self) -> Notes | None:
        """What an earlier run of this command noted."""
        notes = read_json(self.folder / STATE_NAME)
        return notes if _is_of(notes, self._fingerprint) and {"run", "digests", "manifest"} <= notes.keys() else None

    def _note(self, notes: Notes) -> None:
        write_atomic(self.folder / STATE_NAME, json.dumps(notes).encode())

    @property
    def is_worthless(self) -> bool:
        """Whether there is nothing that a later run could go on with."""
        names = [path.name for path in self.folder.iterdir()]
        return not any(name in (MANIFEST_NAME, REPLACED_NAME) or name.endswith(".tar") for name in names)

    def end(self, is_published: bool = True) -> None:
        """Remove all unfinished work; `claim` removes the folder.

        The notes go last of what counts, so that a run that dies here can be given again. A file system can keep the
        open lock's place until the lock is closed.
        """
        if (notes := self._notes()) is not None:
            self.output.end(notes, is_published)
        last = (STATE_NAME, _LOCK)
        for path in [
            *(path for path in self.folder.iterdir() if path.name not in last),
            *map(self.folder.joinpath, last),
        ]:
            with suppress(OSError):
                path.unlink()


@contextmanager
def claim(
    output: Output, overwrite: bool, fingerprint: dict[str, Any], changes_dataset: bool = False
) -> Iterator[Workspace]:
    """Lock `output` for this run. A run that fails before it made anything of worth leaves it as it was.

    Raises what `Workspace.check` does, and OutputError where another process of this host writes there.
    """
    remove_empty(output.work)
    workspace = Workspace(output, overwrite, fingerprint, changes_dataset)
    workspace.check()
    created = [path for path in (output.work, *output.work.parents) if not path.exists()]
    output.work.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(output.work / _LOCK):
            workspace.check()
            remove_temporaries(output.work)
            try:
                yield workspace
            except BaseException:
                if workspace.is_worthless:
                    workspace.end(is_published=False)
                raise
    except BlockingIOError:
        writer = _command_of(read_json(output.work / STATE_NAME))
        raise OutputError(
            f"{output}: another {writer!r} is writing there, or has just finished; wait for it to end"
        ) from None
    finally:
        for folder in dict.fromkeys((output.work, *created)):
            with suppress(OSError):  # not empty, or not ours to remove
                folder.rmdir()


def remove_empty(folder: Path, lock: str = _LOCK) -> None:
    """Remove what a run that died at its very end has left: a folder with nothing but the lock, which no one holds."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {lock}:
            with lock_file(folder / lock) as is_locked:
                if is_locked:
                    (folder / lock).unlink()
            folder.rmdir()


def _is_of(notes: Any, fingerprint: dict[str, Any]) -> bool:
    return isinstance(notes, dict) and notes.get("fingerprint") == fingerprint


def _command_of(notes: Any) -> str:
    """Which command wrote the notes. Fingerprints of 'dinowds shard' do not say so."""
    fingerprint = notes.get("fingerprint") if isinstance(notes, dict) else None
    return str((fingerprint if isinstance(fingerprint, dict) else {}).get("command", "dinowds shard"))


def _difference(notes: Any, now: dict[str, Any]) -> str:
    """What differs between the notes' fingerprint and that of now, for people."""
    before = notes.get("fingerprint") if isinstance(notes, dict) else None
    if not isinstance(before, dict):
        return "its notes cannot be read"
    if (command := _command_of(notes)) != _command_of({"fingerprint": now}):
        return f"it is of {command!r}"
    found = []
    for name in now:
        if before.get(name) != now[name]:
            if name == "sources":
                found.append("other sources, or sources that changed since")
            else:
                found.append(f"{name} was {before.get(name)!r}, now {now[name]!r}")
    return ", ".join(found) or "its notes are of another version"
