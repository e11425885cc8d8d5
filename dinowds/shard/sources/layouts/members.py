"""The members of a tar, for layouts that look through them themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from dinowds.shard.sources.tarscan import FILE, Member, Members, scan_tar

Read = Callable[[int, int], bytes]
"""(place, size) → up to so many bytes of an uncompressed tar; fewer only at its end."""

_BATCH = 1 << 16
_MOST_BYTES = 1 << 60


def scan_members(read: Read, path: str) -> Iterator[Member]:
    """All members of a tar, one by one; `path` names it in errors.

    Raises:
        SourceError: it is cut short or damaged.
    """
    for found in scan_tar(_Data(read), path):
        if isinstance(found, Members):
            for name, place, size in zip(
                found.names.to_pylist(), found.places.tolist(), found.sizes.tolist(), strict=True
            ):
                yield FILE, name, place, size
        else:
            yield found


def list_files(read: Read, path: str, others: list[Member]) -> Members:
    """All ordinary files of a tar, in its order; `others` gets the other members.

    Raises:
        SourceError: it is cut short or damaged.
    """
    runs = [_run([])]
    pending: list[Member] = []
    for found in scan_tar(_Data(read), path):
        if isinstance(found, Members):
            runs += [_run(pending), found]
            pending = []
        elif found[0] != FILE:
            others.append(found)
        else:
            pending.append(found)
            if len(pending) >= _BATCH:
                runs.append(_run(pending))
                pending = []
    names, places, sizes = zip(*runs, _run(pending), strict=True)
    return Members(pa.concat_arrays(names), np.concatenate(places), np.concatenate(sizes))


def _run(members: list[Member]) -> Members:
    _, names, places, sizes = zip(*members, strict=True) if members else ((), (), (), ())
    return Members(pa.array(names, pa.large_binary()), np.array(places, np.int64), np.array(sizes, np.int64))


class _Data:
    """`TarData` of a function that reads."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def size(self) -> int:
        return bisect_left(range(_MOST_BYTES), True, key=lambda place: not self.read(place, 1))
