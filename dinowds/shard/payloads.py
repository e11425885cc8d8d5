"""Reading members of sources by place: at most a few open files, exact sizes or an error."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from dinowds.errors import SourceError

from .images import looks_like_image

_MAX_OPEN = 64
_LARGE = 64 << 20
_MAX_PREAD = 1 << 30


@dataclass(frozen=True)
class PayloadSource:
    """Where a source's payloads lie. `path` and `cohort` are what the user knows it by.

    `data` is an uncompressed tar, or the folder itself where `is_folder`.
    """

    path: str
    cohort: str
    data: Path
    is_folder: bool


class Payloads:
    """Reads members of `sources`. Not for several threads."""

    def __init__(self, sources: tuple[PayloadSource, ...]) -> None:
        self._sources = sources
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, source: int, name: bytes, place: int, size: int) -> bytes | None:
        """The payload of a member; None for a large one that does not begin like an image, so is not read at all.

        Raises SourceError where there are no longer `size` bytes, or they cannot be read.
        """
        where = self._sources[source]
        try:
            if not where.is_folder:
                return self._read_exactly(where, self._descriptor(source), place, size)
            descriptor = os.open(os.fsencode(where.data) + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_size != size:
                    raise SourceError(_changed(where))
                return self._read_exactly(where, descriptor, 0, size)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise SourceError(_changed(where)) from None
        except OSError as error:
            raise SourceError(f"{where.path}: cannot be read ({error.strerror or error})") from None

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, source: int) -> int:
        if source not in self._open:
            if len(self._open) >= _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[source] = os.open(self._sources[source].data, os.O_RDONLY)
        self._open.move_to_end(source)
        return self._open[source]

    @staticmethod
    def _read_exactly(where: PayloadSource, descriptor: int, offset: int, size: int) -> bytes | None:
        if size > _LARGE and not looks_like_image(os.pread(descriptor, 16, offset)):
            return None
        payload = os.pread(descriptor, min(size, _MAX_PREAD), offset)
        while len(payload) < size:
            more = os.pread(descriptor, min(size - len(payload), _MAX_PREAD), offset + len(payload))
            if not more:
                raise SourceError(_changed(where))
            payload += more
        return payload


def _changed(where: PayloadSource) -> str:
    return f"{where.path}: changed while it was read; run the command again once nothing writes to it"
