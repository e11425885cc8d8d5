"""Payloads of sources into memory, by place: in the order in which they lie on disk, with few open files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from dinowds.errors import SourceError

from .kernels import PIECE, GatherError, gather
from .source import SourceFile, changed, readable

_MAX_OPEN = 256
_STEP = 16 << 20
"""Bytes that are read between two reports."""

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Int64s = npt.NDArray[np.int64]


class Reader:
    """Reads payloads of `files`. Not for several threads at once."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(
        self,
        file: npt.NDArray[np.int32],
        name: Any,
        place: Int64s,
        size: Int64s,
        to: Int64s,
        out: npt.NDArray[np.uint8],
        digests: npt.NDArray[np.uint8],
        report: Callable[[int, int], None],
    ) -> None:
        """Copy payloads [P] to `to` in `out`, uint8.

        Args:
            file, name, place, size: of each payload; `name` is an Arrow array of bytes, used in folders alone.
            digests: uint8 [D, 16]: gets the xxh3-128 of the first D payloads.
            report: gets (payloads, bytes) read since its last call.

        Raises:
            SourceError: a payload is no longer there, or cannot be read.
        """
        order = np.lexsort((place, file))
        ends = np.cumsum(size[order])
        start = 0
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _STEP, "right")))
            stop = min(stop, start + self._most_at_once(file[order[start:stop]]))
            part = order[start:stop]
            pieces = np.zeros(len(part), PIECE)
            pieces["digest"] = np.where(part < len(digests), part, -1)
            pieces["size"], pieces["to"] = size[part], to[part]
            with self._descriptors(file[part], name, part, size[part]) as (descriptors, in_folder):
                pieces["descriptor"] = descriptors
                pieces["offset"] = np.where(in_folder, 0, place[part])
                self._gather(pieces, out, digests, file[part])
            report(stop - start, int(ends[stop - 1]) - before)
            start = stop

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _gather(self, pieces: Any, out: Any, digests: Any, file: Any) -> None:
        try:
            gather(pieces, out, digests)
        except GatherError as error:
            path = self._files[file[error.index]].path
            if error.errno:
                raise SourceError(f"{path}: cannot be read ({os.strerror(error.errno)})") from None
            raise changed(path) from None

    def _most_at_once(self, file: npt.NDArray[np.int32]) -> int:
        """How many of these payloads, sorted by file, can be open together."""
        opened = np.ones(len(file), bool)
        opened[1:] = file[1:] != file[:-1]
        folders = np.array([self._files[index].kind == "folder" for index in file[opened].tolist()])
        opened |= np.repeat(folders, np.diff([*np.flatnonzero(opened), len(file)]))
        return max(1, int(np.searchsorted(np.cumsum(opened), _MAX_OPEN, "right")))

    @contextmanager
    def _descriptors(
        self, file: npt.NDArray[np.int32], name: Any, part: Int64s, size: Int64s
    ) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
        """An open file for each of some payloads, and which of them are files of their own."""
        descriptors, in_folder = np.empty(len(file), np.int32), np.zeros(len(file), bool)
        own: list[int] = []
        try:
            for index in np.unique(file).tolist():
                which = file == index
                if self._files[index].kind != "folder":
                    descriptors[which] = self._descriptor(index)
                    continue
                in_folder |= which
                for row in np.flatnonzero(which).tolist():
                    own.append(_open_file(self._files[index], name[int(part[row])].as_py(), int(size[row])))
                    descriptors[row] = own[-1]
            yield descriptors, in_folder
        finally:
            for descriptor in own:
                os.close(descriptor)

    def _descriptor(self, index: int) -> int:
        if index not in self._open:
            if len(self._open) >= _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            with readable(self._files[index].path):
                self._open[index] = os.open(self._files[index].file, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(index)
        return self._open[index]


def _open_file(folder: SourceFile, name: bytes, size: int) -> int:
    """Open a file of a folder, if it is the one that was listed."""
    try:
        descriptor = os.open(os.fsencode(folder.file) + b"/" + name, _FILE_FLAGS)
    except FileNotFoundError:
        raise changed(folder.path) from None
    except OSError as error:
        raise SourceError(f"{folder.path}: cannot be read ({error.strerror or error})") from None
    found = os.fstat(descriptor)
    if found.st_size != size or found.st_mtime_ns > folder.mtime_ns:
        os.close(descriptor)
        raise changed(folder.path)
    return descriptor
