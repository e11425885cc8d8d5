"""Every byte of a dataset against its manifest and its index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SHARDS_NAME,
    Manifest,
    Shard,
    read_manifest,
)
from dinowds.data.summary import open_index, read_rows
from dinowds.errors import DatasetError
from dinowds.files import sha256_of

_STEP = 1 << 20


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written. `key` is None where it is not about one sample."""

    shard: str
    key: str | None
    problem: str


def verify_dataset(folder: Path, report: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read all of a dataset again: index, sizes, digests, names and counts. An empty list: all is well.

    Args:
        report: gets (bytes of shards read, bytes of all shards) now and then.

    Raises:
        DatasetError: there is no dataset, or its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    damages = _verify_index_file(folder, manifest)
    rows = _Rows(folder, manifest)
    num_bytes = 0
    for position, shard in enumerate(manifest.shards):
        found, problem = rows.of_shard(position)
        if problem:
            damages.append(Damage(shard.url, None, problem))
        damages += _verify_shard(folder, shard, found)
        num_bytes += shard.num_bytes
        if report:
            report(num_bytes, manifest.num_bytes)
    return damages + rows.verify_counts() + _verify_other_files(folder, manifest)


def _verify_index_file(folder: Path, manifest: Manifest) -> list[Damage]:
    path = folder / SAMPLES_NAME
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        return [Damage(SAMPLES_NAME, None, f"cannot be read ({error.strerror or error})")]
    if sha256 != manifest.samples_sha256:
        return [Damage(SAMPLES_NAME, None, "its sha256 is not the manifest's")]
    return []


def _verify_other_files(folder: Path, manifest: Manifest) -> list[Damage]:
    """Shards that no one would read, and the lines of the quarantine against the manifest's counts."""
    listed = {shard.url for shard in manifest.shards}
    found = sorted(f"{SHARDS_NAME}/{path.name}" for path in (folder / SHARDS_NAME).glob("*"))
    damages = [Damage(url, None, "the manifest does not list this file") for url in found if url not in listed]
    reasons: Counter[str] = Counter()
    try:
        with open(folder / QUARANTINE_NAME, "rb") as lines:
            reasons.update(str(json.loads(line)["reason"]) for line in lines)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        return [*damages, Damage(QUARANTINE_NAME, None, f"cannot be read ({' '.join(str(error).split())})")]
    if reasons != manifest.quarantined:
        damages.append(Damage(QUARANTINE_NAME, None, "its counts of reasons are not the manifest's"))
    return damages


class _Rows:
    """The index, one row group a shard, as far as it can be read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._cohorts: Counter[str] = Counter()
        self._is_whole = True
        try:
            self._index = open_index(folder)
        except DatasetError:
            self._index = None

    def of_shard(self, position: int) -> tuple[list[dict[str, Any]], str]:
        """The rows of a shard, and what is wrong with them ('' for nothing)."""
        rows, problem = self._read(position)
        if problem:
            self._is_whole = False
        self._cohorts.update(row["cohort"] for row in rows)
        return rows, problem

    def _read(self, position: int) -> tuple[list[dict[str, Any]], str]:
        if self._index is None:
            return [], f"{SAMPLES_NAME} cannot be read: its samples were not compared"
        if position >= self._index.num_row_groups:
            return [], f"has no rows in {SAMPLES_NAME}"
        columns = ["key", "shard", "offset", "size", "ext", "digest", "label", "cohort"]
        try:
            rows = read_rows(self._index, position, columns).to_pylist()
        except ValueError as error:
            return [], f"its row group in {SAMPLES_NAME} {error}"
        if any(row["shard"] != position for row in rows):
            return [], f"its row group in {SAMPLES_NAME} has rows of another shard"
        expected = self._manifest.shards[position].num_samples
        if len(rows) != expected:
            return rows, f"has {len(rows)} rows in {SAMPLES_NAME}, the manifest says {expected}"
        return rows, ""

    def verify_counts(self) -> list[Damage]:
        """Compare the counts over all shards with the manifest's."""
        damages = []
        if self._index is not None:
            if self._index.num_row_groups > len(self._manifest.shards):
                damages.append(Damage(SAMPLES_NAME, None, "has row groups of shards that the manifest does not have"))
            self._index.close()
        if self._is_whole and dict(self._cohorts) != {name: n for name, n in self._manifest.cohorts.items() if n}:
            damages.append(Damage(MANIFEST_NAME, None, f"its counts of cohorts are not those of {SAMPLES_NAME}"))
        return damages


def _verify_shard(folder: Path, shard: Shard, rows: list[dict[str, Any]]) -> list[Damage]:
    path = folder / shard.url
    try:
        size = path.stat().st_size
        damages = []
        if size != shard.num_bytes:
            damages.append(Damage(shard.url, None, f"has {size} bytes, the manifest says {shard.num_bytes}"))
        with open(path, "rb") as file:
            reader = _HashingReader(file)
            found = [Damage(shard.url, *pair) for pair in _verify_samples(reader, rows, shard.num_bytes)]
            reader.read_to_end()
    except OSError as error:
        return [Damage(shard.url, None, f"cannot be read ({error.strerror or error})")]
    if not found and not damages and reader.sha256 != shard.sha256:
        damages.append(Damage(shard.url, None, "its sha256 is not the manifest's, though all its samples are right"))
    return damages + found


def _verify_samples(
    reader: _HashingReader, rows: list[dict[str, Any]], num_bytes: int
) -> Iterator[tuple[str | None, str]]:
    """Compare each sample of a shard of `num_bytes` with its row; yields (key, problem)."""
    for row in rows:
        gap = row["offset"] - reader.position
        if row["size"] < 0 or not tarfile.BLOCKSIZE <= gap <= num_bytes or row["offset"] + row["size"] > num_bytes:
            yield row["key"], f"its offset or size in {SAMPLES_NAME} cannot be right"
            return
        header = reader.read(gap)[-tarfile.BLOCKSIZE :]
        payload = reader.read(row["size"])
        if len(payload) < row["size"]:
            yield row["key"], "the shard ends before it"
            continue
        if problem := _header_problem(header, f"{row['key']}.{row['ext']}", row["size"]):
            yield row["key"], problem
        if xxhash.xxh3_128_digest(payload) != row["digest"]:
            yield row["key"], "its bytes are not those that were written"
        if row["label"] is not None and (problem := _label_problem(reader, row)):
            yield row["key"], problem


def _label_problem(reader: _HashingReader, row: dict[str, Any]) -> str:
    reader.read(-row["size"] % tarfile.BLOCKSIZE)
    text = str(row["label"]).encode()
    if problem := _header_problem(reader.read(tarfile.BLOCKSIZE), f"{row['key']}.cls", len(text)):
        return f"its label: {problem}"
    return "" if reader.read(tarfile.BLOCKSIZE).rstrip(b"\0") == text else "its label is not the one that was written"


def _header_problem(header: bytes, name: str, size: int) -> str:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return "its header is damaged"
    if info.name != name:
        return f"its member is called {info.name!r}, expected {name!r}"
    return "" if info.size == size else f"its header says {info.size} bytes, {SAMPLES_NAME} says {size}"


class _HashingReader:
    """Reads a file in sequence and hashes all of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file
        self._sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or what is left."""
        content = self._file.read(size)
        self._sha256.update(content)
        self.position += len(content)
        return content

    def read_to_end(self) -> None:
        while self.read(_STEP):
            pass

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
