"""Where a dataset goes, as the rest of this room sees it: a folder, or a remote place with a staging folder here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SHARDS_NAME,
    SUBSETS_NAME,
    UNFINISHED_NAME,
    Manifest,
)

_OWN_NAMES = (MANIFEST_NAME, SAMPLES_NAME, QUARANTINE_NAME, UNFINISHED_NAME)
_SUBSET_FILE = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9_.-]*\.(npy|json)(\.[0-9a-f]+\.tmp)?")

Notes = dict[str, Any]
"""What a run writes down to go on with: `fingerprint` (all that decides the bytes), `run` (a random name), `digests` of
its sources' lists, and `manifest`: the sha256 of the manifest that is about to be published, None before."""


@dataclass(frozen=True)
class Found:
    """What lies at an output: the first name that is not dinowds's, and the notes of an unfinished run."""

    foreign: str | None = None
    has_manifest: bool = False
    has_index: bool = False
    notes: Any = None


class LostShard(Exception):
    """A shard that was finished is gone or damaged; the text is its place."""


class Output(Protocol):
    """A place for one dataset. Its text is what messages call it; it can be pickled, for workers give it their shards.

    A finished shard lies as `tar_path` in `work` until the output takes it or the dataset is published.
    """

    is_remote: ClassVar[bool]

    @property
    def name(self) -> str:
        """Of the dataset, where none is given."""

    @property
    def root(self) -> Path:
        """The local folder that runs write in."""

    @property
    def work(self) -> Path:
        """The folder in `root` (or `root` itself) of the unfinished run."""

    def look(self) -> Found:
        """What is there. Raises OutputError where it can be no output."""

    def holds(self, notes: Notes) -> bool:
        """Whether no other run has written there since the one that wrote `notes`."""

    def discard(self) -> None:
        """Remove what an ended `publish` of another run has left; `work` still is as that run left it."""

    def begin(self, notes: Notes) -> None:
        """Make it this run's output. Called again when the run goes on."""

    def present(self, shards: Mapping[int, int], url: Callable[[int], str]) -> set[int]:
        """Those of `shards` (index → bytes) that are where a finished shard is to be; `url` says where in a dataset."""

    def take_shard(self, index: int, url: str) -> None:
        """A shard is done and has its rows: take its tar, if this output takes shards one by one."""

    def publish(self, manifest: Manifest, notes: Notes, again: bool) -> None:
        """Put the dataset of `work` in its place, the manifest last; `again` where that was begun before.

        Raises LostShard.
        """

    def published(self, notes: Notes) -> Manifest | None:
        """The manifest, if `publish` came to its end."""

    def end(self, notes: Notes, is_published: bool) -> None:
        """Remove what says that a run is unfinished, unless it is needed to tell what else lies there."""


def tar_path(work: Path, index: int) -> Path:
    """The tar of shard `index` while the run is unfinished."""
    return work / f"shard-{index:06d}.tar"


def shard_stem(name: str) -> str:
    """What the shards of dataset `name` begin with."""
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name)


def shard_url(name: str, index: int) -> str:
    """Where shard `index` of dataset `name` lies in it."""
    return f"{SHARDS_NAME}/{shard_stem(name)}-{index:06d}.tar"


def shard_index(url: str) -> int:
    """The inverse of `shard_url`."""
    return int(url.removesuffix(".tar").rpartition("-")[2])


def is_own_shard(url: str) -> bool:
    """Whether a manifest's URL lies in the dataset's own folder of shards, not somewhere else."""
    return Path(url).parent == Path(SHARDS_NAME) and Path(url).name not in ("", "..")


def listed_shards(content: Any) -> set[str]:
    """The URLs of a manifest's JSON that lie where this command puts shards; none where it is no manifest."""
    try:
        urls = [shard.url for shard in Manifest.from_json(content).shards]
    except (LookupError, TypeError, ValueError, AttributeError):
        return set()
    return set(filter(is_own_shard, urls))


def foreign_name(
    names: Callable[[str], Collection[str] | None], manifest: Any, is_known: Callable[[str], bool]
) -> str | None:
    """The first name at an output that no run of dinowds wrote.

    Args:
        names: folder ('' for the top) → what is in it; None where it is no folder.
        manifest: the JSON of the manifest, None where there is none.
        is_known: whether a file in `shards` ('shards/NAME'), or a further one at the top, is known.
    """
    if manifest is not None and not (isinstance(manifest, dict) and "dinowds" in manifest):
        return MANIFEST_NAME
    for name in sorted(names("") or ()):
        inside = names(name) if name in (SHARDS_NAME, SUBSETS_NAME) else None
        if inside is None:
            if name not in _OWN_NAMES and not is_known(name):
                return name
            continue
        for inner in sorted(inside):
            if not (is_known(f"{name}/{inner}") if name == SHARDS_NAME else is_subset_file(inner)):
                return f"{name}/{inner}"
    return None


def is_subset_file(name: str) -> bool:
    """Whether `dinowds subset` writes files of that name."""
    return _SUBSET_FILE.fullmatch(name) is not None
