"""Datasets of the reference system, opened where they lie: an index in the cache folder, made once."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from dinowds.data.dataset import Dataset
from dinowds.errors import DatasetError, OutputError, SourceError
from dinowds.files import cache_folder, waiting_lock
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.progress import Report
from dinowds.shard.sources.layouts import open_sources, reference
from dinowds.shard.sources.source import Source

_FOLDER = "roots"


def is_name(location: str) -> bool:
    """Whether this is a name in the reference's configurations, such as 'KNN:root=/data:split=query'."""
    path = Path(location)
    return not path.exists() and reference.recognises(path)


def open_in_place(
    location: str,
    workers: int = 1,
    report: Report | None = None,
    notice: Callable[[str], None] | None = None,
) -> str:
    """The index of what is named in the reference's way, a dataset for `Dataset.open`; other locations as they are.

    The index holds no image: its shards are the root's tars, which must stay as they are. It is made by the first
    process of a host that asks, for which the others wait; and again when a file of the root has another size or time.

    Args:
        location: a dataset, or a name such as 'PathologyFoundation:root=/data:subset=fold_0'.
        workers: threads that read tars.
        notice: gets one line that says where the index is.

    Raises:
        SourceError: the root is missing, damaged, or compressed.
        OutputError: the cache folder cannot be written.
    """
    if not is_name(location):
        return location
    [source] = open_sources([location], reference.NAME)
    _check_packing(location, source)
    folder = cache_folder() / _FOLDER / _identity(source)
    if notice:
        notice(
            f"{location}: read in place, by the index {folder}"
            + ("" if _is_whole(folder) else "; it is made now, once: this reads every tar")
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder.with_name(f".{folder.name}.lock")):
            if not _is_whole(folder):
                _make(location, source.cohort, folder, workers, report)
    except OSError as error:
        raise OutputError(
            f"{folder.parent}: cannot be written ({error.strerror or error}), but the index of {location} is made "
            "there; set DINOWDS_CACHE to a folder on a local disk"
        ) from None
    return str(folder)


def _check_packing(location: str, source: Source) -> None:
    if packed := next((file for file in source.files if file.packing), None):
        raise SourceError(
            f"{packed.path}: is compressed with {packed.packing}, expected a plain tar, which is read in place; make a "
            f"dataset with 'dinowds shard {location} --out DATASET' and give that"
        )


def _identity(source: Source) -> str:
    """Hex digest of the tars and lists of a root: their paths, sizes and times."""
    files = [(file.file.resolve(), file.num_bytes, file.mtime_ns) for file in (*source.files, *source.sidecars)]
    return hashlib.sha256(repr((source.cohort, files)).encode(errors="surrogateescape")).hexdigest()[:32]


def _is_whole(folder: Path) -> bool:
    try:
        Dataset.open(folder)
    except DatasetError:
        return False
    return True


def _make(location: str, name: str, folder: Path, workers: int, report: Report | None) -> None:
    """Make the index beside `folder` and move it there: hosts may share a cache folder whose locks are each host's."""
    work = folder.with_name(f".{folder.name}.{socket.gethostname()}")
    options = ShardOptions(name=name, layout=reference.NAME, workers=workers, in_place=True, overwrite=True)
    build_dataset([location], work, options, report)
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    else:
        shutil.rmtree(work)
