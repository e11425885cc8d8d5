"""A dataset at a remote URL: shards are uploaded one by one as they are finished, the manifest last.

What a run needs to go on lies in a staging folder of this host: rows of finished shards, and their tars until they are
uploaded; of an uploaded one an empty file stays as the sign. `URL/.unfinished/state.json` says which command is
unfinished there, and what of an older dataset is to go; `URL/.unfinished/run` which run of it. A run that is no longer
named there has lost the place to another one (a second host, or a removed dataset): it uploads nothing more, and what
it has uploaded is not trusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SHARDS_NAME,
    SUBSETS_NAME,
    UNFINISHED_NAME,
    Manifest,
)
from dinowds.errors import OutputError, StorageError
from dinowds.files import write_atomic
from dinowds.remote.files import RemoteFiles, shown
from dinowds.remote.threads import in_threads
from dinowds.shard.outputs.local_output import STATE_NAME, read_json, size_of
from dinowds.shard.outputs.output import Found, Notes, foreign_name, listed_shards, shard_stem, tar_path

_MARK = f"{UNFINISHED_NAME}/state.json"
_RUN = f"{UNFINISHED_NAME}/run"
_THREADS = 16
"""Small requests at once: each is one round trip, of some 20 ms."""


@dataclass(frozen=True)
class RemoteOutput:
    """The place `url` (without a slash at its end); `staging` gets a folder for it."""

    url: str
    staging: Path
    files: RemoteFiles = field(default_factory=RemoteFiles)
    is_remote: ClassVar[bool] = True

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def root(self) -> Path:
        return self.work

    @property
    def work(self) -> Path:
        return self.staging / xxhash.xxh3_128_hexdigest(self.url.encode())

    def look(self) -> Found:
        manifest, mark = self._read_json(MANIFEST_NAME), self._read_json(_MARK)
        known = listed_shards(manifest).union(_replaced(mark))
        own = _shards_of(mark)
        top = set(self._names(""))
        if not top and not self.files.has_bucket(self.url):
            raise self._no_place()
        return Found(
            foreign_name(self._names, manifest, lambda name: name in known or own(name)),
            manifest is not None,
            not top.isdisjoint((SAMPLES_NAME, QUARANTINE_NAME)),
            mark,
        )

    def holds(self, notes: Notes) -> bool:
        if self._run() == notes["run"]:
            return True
        return notes["manifest"] is not None and self._manifest_sha256() == notes["manifest"]

    def discard(self) -> None:
        """Nothing: `begin` takes over what is there."""

    def begin(self, notes: Notes) -> None:
        """The old manifest goes at once, so that shards can be overwritten one by one."""
        if self._run() != notes["run"]:
            old = [f"{folder}/{name}" for folder in (SHARDS_NAME, SUBSETS_NAME) for name in self._names(folder)]
            mark = {"fingerprint": notes["fingerprint"], "replaced": old}
            with self._errors():
                self.files.write(self._at(_MARK), json.dumps(mark).encode())
                self.files.write(self._at(_RUN), str(notes["run"]).encode())
        self._remove([MANIFEST_NAME])

    def present(self, shards: Mapping[int, int], url: Callable[[int], str]) -> set[int]:
        kept = {index: size_of(tar_path(self.work, index)) for index in shards}
        taken = [index for index, size in shards.items() if size and kept[index] == 0]
        sizes = dict(zip(taken, in_threads(lambda index: self._size(url(index)), taken, _THREADS), strict=True))
        return {index for index, size in shards.items() if not size or sizes.get(index) == size}

    def take_shard(self, index: int, url: str) -> None:
        tar = tar_path(self.work, index)
        notes = read_json(self.work / STATE_NAME)
        self._check_run(notes if isinstance(notes, dict) else {"run": ""})
        if not size_of(tar):
            return  # another worker of a cluster has uploaded it
        self._upload(tar, url)
        write_atomic(tar, b"")  # a new file: an upload that goes on elsewhere keeps its bytes

    def publish(self, manifest: Manifest, notes: Notes, again: bool) -> None:  # noqa: ARG002
        """Old shards and subsets that are not the new dataset's go just before the manifest comes."""
        self._check_run(notes)
        for name in (SAMPLES_NAME, QUARANTINE_NAME):
            self._upload(self.work / name, name)
        self._remove(sorted(_replaced(self._read_json(_MARK)) - {shard.url for shard in manifest.shards}))
        self._upload(self.work / MANIFEST_NAME, MANIFEST_NAME)

    def published(self, notes: Notes) -> Manifest | None:
        if self._manifest_sha256() != notes["manifest"]:
            return None
        return Manifest.from_json(self._read_json(MANIFEST_NAME))

    def end(self, notes: Notes, is_published: bool) -> None:
        """A run that has made nothing leaves its mark only where that tells what else lies there."""
        try:
            if self._run() in (notes["run"], None) and (is_published or not _replaced(self._read_json(_MARK))):
                self._remove([_MARK, _RUN])
        except (OutputError, StorageError):
            if is_published:
                raise

    def _run(self) -> str | None:
        """The run that writes there."""
        content = self._read(_RUN)
        return None if content is None else content.decode("ascii", "replace")

    def _check_run(self, notes: Notes) -> None:
        if self._run() != notes["run"]:
            raise OutputError(
                f"{self}: another 'dinowds shard' has begun to write there meanwhile; "
                "wait for it to end, or give the same command again with --overwrite"
            )

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _names(self, folder: str) -> Collection[str]:
        with self._errors():
            return self.files.names(self._at(folder))

    def _read(self, name: str) -> bytes | None:
        try:
            return self.files.read(self._at(name))
        except FileNotFoundError:
            return None

    def _read_json(self, name: str) -> Any:
        """What an object says; None where there is none, and a text where it cannot be read."""
        content = self._read(name)
        if content is None:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return "is not JSON"

    def _manifest_sha256(self) -> str | None:
        content = self._read(MANIFEST_NAME)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def _size(self, name: str) -> int:
        try:
            return self.files.size(self._at(name))
        except FileNotFoundError:
            return -1

    def _upload(self, path: Path, name: str) -> None:
        with self._errors():
            self.files.upload(path, self._at(name))

    def _remove(self, names: Iterable[str]) -> None:
        with self._errors():
            in_threads(lambda name: self.files.remove(self._at(name)), list(names), _THREADS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What can be written to gives no such error."""
        try:
            yield
        except FileNotFoundError:
            raise self._no_place() from None

    def _no_place(self) -> OutputError:
        return OutputError(f"{self}: no such place; make the bucket first, or give another --out")


def _replaced(mark: Any) -> set[str]:
    """Names of an older dataset that are to go when the run of `mark` is published."""
    names = mark.get("replaced") if isinstance(mark, dict) else None
    if not isinstance(names, list):
        return set()
    pattern = re.compile(rf"({SHARDS_NAME}|{SUBSETS_NAME})/(?!\.\.?$)[^/]+")
    return {name for name in names if isinstance(name, str) and pattern.fullmatch(name)}


def _shards_of(mark: Any) -> Callable[[str], bool]:
    """Whether the run of `mark` writes a shard of that name."""
    fingerprint = mark.get("fingerprint") if isinstance(mark, dict) else None
    name = fingerprint.get("--name") if isinstance(fingerprint, dict) else None
    if not isinstance(name, str):
        return lambda _: False
    pattern = re.compile(rf"{SHARDS_NAME}/{re.escape(shard_stem(name))}-[0-9]{{6,}}\.tar")
    return lambda url: pattern.fullmatch(url) is not None
