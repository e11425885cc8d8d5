"""A dataset in a local folder.

Everything unfinished lies in `OUT/.unfinished`. A dataset that is replaced stays whole until the new one is: only then
its files go, the new ones come by renames, and the manifest is the first to go and the last to come. One that is
changed (`changes`) goes the same way, but for the files that stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUBSETS_NAME,
    UNFINISHED_NAME,
    Manifest,
    read_manifest,
)
from dinowds.errors import OutputError
from dinowds.files import fsync_folder
from dinowds.interop.names import ENERGON, list_interop_files
from dinowds.shard.outputs.output import (
    Found,
    LostShard,
    Notes,
    foreign_name,
    is_own_shard,
    is_subset_file,
    listed_shards,
    shard_index,
    tar_path,
)

STATE_NAME = "state.json"
REPLACED_NAME = "replaced.json"
CHANGES_NAME = "changes.json"
"""What becomes of the files of a dataset that is changed, see `changes`: {"moved": {name in the work folder: place},
"removed": [place]}."""


@dataclass(frozen=True)
class LocalOutput:
    """The folder `root`, which need not exist yet."""

    root: Path
    is_remote: ClassVar[bool] = False

    def __str__(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def work(self) -> Path:
        return self.root / UNFINISHED_NAME

    def look(self) -> Found:
        if not self.root.exists():
            return Found()
        if not self.root.is_dir():
            raise OutputError(f"{self}: is a file, expected a folder that does not exist yet; give another --out")
        manifest = self.root / MANIFEST_NAME
        known = listed_shards(read_json(manifest)).union(*self._unfinished_shards(), self._interop_names())
        content = read_json(manifest) if manifest.exists() else None
        if manifest.exists() and content is None:
            content = "no JSON"
        return Found(
            foreign_name(self._names, content, known.__contains__),
            manifest.exists(),
            any((self.root / name).exists() for name in (SAMPLES_NAME, QUARANTINE_NAME)),
            read_json(self.work / STATE_NAME),
        )

    def _names(self, folder: str) -> Collection[str] | None:
        path = self.root / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else None

    def _unfinished_shards(self) -> list[set[str]]:
        return [listed_shards(read_json(self.work / name)) for name in (MANIFEST_NAME, REPLACED_NAME)]

    def _interop_names(self) -> set[str]:
        """Files of 'dinowds index', and its folder if it holds nothing else."""
        found = set(list_interop_files(self.root))
        if {f"{ENERGON}/{name}" for name in self._names(ENERGON) or ()} <= found:
            found.add(ENERGON)
        return found

    def holds(self, notes: Notes) -> bool:  # noqa: ARG002 - the notes lie in the output itself
        return True

    def discard(self) -> None:
        """Whole datasets stay."""
        if not (self.root / MANIFEST_NAME).exists():
            self._remove_files(set().union(*self._unfinished_shards()))

    def begin(self, notes: Notes) -> None:
        """Nothing: what is in `work` says it all."""

    def present(self, shards: Mapping[int, int], url: Callable[[int], str]) -> set[int]:  # noqa: ARG002
        return {index for index, size in shards.items() if not size or size_of(tar_path(self.work, index)) == size}

    def take_shard(self, index: int, url: str) -> None:
        """Nothing: shards move when all are done."""

    def publish(self, manifest: Manifest, notes: Notes, again: bool) -> None:  # noqa: ARG002
        if (self.work / CHANGES_NAME).exists():
            self._change()
            return
        tars = {}
        for shard in manifest.shards:
            if is_own_shard(shard.url):  # others stay where they are
                tar, place = tar_path(self.work, shard_index(shard.url)), self.root / shard.url
                if size_of(place if again and not tar.exists() else tar) != shard.num_bytes:
                    raise LostShard(place)
                tars[tar.name] = shard.url
        self._take_manifest()
        if (self.work / REPLACED_NAME).exists():
            self._remove_files(listed_shards(read_json(self.work / REPLACED_NAME)))
            (self.work / REPLACED_NAME).unlink()
        self._move(tars)
        self._move_index()

    def _take_manifest(self) -> None:
        """From here on the dataset in `root` is unfinished."""
        if (self.root / MANIFEST_NAME).exists():
            (self.root / MANIFEST_NAME).replace(self.work / REPLACED_NAME)
            fsync_folder(self.root)

    def _move(self, moved: Mapping[str, str]) -> None:
        """Give files of `work` that are still there their places in `root`."""
        for name, place in moved.items():
            if (self.work / name).exists():
                (self.root / place).parent.mkdir(exist_ok=True)
                (self.work / name).replace(self.root / place)
        for folder in {(self.root / place).parent for place in moved.values()}:
            fsync_folder(folder)

    def _move_index(self) -> None:
        for name in (SAMPLES_NAME, QUARANTINE_NAME, MANIFEST_NAME):
            if (self.work / name).exists():
                (self.work / name).replace(self.root / name)
                fsync_folder(self.root)

    def _change(self) -> None:
        """Change the dataset in `root` as `work` says."""
        changes = json.loads((self.work / CHANGES_NAME).read_bytes())
        if (self.root / MANIFEST_NAME).exists():
            for name in (*changes["moved"], SAMPLES_NAME):
                if not (self.work / name).exists():
                    raise LostShard(self.work / name)
        self._take_manifest()
        for place in changes["removed"]:
            (self.root / place).unlink(missing_ok=True)
        self._remove_empty(ENERGON)
        self._move(changes["moved"])
        self._move_index()

    def _remove_files(self, shards: set[str]) -> None:
        """Remove a dataset whose manifest is gone already."""
        subsets = {f"{SUBSETS_NAME}/{name}" for name in self._names(SUBSETS_NAME) or () if is_subset_file(name)}
        for name in {SAMPLES_NAME, QUARANTINE_NAME} | shards | subsets | set(list_interop_files(self.root)):
            (self.root / name).unlink(missing_ok=True)
        self._remove_empty(SUBSETS_NAME)
        self._remove_empty(ENERGON)

    def _remove_empty(self, folder: str) -> None:
        with suppress(OSError):  # is not there, or not empty
            (self.root / folder).rmdir()

    def published(self, notes: Notes) -> Manifest | None:  # noqa: ARG002
        return None if (self.work / MANIFEST_NAME).exists() else read_manifest(self.root)

    def end(self, notes: Notes, is_published: bool) -> None:
        """Nothing: the notes go with `work`."""


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def read_json(path: Path) -> Any:
    """What a file says; None where it says nothing that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
