"""`dinowds index`: look at the whole dataset, refuse what a reader cannot take, then write."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dinowds.data.dataset import Dataset
from dinowds.data.location import split_location
from dinowds.errors import ConfigError, DatasetError, OutputError
from dinowds.files import atomic_write, write_atomic
from dinowds.interop import dali, energon, hf, timm, wids
from dinowds.interop.facts import Facts, Report, gather_facts, shard_members
from dinowds.interop.names import (
    ENERGON,
    ENERGON_CONFIG,
    ENERGON_DATABASE,
    READERS,
    dali_index,
    energon_index,
    is_ours,
)
from dinowds.remote.files import is_remote, shown

_REFUSALS = {
    "wids": wids.refusal,
    "dali": dali.refusal,
    "energon": energon.refusal,
    "timm": timm.refusal,
    "hf": hf.refusal,
}
_NOTICES = {"energon": energon.notice, "timm": timm.notice}
_FILES = {"energon": energon.files, "timm": timm.files, "hf": hf.files}


@dataclass
class Written:
    """What one reader got: files, relative to the dataset's folder, and their bytes in all."""

    reader: str
    files: list[str] = field(default_factory=list)
    num_bytes: int = 0


@dataclass(frozen=True)
class Indexed:
    """What `write_indexes` did."""

    root: str
    written: tuple[Written, ...]
    notices: tuple[str, ...]


def write_indexes(
    location: str, readers: Collection[str], overwrite: bool = False, report: Report = lambda _done, _all: None
) -> Indexed:
    """Write what each of `readers` wants beside the shards of a dataset. Each file is whole or as it was before.

    Args:
        location: the dataset's folder.
        readers: of `READERS`.
        overwrite: replace files that others wrote, too.
        report: gets (shards looked at or indexed, all of them) now and then.

    Raises:
        ConfigError: `location` is a subset.
        DatasetError: it is remote, not whole, or one of `readers` cannot take it. Nothing is written.
        OutputError: a file of others is in the way, or the folder cannot be written.
    """
    dataset = _open(location)
    num_shards = len(dataset.manifest.shards)
    chosen = [reader for reader in READERS if reader in readers]
    facts = gather_facts(dataset, lambda done, _: report(done, 2 * num_shards))
    _check_readers(dataset.url, facts, chosen)
    small = _small_files(facts, chosen)
    _check_foreign(Path(dataset.url), [name for files in small.values() for name in files], overwrite)
    folder = _Folder(dataset.url, chosen)
    with _output_errors(dataset.url):
        _write(folder, dataset, small, lambda done, _: report(num_shards + done, 2 * num_shards))
    notices = [notice for reader, tell in _NOTICES.items() if reader in chosen and (notice := tell(facts))]
    return Indexed(dataset.url, tuple(folder.written.values()), tuple(notices))


def _open(location: str) -> Dataset:
    root, subset = split_location(location)
    if subset is not None:
        raise ConfigError(f"{shown(location)}: is a subset, and other readers take whole datasets; give {shown(root)}")
    if is_remote(root):
        raise DatasetError(
            f"{shown(root)}: lies at a URL, expected a folder; index the dataset on a disk and copy it there with its "
            "indexes (wids needs none)"
        )
    return Dataset.open(root)


def _check_readers(root: str, facts: Facts, readers: Collection[str]) -> None:
    refused = {reader: reason for reader in readers if (reason := _REFUSALS[reader](facts)) is not None}
    for reader, reason in refused.items():
        others = [f"--for {other}" for other in readers if other not in refused]
        advice = f"; for the others, give {' '.join(others)}" if others else ""
        raise DatasetError(f"{root}: cannot be read by {reader}: {reason}{advice}")


def _small_files(facts: Facts, readers: Collection[str]) -> dict[str, dict[str, bytes]]:
    """Reader → name → content of the files that are not about single samples."""
    files = {reader: make(facts.manifest) for reader, make in _FILES.items() if reader in readers}
    if "energon" in files:
        files["energon"][ENERGON_CONFIG] = energon.config(facts)
    return files


def _check_foreign(root: Path, names: Collection[str], overwrite: bool) -> None:
    foreign = [name for name in names if (root / name).exists() and not is_ours(root, name)]
    if foreign and not overwrite:
        raise OutputError(f"{root / foreign[0]}: was not written by 'dinowds index'; move it, or give --overwrite")


class _Folder:
    """The dataset's folder, and what was written to it for each reader."""

    def __init__(self, root: str, readers: Collection[str]) -> None:
        self.root = Path(root)
        self.written = {reader: Written(reader) for reader in readers}

    def write(self, reader: str, name: str, content: bytes) -> None:
        write_atomic(self.root / name, content)
        self.add(reader, name, len(content))

    def add(self, reader: str, name: str, num_bytes: int) -> None:
        self.written[reader].files.append(name)
        self.written[reader].num_bytes += num_bytes


def _write(folder: _Folder, dataset: Dataset, small: Mapping[str, Mapping[str, bytes]], report: Report) -> None:
    if "energon" in folder.written:
        (folder.root / ENERGON).mkdir(exist_ok=True)
    if {"dali", "energon"} & folder.written.keys():
        _write_places(folder, dataset, report)
    for reader, files in small.items():
        for name, content in files.items():
            folder.write(reader, name, content)


def _write_places(folder: _Folder, dataset: Dataset, report: Report) -> None:
    """The files that say where samples lie."""
    shards = dataset.manifest.shards
    with _database(folder) as database:
        for position, shard in enumerate(shards):
            samples = shard_members(dataset, position)
            if "dali" in folder.written:
                folder.write("dali", dali_index(shard.url), dali.shard_index(samples))
            if database is not None:
                folder.write("energon", energon_index(shard.url), energon.shard_index(samples))
                database.add(position, samples)
            report(position + 1, len(shards))


@contextmanager
def _database(folder: _Folder) -> Iterator[energon.Database | None]:
    """Energon's, if it is wanted."""
    if "energon" not in folder.written:
        yield None
        return
    path = folder.root / ENERGON_DATABASE
    with atomic_write(path) as file, energon.Database.create(Path(file.name)) as database:
        yield database
    folder.add("energon", ENERGON_DATABASE, path.stat().st_size)


@contextmanager
def _output_errors(root: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{root}: its indexes cannot be written ({reason}); make room or give it write access"
        ) from None
