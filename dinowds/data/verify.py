"""Every byte of a dataset against its manifest and its index."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xxhash

from dinowds.data.index.rowgroups import open_samples, read_rows
from dinowds.data.location import split_location
from dinowds.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SHARDS_NAME,
    SUBSETS_NAME,
    Manifest,
    Shard,
    read_manifest,
)
from dinowds.data.store.sequential import DatasetFiles, HashingReader
from dinowds.data.subsets.selection import mask_header
from dinowds.data.subsets.subset import Subset, read_subset
from dinowds.errors import DatasetError
from dinowds.files import cache_folder
from dinowds.remote.files import is_remote, shown

IN_PLACE = "in_place"
"""In the metadata of a dataset whose shards are sources as they came: members have the names of these, labels are in
the index alone."""

_OF_OTHER_READERS = ".idx"
"""What 'dinowds index' writes beside shards ends so."""

CHANGED = "was changed since it was written: what it says of its own sha256 is not true"
_STEP = 1 << 20
_MOST_LINES = 1 << 30
"""Bytes of a quarantine that is read: 10 million lines."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written. `key` is None where it is not about one sample; URLs are as `shown`."""

    shard: str
    key: str | None
    problem: str


def verify_dataset(location: str | Path, report: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read all of a dataset again: index, sizes, digests, names, counts and subsets. An empty list: all is well.

    Args:
        location: a folder or a URL; of 'DATASET:SUBSET' all of DATASET is read.
        report: gets (bytes of shards read, bytes of all shards) now and then.

    Raises:
        DatasetError: there is no dataset, or its manifest cannot be read.
        StorageError: a remote file cannot be read, though it is there.
    """
    root, subset = split_location(location)
    files = DatasetFiles(root)
    manifest = read_manifest(root, files.remote)
    num_bytes = 0
    damages = [Damage(MANIFEST_NAME, None, CHANGED)] if manifest.was_changed else []
    with _index_folder(files, root) as (folder, problem, sha256):
        if not problem and sha256 != manifest.samples_sha256:
            problem = "its sha256 is not the manifest's"
        damages += [Damage(SAMPLES_NAME, None, problem)] if problem else []
        rows = _Rows(folder, manifest)
        is_in_place = bool(manifest.metadata.get(IN_PLACE))  # of a merged dataset it says which part is
        for position, shard in enumerate(manifest.shards):
            found, problem = rows.of_shard(position)
            if problem:
                damages.append(Damage(shown(shard.url), None, problem))
            damages += _verify_shard(files, shard, found, is_in_place)
            num_bytes += shard.num_bytes
            if report:
                report(num_bytes, manifest.num_bytes)
        damages += rows.verify_counts()
    return damages + _verify_other_files(files, manifest) + _verify_subsets(root, subset, files, manifest)


@contextmanager
def _index_folder(files: DatasetFiles, root: str) -> Iterator[tuple[Path, str, str]]:
    """A local folder with samples.parquet (a copy of a remote one), what is wrong with it ('': nothing), its sha256."""
    if is_remote(root):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="verify-", dir=cache_folder()) as folder:
            yield Path(folder), *_read_whole(files, SAMPLES_NAME, Path(folder) / SAMPLES_NAME)
    else:
        yield Path(root), *_read_whole(files, SAMPLES_NAME)


def _read_whole(files: DatasetFiles, url: str, copy: Path | None = None) -> tuple[str, str]:
    """Read a file, and copy it if asked for: (what is wrong or '', sha256)."""
    try:
        with files.open(url) as reader:
            if copy is None:
                for _ in reader.blocks():
                    pass
            else:
                with open(copy, "wb") as file:
                    file.writelines(reader.blocks())
            return "", reader.sha256
    except OSError as error:
        return f"cannot be read ({error.strerror or error})", ""


def _verify_other_files(files: DatasetFiles, manifest: Manifest) -> list[Damage]:
    """Shards that no one would read, and the lines of the quarantine against the manifest's counts."""
    listed = {shard.url for shard in manifest.shards}
    found = [f"{SHARDS_NAME}/{name}" for name in files.names(SHARDS_NAME)]
    damages = [
        Damage(url, None, "the manifest does not list this file")
        for url in found
        if url not in listed and not url.endswith(_OF_OTHER_READERS)
    ]
    reasons: Counter[str] = Counter()
    try:
        lines = _content(files, QUARANTINE_NAME).splitlines()
        reasons.update(str(json.loads(line)["reason"]) for line in lines)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        return [*damages, Damage(QUARANTINE_NAME, None, f"cannot be read ({' '.join(str(error).split())})")]
    if reasons != manifest.quarantined:
        damages.append(Damage(QUARANTINE_NAME, None, "its counts of reasons are not the manifest's"))
    return damages


def _verify_subsets(root: str, named: str | None, files: DatasetFiles, manifest: Manifest) -> list[Damage]:
    """Descriptions against the dataset, and masks against their descriptions. `named` is looked at in any case."""
    names = {name[:-5] for name in files.names(SUBSETS_NAME) if name.endswith(".json") and not name.startswith(".")}
    damages = []
    for name in sorted(names | ({named} if named else set())):
        try:
            problem = _subset_problem(files, read_subset(root, name, manifest, files.remote), manifest)
        except (DatasetError, OSError, ValueError) as error:
            problem = " ".join(str(error).split())
        if problem:
            damages.append(Damage(f"{SUBSETS_NAME}/{name}", None, problem))
    return damages


def _subset_problem(files: DatasetFiles, subset: Subset, manifest: Manifest) -> str:
    if subset.was_changed:
        return CHANGED
    if problem := _mask_problem(files, subset, manifest.num_samples):
        return problem
    if sum(subset.cohorts.values()) != subset.samples or subset.cohorts.keys() - manifest.cohorts.keys():
        return "its description's counts of cohorts cannot be right"
    return ""


def _mask_problem(files: DatasetFiles, subset: Subset, num_samples: int) -> str:
    num_bytes = -(-num_samples // 8)
    header = mask_header(num_bytes)
    with files.open(f"{SUBSETS_NAME}/{subset.name}.npy") as reader:
        if reader.size != len(header) + num_bytes:
            return f"its mask has {reader.size} bytes, expected {len(header) + num_bytes} for {num_samples} samples"
        content = b"".join(reader.blocks())
    if reader.sha256 != subset.file_sha256:
        return "the sha256 of its mask is not the one of its description"
    if not content.startswith(header):
        return "its mask is not in the form that dinowds writes"
    count = int(np.unpackbits(np.frombuffer(content, np.uint8, num_bytes, len(header))).sum())
    return "" if count == subset.samples else f"its mask has {count} samples, its description says {subset.samples}"


def _content(files: DatasetFiles, url: str) -> bytes:
    with files.open(url) as reader:
        if reader.size > _MOST_LINES:
            raise ValueError(f"it has {reader.size} bytes, expected at most {_MOST_LINES}")
        return b"".join(reader.blocks())


class _Rows:
    """The index, one row group a shard, as far as it can be read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._cohorts: Counter[str] = Counter()
        self._is_whole = True
        try:
            self._index = open_samples(folder / SAMPLES_NAME, manifest.samples_footer_sha256)
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
        columns = ["key", "shard", "offset", "size", "ext", "digest", "label", "cohort", "source_name"]
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


def _verify_shard(files: DatasetFiles, shard: Shard, rows: list[dict[str, Any]], is_in_place: bool) -> list[Damage]:
    damages, name = [], shown(shard.url)
    try:
        with files.open(shard.url) as reader:
            if reader.size != shard.num_bytes:
                problem = f"has {reader.size} bytes, the manifest says {shard.num_bytes}"
                damages.append(Damage(name, None, problem))
            found = [Damage(name, *pair) for pair in _verify_samples(reader, rows, shard.num_bytes, is_in_place)]
            for _ in reader.blocks():
                pass
    except OSError as error:
        return [Damage(name, None, f"cannot be read ({error.strerror or error})")]
    if not found and not damages and reader.sha256 != shard.sha256:
        damages.append(Damage(name, None, "its sha256 is not the manifest's, though all its samples are right"))
    return damages + found


def _verify_samples(
    reader: HashingReader, rows: list[dict[str, Any]], num_bytes: int, is_in_place: bool
) -> Iterator[tuple[str | None, str]]:
    """Compare each sample of a shard of `num_bytes` with its row; yields (key, problem)."""
    is_renamed_by_all = False
    for row in sorted(rows, key=lambda row: int(row["offset"])) if is_in_place else rows:
        gap = row["offset"] - reader.position
        if row["size"] < 0 or not tarfile.BLOCKSIZE <= gap <= num_bytes or row["offset"] + row["size"] > num_bytes:
            yield row["key"], f"its offset or size in {SAMPLES_NAME} cannot be right"
            return
        metadata = _skip(reader, gap - tarfile.BLOCKSIZE)  # other members, such as those of withdrawn samples
        is_renamed_by_all |= b"g" in metadata
        is_renamed = is_in_place and (is_renamed_by_all or bool(metadata))
        header = reader.read(tarfile.BLOCKSIZE)
        payload = reader.read(row["size"])
        if len(payload) < row["size"]:
            yield row["key"], "the shard ends before it"
            continue
        names = [f"{row['key']}.{row['ext']}", *([row["source_name"]] if is_in_place else [])]
        if problem := _header_problem(header, [] if is_renamed else names, row["size"]):
            yield row["key"], problem
        if xxhash.xxh3_128_digest(payload) != row["digest"]:
            yield row["key"], "its bytes are not those that were written"
        if row["label"] is not None and not is_in_place and (problem := _label_problem(reader, row)):
            yield row["key"], problem


def _skip(reader: HashingReader, num_bytes: int) -> bytes:
    """Read on; the kinds of the metadata that was passed, which gives other names to what comes after it: L, x or g."""
    kinds = bytearray()
    padding = min(num_bytes, -reader.position % tarfile.BLOCKSIZE)
    reader.read(padding)
    num_bytes -= padding
    while num_bytes > 0 and (content := reader.read(min(num_bytes, _STEP))):
        num_bytes -= len(content)
        for start in range(0, len(content), tarfile.BLOCKSIZE):
            kind = content[start + 156 : start + 157]
            if kind in (b"L", b"x", b"X", b"g") and content[start + 257 : start + 262] == b"ustar":
                kinds += kind
    return bytes(kinds)


def _label_problem(reader: HashingReader, row: dict[str, Any]) -> str:
    reader.read(-row["size"] % tarfile.BLOCKSIZE)
    text = str(row["label"]).encode()
    if problem := _header_problem(reader.read(tarfile.BLOCKSIZE), [f"{row['key']}.cls"], len(text)):
        return f"its label: {problem}"
    return "" if reader.read(tarfile.BLOCKSIZE).rstrip(b"\0") == text else "its label is not the one that was written"


def _header_problem(header: bytes, names: Sequence[str], size: int) -> str:
    """What is wrong with the header of a member that has one of these names; a name that does not fit in it is not
    compared: it stands in a header before. Without names, none is.
    """
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return "its header is damaged"
    if names and info.name not in names and all(len(name) <= tarfile.LENGTH_NAME and name.isascii() for name in names):
        return f"its member is called {info.name!r}, expected {names[-1]!r}"
    return "" if info.size == size else f"its header says {info.size} bytes, {SAMPLES_NAME} says {size}"
