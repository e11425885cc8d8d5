"""A tar written member by member: the reference of `tarplan`, which knows all places beforehand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dinowds.shard.tarheader import BLOCK
from dinowds.shard.ustar import END_BYTES, tar_header

_FLUSH_BYTES = 1 << 20


@dataclass
class UstarWriter:
    """A USTAR file that is hashed as it is written."""

    file: BinaryIO
    _offset: int = 0
    _pending: list[bytes] = field(default_factory=list)
    _pending_bytes: int = 0
    _sha256: Any = field(default_factory=hashlib.sha256)

    def add(self, name: str, payload: bytes) -> int:
        """Add a member; the offset of its payload."""
        self._append(tar_header(name, len(payload)))
        offset = self._offset
        self._append(payload)
        self._append(bytes(-len(payload) % BLOCK))
        return offset

    def finish(self) -> tuple[int, str]:
        """Write the end; the size of the tar and its sha256."""
        self._append(bytes(END_BYTES))
        self._flush()
        return self._offset, self._sha256.hexdigest()

    def _append(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._offset += len(piece)
        self._pending_bytes += len(piece)
        if self._pending_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._sha256.update(block)
        self.file.write(block)
        self._pending, self._pending_bytes = [], 0
