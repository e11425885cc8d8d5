"""Writing USTAR files whose bytes depend on names and payloads alone."""

from __future__ import annotations

from dinowds.shard.tarheader import BLOCK

END_BYTES = 2 * BLOCK
"""Two zero blocks end a tar."""

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
