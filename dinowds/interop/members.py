"""Where each member of each sample lies in a shard.

Shards of dinowds hold `KEY.EXT` and, where there is a label, `KEY.cls` directly behind it: their places follow from
`samples.parquet`. Where these fill the shard to its last byte there is no room for other members, and no more is read
than the headers of the first and the last sample. Any other shard is walked, header by header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from dinowds.data.index.shardrows import Row
from dinowds.errors import DatasetError
from dinowds.files import open_regular

BLOCK = 512
END_BYTES = 2 * BLOCK
LABEL = "cls"

_NAME = re.compile(r"(?P<key>(?!__)(?:[!-~]*/)?[!-\-0-~]+)\.(?P<ext>[!-.0-~]+)")
"""Printable ASCII without spaces, '__' not first; the key goes to the first dot after the last slash."""


class Member(NamedTuple):
    """`ext` is all that follows the key and a dot; `offset` and `size` are those of the payload, in bytes."""

    ext: str
    offset: int
    size: int


class SampleMembers(NamedTuple):
    """One sample; `start` is the offset of its first member's header."""

    key: str
    start: int
    members: tuple[Member, ...]

    @property
    def stop(self) -> int:
        """Where the next sample begins."""
        return _padded_end(self.members[-1])


def read_members(tar: Path, rows: Sequence[Row], num_bytes: int) -> list[SampleMembers]:
    """All members of a shard, sample by sample, in the order of the tar.

    Args:
        rows: of the shard, in file order, at least one.
        num_bytes: of the tar, as the manifest says.

    Raises:
        DatasetError: the tar is missing, of another size, not of the kind that dinowds writes, or holds other samples
            than `rows`.
    """
    try:
        descriptor = open_regular(tar)
    except OSError as error:
        raise DatasetError(f"{tar}: cannot be read ({error.strerror}); copy the dataset again") from None
    try:
        if (found := os.fstat(descriptor).st_size) != num_bytes:
            raise DatasetError(f"{tar}: has {found} bytes, the manifest says {num_bytes}; copy the dataset again")
        samples = computed_members(rows)
        if not (_fills(samples, num_bytes) and _is_there(descriptor, tar, {samples[0], samples[-1]})):
            samples = walked_members(descriptor, tar)
            _compare(tar, rows, samples)
        return samples
    finally:
        os.close(descriptor)


def computed_members(rows: Sequence[Row]) -> list[SampleMembers]:
    """Where the members lie if there are only images and labels."""
    return [_computed(row) for row in rows]


def walked_members(descriptor: int, tar: Path) -> list[SampleMembers]:
    """Where the headers say that the members lie; `tar` is for messages."""
    walk = _walk(descriptor, tar, 0)
    groups = [(key, [member for _, member in group]) for key, group in groupby(walk, lambda pair: pair[0])]
    return [SampleMembers(key, members[0].offset - BLOCK, tuple(members)) for key, members in groups]


def has_member(tar: Path, name: str, member: Member) -> bool:
    """Whether the header before `member` is that of a file with its name and size."""
    try:
        descriptor = open_regular(tar)
    except OSError:
        return False
    try:
        key, found = next(_walk(descriptor, tar, member.offset - BLOCK), ("", None))
        return found == member and f"{key}.{member.ext}" == name
    except (DatasetError, OSError):
        return False
    finally:
        os.close(descriptor)


def _computed(row: Row) -> SampleMembers:
    image = Member(row.ext, row.offset, row.size)
    if row.label < 0:
        return SampleMembers(row.key, row.offset - BLOCK, (image,))
    label = Member(LABEL, _padded_end(image) + BLOCK, len(str(row.label)))
    return SampleMembers(row.key, row.offset - BLOCK, (image, label))


def _padded_end(member: Member) -> int:
    return member.offset + member.size + -member.size % BLOCK


def _fills(samples: Sequence[SampleMembers], num_bytes: int) -> bool:
    starts = [sample.start for sample in samples]
    return [0, *(sample.stop for sample in samples)] == [*starts, num_bytes - END_BYTES]


def _is_there(descriptor: int, tar: Path, samples: set[SampleMembers]) -> bool:
    for sample in samples:
        headers = _walk(descriptor, tar, sample.start)
        if [next(headers, None) for _ in sample.members] != [(sample.key, member) for member in sample.members]:
            return False
    return True


def _walk(descriptor: int, tar: Path, offset: int) -> Iterator[tuple[str, Member]]:
    """(key, member) of each header from `offset` on, up to the first block of zeros."""
    while (header := os.pread(descriptor, BLOCK, offset)) != bytes(BLOCK):
        key, ext, size = _parse(header, tar, offset)
        member = Member(ext, offset + BLOCK, size)
        yield key, member
        offset = _padded_end(member)


def _parse(header: bytes, tar: Path, offset: int) -> tuple[str, str, int]:
    """Key, extension and size; not all readers understand more of tar than this."""
    if len(header) < BLOCK:
        raise DatasetError(f"{tar}: ends without its end marker; copy the dataset again")
    name = _NAME.fullmatch(header[:100].rstrip(b"\0").decode("ascii", "replace"))
    size = re.fullmatch(rb"([0-7]+)[ \0]*", header[124:136])
    is_plain = header[156:157] in (b"0", b"\0") and header[257:262] == b"ustar" and not header[345:500].strip(b"\0")
    if name is None or size is None or not is_plain:
        raise DatasetError(
            f"{tar}: the member at byte {offset} is not a plain file KEY.EXT with a name of up to 100 printable ASCII "
            "characters, which not all readers take; make the dataset with 'dinowds shard', which copies its sources"
        )
    return name["key"], name["ext"], int(size[1], 8)


def _compare(tar: Path, rows: Sequence[Row], samples: Sequence[SampleMembers]) -> None:
    indexed = {row.key: Member(row.ext, row.offset, row.size) for row in rows}
    found = {sample.key: sample for sample in samples}
    if indexed.keys() < found.keys():
        raise DatasetError(
            f"{tar}: holds {len(samples)} samples, of which samples.parquet lists {len(rows)}; other readers would "
            "give the others too; remove withdrawn ones with 'dinowds withdraw --rewrite', or copy those that "
            "are listed with 'dinowds shard DATASET --out NEW'"
        )
    wrong = [key for key, image in indexed.items() if key not in found or image not in found[key].members]
    if wrong or len(found) < len(samples) or list(indexed) != [sample.key for sample in samples]:
        key = f" (key {wrong[0]})" if wrong else ""
        raise DatasetError(
            f"{tar}: its members are not the samples that samples.parquet lists{key}; other readers would give other "
            "keys or bytes; 'dinowds inspect --verify' says where, for shards that 'dinowds shard' wrote"
        )
