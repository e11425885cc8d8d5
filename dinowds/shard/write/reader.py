"""Payloads of sources into memory, by place."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from dinowds.errors import SourceError
from dinowds.files import open_regular, reading_advice
from dinowds.shard.kernels import PIECE, GatherError, gather
from dinowds.shard.records import decode_name
from dinowds.shard.sources.source import SourceFile, changed, readable

_AT_ONCE = 128
"""Files of a folder that are open together."""

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Int64s = npt.NDArray[np.int64]


class Reader:
    """Reads payloads of `files`; keeps up to `most_open` of these open. Not for several threads at once."""

    def __init__(self, files: Sequence[SourceFile], most_open: int = 256) -> None:
        self._files = files
        self._is_folder = np.array([file.kind == "folder" for file in files])
        self._most_open = most_open
        self._open: OrderedDict[int, int] = OrderedDict()
        self._rooms: dict[int, npt.NDArray[np.uint8]] = {}

    def room(self, size: int, place: int = 0) -> npt.NDArray[np.uint8]:
        """uint8 [size], with anything in it: of each `place` always the same memory, for fresh memory comes page by
        page.
        """
        if place not in self._rooms or len(self._rooms[place]) < size:
            self._rooms.pop(place, None)
            self._rooms[place] = np.empty(size, np.uint8)
        return self._rooms[place][:size]

    def read(
        self,
        file: npt.NDArray[np.int32],
        names: Any,
        row: Int64s,
        place: Int64s,
        size: Int64s,
        to: Int64s,
        digest: Int64s,
        out: npt.NDArray[np.uint8],
        digests: npt.NDArray[np.uint8],
    ) -> None:
        """Copy payloads [P] to `to` in `out`, uint8.

        Args:
            file, place, size: of each payload.
            names, row: of a payload in a folder, its file's name is `names[row]`; an Arrow array of bytes.
            digest: the row of `digests`, uint8 [D, 16], that gets the payload's xxh3-128; -1 for none.

        Raises:
            SourceError: a payload is no longer there, or cannot be read.
        """
        start = 0
        for stop in self._stops(file):
            part = slice(start, stop)
            pieces = np.empty(stop - start, PIECE)
            for name, values in (("size", size), ("to", to), ("digest", digest), ("offset", place)):
                pieces[name] = values[part]
            with self._descriptors(file[part], names, row[part], size[part]) as descriptors:
                pieces["descriptor"] = descriptors
                pieces["offset"][self._is_folder[file[part]]] = 0
                self._gather(pieces, out, digests, file[part])
            start = stop

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _stops(self, file: npt.NDArray[np.int32]) -> list[int]:
        """Ends of runs of payloads whose files can be open together."""
        if not self._is_folder[file].any() and len(self._files) <= self._most_open:
            return [len(file)] if len(file) else []
        step = min(_AT_ONCE, self._most_open)
        return [*range(step, len(file), step), len(file)] if len(file) else []

    def _gather(self, pieces: Any, out: Any, digests: Any, file: Any) -> None:
        try:
            gather(pieces, out, digests)
        except GatherError as error:
            path = self._files[file[error.index]].path
            if error.errno:
                raise SourceError(f"{path}: cannot be read ({os.strerror(error.errno)})") from None
            raise changed(path) from None

    @contextmanager
    def _descriptors(
        self, file: npt.NDArray[np.int32], names: Any, row: Int64s, size: Int64s
    ) -> Iterator[npt.NDArray[np.int32]]:
        """An open file for each of some payloads."""
        files, which = np.unique(file, return_inverse=True)
        descriptors = np.array([-1 if self._is_folder[i] else self._descriptor(i) for i in files.tolist()], np.int32)
        descriptors = descriptors[which]
        own: list[int] = []
        try:
            for at in np.flatnonzero(descriptors < 0).tolist():
                own.append(_open_file(self._files[file[at]], names[int(row[at])].as_py(), int(size[at])))
                descriptors[at] = own[-1]
            yield descriptors
        finally:
            for descriptor in own:
                os.close(descriptor)

    def _descriptor(self, index: int) -> int:
        if index not in self._open:
            if len(self._open) >= self._most_open:
                os.close(self._open.popitem(last=False)[1])
            with readable(self._files[index].path):
                self._open[index] = open_regular(self._files[index].file)
        self._open.move_to_end(index)
        return self._open[index]


def allow_open_files(wanted: int) -> int:
    """Raise this process's limit of open files towards `wanted`; how many sources may be open, which leaves room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard - spare)
    if wanted + spare > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + spare, hard))
        soft = wanted + spare
    return max(_AT_ONCE, min(wanted, soft - spare))


def _open_file(folder: SourceFile, name: bytes, size: int) -> int:
    """Open a file of a folder, if it is the one that was listed."""
    path = f"{folder.path}/{decode_name(name)}"
    try:
        descriptor = os.open(os.fsencode(folder.file) + b"/" + name, _FILE_FLAGS)
    except FileNotFoundError:
        raise changed(path) from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}){reading_advice(error)}") from None
    found = os.fstat(descriptor)
    if found.st_size != size or found.st_mtime_ns > folder.mtime_ns:
        os.close(descriptor)
        raise changed(path)
    return descriptor
