"""A folder of image files, in any folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from dinowds.shard.sources.layouts import nothing_known
from dinowds.shard.sources.source import Request, Source, SourceFile, path_text
from dinowds.shard.sources.tarscan import DIRECTORY, FILE, Member

NAME = "folder"

facts = nothing_known


def recognises(path: Path) -> bool:
    """Any folder."""
    return path.is_dir()


def open_source(path: Path, request: Request) -> Source:
    """One folder; its name is the cohort."""
    file = SourceFile(path_text(path), path, "folder")
    return Source(request.text, request.cohort or folder_name(path), NAME, (file,))


def folder_name(path: Path) -> str:
    """The name of a folder, also of '.'; 'root' for the root."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return path_text(name) if name else "root"


class Times:
    """When the files of a folder were last changed."""

    def __init__(self) -> None:
        self.digest = xxhash.xxh3_128()
        self.newest_ns = 0

    def add(self, mtime_ns: int) -> None:
        """Note one file's time."""
        self.digest.update(mtime_ns.to_bytes(8, "big", signed=True))
        self.newest_ns = max(self.newest_ns, mtime_ns)


def walk(root: Path, times: Times) -> Iterator[Member]:
    """The files under a folder, sorted by name folder by folder; links are not followed. The place is the position.

    `times` gets each file's time of change.
    """
    pending: list[tuple[bytes, Iterator[os.DirEntry[bytes]]]] = [(b"", iter(_sorted_entries(os.fsencode(root))))]
    position = 0
    while pending:
        prefix, entries = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        name = prefix + entry.name
        if entry.is_symlink():
            yield "symbolic link", name, position, 0
        elif entry.is_dir(follow_symlinks=False):
            yield DIRECTORY, name, position, 0
            pending.append((name + b"/", iter(_sorted_entries(entry.path))))
        elif entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            times.add(found.st_mtime_ns)
            yield FILE, name, position, found.st_size
        else:
            yield "device or pipe", name, position, 0
        position += 1


def _sorted_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
