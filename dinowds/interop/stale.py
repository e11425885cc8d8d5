"""Indexes that a dataset has outgrown."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from dinowds.data.manifest import Manifest
from dinowds.interop import dali, energon, timm
from dinowds.interop.names import (
    ENERGON_CONFIG,
    ENERGON_DATABASE,
    HF_CARD,
    dali_index,
    energon_index,
    list_interop_files,
)
from dinowds.remote.files import is_remote

_NEVER_STALE = (ENERGON_CONFIG, HF_CARD)
"""They name no sample and no shard."""


def stale_indexes(root: str, manifest: Manifest) -> list[str]:
    """Files of `dinowds index` that are not of the dataset as it is, relative to its folder; sorted.

    Reads little of each: a file that is only damaged is not found. Of a remote dataset nothing is read.
    """
    return [] if is_remote(root) else sorted(_stale(Path(root), manifest))


def _stale(root: Path, manifest: Manifest) -> Iterator[str]:
    expected = {**energon.files(manifest), **timm.files(manifest)}
    by_dali = {dali_index(shard.url): shard for shard in manifest.shards}
    by_energon = {energon_index(shard.url): shard for shard in manifest.shards}
    for name in list_interop_files(root):
        path = root / name
        if name in expected:
            is_stale = path.read_bytes() != expected[name]
        elif name in by_dali:
            is_stale = dali.is_stale(path, root / by_dali[name].url, by_dali[name])
        elif name in by_energon:
            is_stale = energon.is_stale(path, by_energon[name])
        elif name == ENERGON_DATABASE:
            is_stale = _count(path) != manifest.num_samples
        else:
            is_stale = name not in _NEVER_STALE  # of a shard that is gone, or left by a run that was killed
        if is_stale:
            yield name


def _count(path: Path) -> int:
    """Samples of energon's database; -1 where it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            (last,) = connection.execute("SELECT max(rowid) FROM samples").fetchone()
            return int(last or 0)
    except sqlite3.Error:
        return -1
