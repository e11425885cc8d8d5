"""Copying a shard without some of its samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from dinowds.errors import DatasetError
from dinowds.files import atomic_write, open_regular
from dinowds.shard.tarheader import BLOCK, header_name, padded, plain_file_size
from dinowds.shard.ustar import END_BYTES

_STEP = 1 << 20


@dataclass(frozen=True)
class CopiedShard:
    """A shard that was copied."""

    num_bytes: int
    sha256: str
    offsets: dict[int, int]
    """Offset of each kept member's payload in the old shard → in the new one."""


class _Member(NamedTuple):
    key: str
    start: int
    stop: int
    """Of header, payload and padding."""


def copy_samples(shard: Path, keys: Collection[str], target: Path) -> CopiedShard:
    """Write the members of the samples `keys` of a shard, in their order, to a new tar.

    A sample's members are those that readers of WebDataset take for it: what comes before the first dot of the file
    name is its key.

    Raises:
        DatasetError: the shard is not as `dinowds shard` writes it.
        OSError: it cannot be read, or the new one cannot be written.
    """
    descriptor = open_regular(shard)
    try:
        kept = [member for member in _members(shard, descriptor) if member.key in keys]
        digest = hashlib.sha256()
        with atomic_write(target) as file:
            for piece in chain(_pieces(shard, descriptor, kept), [bytes(END_BYTES)]):
                digest.update(piece)
                file.write(piece)
    finally:
        os.close(descriptor)
    ends = [0, *accumulate(member.stop - member.start for member in kept)]
    offsets = {member.start + BLOCK: end + BLOCK for member, end in zip(kept, ends, strict=False)}
    return CopiedShard(ends[-1] + END_BYTES, digest.hexdigest(), offsets)


def _pieces(shard: Path, descriptor: int, members: Sequence[_Member]) -> Iterator[bytes]:
    """The bytes of the members, neighbours together."""
    first = 0
    for place, member in enumerate(members, 1):
        if place < len(members) and members[place].start == member.stop:
            continue
        start, first = members[first].start, place
        for at in range(start, member.stop, _STEP):
            piece = os.pread(descriptor, min(_STEP, member.stop - at), at)
            if len(piece) < min(_STEP, member.stop - at):
                raise _damaged(shard, at)
            yield piece


def _members(shard: Path, descriptor: int) -> Iterator[_Member]:
    position = 0
    while (header := os.pread(descriptor, BLOCK, position)) != bytes(BLOCK):
        size = plain_file_size(header) if len(header) == BLOCK else -1
        if size < 0:
            raise _damaged(shard, position)
        name = header_name(header).decode("utf-8", "backslashreplace")
        folder, slash, base = name.rpartition("/")
        end = position + BLOCK + padded(size)
        yield _Member(folder + slash + base.partition(".")[0], position, end)
        position = end


def _damaged(shard: Path, position: int) -> DatasetError:
    return DatasetError(
        f"{shard}: byte {position} is not where a member of 'dinowds shard' begins or goes on; find the damage with "
        "'dinowds inspect --verify' and restore the shard"
    )
