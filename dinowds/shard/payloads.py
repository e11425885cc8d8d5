"""Reading members of sources by place: at most a few open files, exact sizes or an error."""

from __future__ import annotations

import os
from collections import OrderedDict

from dinowds.errors import SourceError

from .images import looks_like_image
from .sources import Source, changed

_MAX_OPEN = 64
_LARGE = 64 << 20
_MAX_PREAD = 1 << 30


class Payloads:
    """Reads members of `sources`, whose `file` is a folder or an uncompressed tar. Not for several threads."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, source: int, name: bytes, place: int, size: int) -> bytes | None:
        """The payload of a member; None for a large one that does not begin like an image, so is not read at all.

        Raises SourceError where there are no longer `size` bytes, they cannot be read, or a folder's file is newer
        than all files were when the folder was listed.
        """
        where = self._sources[source]
        try:
            if where.kind != "folder":
                return self._read_exactly(where, self._descriptor(source), place, size)
            descriptor = os.open(os.fsencode(where.file) + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                found = os.fstat(descriptor)
                if found.st_size != size or found.st_mtime_ns > where.mtime_ns:
                    raise changed(where)
                return self._read_exactly(where, descriptor, 0, size)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise changed(where) from None
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
            self._open[source] = os.open(self._sources[source].file, os.O_RDONLY)
        self._open.move_to_end(source)
        return self._open[source]

    @staticmethod
    def _read_exactly(where: Source, descriptor: int, offset: int, size: int) -> bytes | None:
        if size > _LARGE and not looks_like_image(os.pread(descriptor, 16, offset)):
            return None
        payload = os.pread(descriptor, min(size, _MAX_PREAD), offset)
        while len(payload) < size:
            more = os.pread(descriptor, min(size - len(payload), _MAX_PREAD), offset + len(payload))
            if not more:
                raise changed(where)
            payload += more
        return payload
