"""What decides whether a reader can take a dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.index.shardrows import Row
from dinowds.data.manifest import Manifest
from dinowds.errors import DatasetError
from dinowds.interop.members import LABEL, SampleMembers, read_members
from dinowds.interop.names import SHARDS
from dinowds.remote.files import is_remote, shown

_IN_SHARDS = re.compile(rf"{SHARDS}/[A-Za-z0-9_-]+\.tar")

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Facts:
    """A dataset as readers see it."""

    manifest: Manifest
    exts: tuple[str, ...]
    """Of the images, sorted."""
    fields: Counter[tuple[str, ...]]
    """Extensions of all members of a sample, in their order → samples that have these."""

    @property
    def num_unlabelled(self) -> int:
        return sum(count for exts, count in self.fields.items() if LABEL not in exts)

    @property
    def outside(self) -> str | None:
        """The first shard that is not `shards/NAME.tar`, where readers look for it; None: there is none."""
        return next((shown(shard.url) for shard in self.manifest.shards if not _IN_SHARDS.fullmatch(shard.url)), None)


def gather_facts(dataset: Dataset, report: Report) -> Facts:
    """Look at each shard once.

    Args:
        dataset: in a folder.
        report: gets (shards done, shards) now and then.

    Raises:
        DatasetError: a shard is remote, missing, or holds other samples than the index.
    """
    exts: set[str] = set()
    fields: Counter[tuple[str, ...]] = Counter()
    for shard in range(len(dataset.manifest.shards)):
        rows = _rows(dataset, shard)
        exts.update(row.ext for row in rows)
        fields.update(tuple(member.ext for member in sample.members) for sample in _members(dataset, shard, rows))
        report(shard + 1, len(dataset.manifest.shards))
    return Facts(dataset.manifest, tuple(sorted(exts)), fields)


def shard_members(dataset: Dataset, shard: int) -> list[SampleMembers]:
    """`read_members` of shard number `shard` of a dataset that `gather_facts` has seen."""
    return _members(dataset, shard, _rows(dataset, shard))


def _rows(dataset: Dataset, shard: int) -> list[Row]:
    rows = dataset.rows(shard)
    return rows.take(np.arange(len(rows)))


def _members(dataset: Dataset, shard: int, rows: list[Row]) -> list[SampleMembers]:
    url = dataset.shard_url(shard)
    if is_remote(url):
        raise DatasetError(f"{shown(url)}: lies remote, expected a shard on this host; copy the whole dataset here")
    if not rows:
        raise DatasetError(
            f"{url}: no sample of it is left, which not all readers take; write the shards anew with "
            "'dinowds withdraw --rewrite'"
        )
    return read_members(Path(url), rows, dataset.manifest.shards[shard].num_bytes)
