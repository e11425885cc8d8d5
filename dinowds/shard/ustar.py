"""Writing USTAR files whose bytes depend on names and payloads alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dinowds.shard.tarheader import BLOCK

END_BYTES = 2 * BLOCK
"""Two zero blocks end a tar."""

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


_HEAD = b"0000644\0" + b"0000000\0" * 2
_TIME = b"00000000000\0"
_TAIL = b"0" + bytes(100) + b"ustar\00000" + bytes(64) + bytes(16) + bytes(155) + bytes(12)
_FIXED_SUM = sum(_HEAD) + sum(_TIME) + sum(_TAIL) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """The USTAR header of a file with mode 0644, owner 0 and time 0. `name` is ASCII, at most 100 bytes.

    Equal to `tarfile.TarInfo.tobuf(USTAR_FORMAT)`, but for device numbers, which some versions of tarfile write as
    zeros and some leave out: written here, shards do not depend on the version of Python.
    """
    encoded = name.encode("ascii")
    length = b"%011o\0" % size
    if len(encoded) > 100 or len(length) > 12:
        raise ValueError(f"{name!r} with {size} bytes does not fit a USTAR header")
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(length))
    return encoded.ljust(100, b"\0") + _HEAD + length + _TIME + checksum + _TAIL
