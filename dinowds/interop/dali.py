"""NVIDIA DALI, `fn.readers.webdataset`: a text file beside each shard, as its tool wds2idx writes it.

v1.2 SAMPLES
ext offset size name ext offset size name …      one line a sample; offsets of payloads, bytes
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from dinowds.data.manifest import Shard
from dinowds.interop.facts import Facts
from dinowds.interop.members import Member, SampleMembers, has_member

_VERSION = "v1.2"
_LONGEST_LINE = 1 << 16
_HEAD = re.compile(rf"{re.escape(_VERSION)} ([0-9]{{1,18}})")


def refusal(facts: Facts) -> str | None:
    """Why the reader cannot take the dataset; None: it can."""
    return None if facts.outside is None else f"the shard {facts.outside} is not in shards/, where its index would lie"


def shard_index(samples: list[SampleMembers]) -> bytes:
    """The index of a shard."""
    lines = [f"{_VERSION} {len(samples)}", *(_line(sample.key, sample.members) for sample in samples), ""]
    return "\n".join(lines).encode()


def is_stale(index: Path, tar: Path, shard: Shard) -> bool:
    """Whether an index is not of `shard`: by its count, and by its first and last sample. Reads few bytes of both."""
    with open(index, "rb") as file:
        first = [file.readline(_LONGEST_LINE) for _ in range(2)]
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_LINE))
        last = file.read().splitlines()[-1:]
    count = _HEAD.fullmatch(first[0].decode("ascii", "replace").strip())
    if count is None or int(count[1]) != shard.num_samples:
        return True
    return not all(_agrees(tar, line.decode("ascii", "replace").split()) for line in [first[1], *last])


def _line(key: str, members: Iterable[Member]) -> str:
    return " ".join(f"{member.ext} {member.offset} {member.size} {key}.{member.ext}" for member in members)


def _agrees(tar: Path, words: list[str]) -> bool:
    """Whether the last member of a line is in the tar."""
    if len(words) < 4 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words[-3:-1]):
        return False
    ext, offset, size, name = words[-4:]
    return int(offset) >= 512 and has_member(tar, name, Member(ext, int(offset), int(size)))
