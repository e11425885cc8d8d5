"""Megatron-Energon: what `energon prepare` writes, for one split `train` of all shards.

shards/NAME.tar.idx        uint64, little-endian: where each sample begins, then where the last one ends
.nv-meta/.info.json        samples of each shard
.nv-meta/split.yaml        which shards are train, val and test
.nv-meta/dataset.yaml      what its samples are made of
.nv-meta/index.sqlite      where each sample and each of its members lie, by key
.nv-meta/index.uuid        tells one index from another
"""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

from dinowds.data.manifest import Manifest, Shard
from dinowds.errors import DatasetError
from dinowds.interop.facts import Facts
from dinowds.interop.members import END_BYTES, LABEL, SampleMembers
from dinowds.interop.names import ENERGON_ID, ENERGON_INFO, ENERGON_SPLIT, MARK

_VERSION = "7.1.0"
"""Of energon, whose format this is."""

_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER
);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def refusal(facts: Facts) -> str | None:
    """Why the reader cannot take the dataset; None: it can."""
    return None if facts.outside is None else f"the shard {facts.outside} is not in shards/, where its index would lie"


def notice(facts: Facts) -> str | None:
    """What a user would wonder about."""
    missing, total = facts.num_unlabelled, facts.manifest.num_samples
    if missing in (0, total):
        return None
    return f"energon: {missing} of {total} samples have no label, so dataset.yaml gives images alone"


def files(manifest: Manifest) -> dict[str, bytes]:
    """Name → content of what follows from the manifest alone."""
    urls = [shard.url for shard in manifest.shards]
    counts = {shard.url: shard.num_samples for shard in manifest.shards}
    info = {"energon_version": _VERSION, "shard_counts": counts}
    digests = "\n".join(f"{shard.url} {shard.sha256}" for shard in manifest.shards)
    return {
        ENERGON_INFO: json.dumps(info, indent=2).encode(),
        ENERGON_SPLIT: _yaml({"split_parts": {"train": urls, "val": [], "test": []}, "exclude": []}),
        ENERGON_ID: str(uuid.uuid5(uuid.NAMESPACE_URL, digests)).encode(),
    }


def config(facts: Facts) -> bytes:
    """`dataset.yaml`: images, and labels where all samples have one."""
    has_labels = facts.num_unlabelled == 0
    field_map = {"image": ",".join(facts.exts), **({"label": LABEL} if has_labels else {})}
    name = "ImageClassificationSample" if has_labels else "ImageSample"
    return _yaml({"sample_type": {"__module__": "megatron.energon", "__class__": name}, "field_map": field_map})


def shard_index(samples: list[SampleMembers]) -> bytes:
    """The index of a shard."""
    return struct.pack(f"<{len(samples) + 1}Q", *(sample.start for sample in samples), samples[-1].stop)


def is_stale(index: Path, shard: Shard) -> bool:
    """Whether an index is not of `shard`, by its count and its end."""
    content = index.read_bytes()
    return len(content) != 8 * (shard.num_samples + 1) or content[-8:] != struct.pack("<Q", shard.num_bytes - END_BYTES)


class Database:
    """`index.sqlite` while it is written."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def create(cls, path: Path) -> Iterator[Database]:
        """Write a new database to the empty file `path`. Its caller sees to it that it is whole or not at all."""
        # No locks: file systems of clusters often have none, and no one else knows of the file.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True)) as connection:
            connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")
            yield cls(connection)
            connection.commit()
            connection.executescript(_INDEXES)

    def add(self, shard: int, samples: list[SampleMembers]) -> None:
        """All samples of shard number `shard`.

        Raises:
            DatasetError: a key was used before.
        """
        rows = ((shard, s.key, i, s.start, s.stop - s.start) for i, s in enumerate(samples))
        parts = ((shard, i, *member) for i, sample in enumerate(samples) for member in sample.members)
        try:
            self._connection.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            raise DatasetError(
                f"shard {shard} has a key that another sample of the dataset has, which energon does not take; make "
                "the dataset again"
            ) from None
        self._connection.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)


def _yaml(content: Any) -> bytes:
    return f"# {MARK}\n{yaml.safe_dump(content, sort_keys=False)}".encode()
