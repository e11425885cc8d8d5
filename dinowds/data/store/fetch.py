"""A host's own copy of a remote file that does not change."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dinowds.data.index.unused import mark_used, remove_unused
from dinowds.errors import DatasetError, StorageError
from dinowds.files import atomic_write, cache_folder, waiting_lock
from dinowds.remote.files import RemoteFiles, shown

_PIECE = 8 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(files: RemoteFiles, url: str, sha256: str, suffix: str) -> Path:
    """The local copy of the file at `url`, named by its hex `sha256`; fetched once for all processes of a host.

    Raises:
        DatasetError: what came is not what `sha256` says, or the cache folder cannot be written.
        StorageError: the file cannot be read.
    """
    if not _SHA256.fullmatch(sha256):
        raise DatasetError(
            f"{shown(url)}: its sha256 is given as {sha256!r}, expected 64 hex digits; make the dataset again"
        )
    path = cache_folder() / "index" / f"{sha256}{suffix}"
    if path.exists():
        mark_used(path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                remove_unused(path.parent)
                _download(files, url, sha256, path)
    except StorageError:  # a missing one is an OSError too
        raise
    except OSError as error:
        raise DatasetError(
            f"{path.parent}: cannot be written ({error.strerror or error}), but the index of a remote dataset is "
            "copied there; set DINOWDS_CACHE to a folder on a local disk"
        ) from None
    return path


def _download(files: RemoteFiles, url: str, sha256: str, path: Path) -> None:
    size, digest = files.size(url), hashlib.sha256()
    with atomic_write(path) as file:
        for start in range(0, size, _PIECE):
            piece = files.read(url, start, min(start + _PIECE, size))
            digest.update(piece)
            file.write(piece)
        if digest.hexdigest() != sha256:
            raise DatasetError(
                f"{shown(url)}: its sha256 is {digest.hexdigest()}, expected {sha256}; copy the dataset again"
            )
