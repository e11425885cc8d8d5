"""`--append`: what a dataset that is there asks of the samples that come to it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dinowds.config import Kind
from dinowds.data.manifest import Manifest
from dinowds.errors import SourceError
from dinowds.shard.choice import Chosen
from dinowds.shard.outputs.output import shard_index, shard_url
from dinowds.shard.write.arrange import Int64s

_COUNTS = ("skipped", "dropped", "quality")


def check_append(root: str, before: Manifest, kind: Kind, cohorts: Sequence[str]) -> None:
    """Raises SourceError where samples of these cohorts cannot go into the dataset at `root`."""
    if kind != before.kind:
        raise SourceError(f"{root}: has {before.kind}s, and the sources have {kind}s; a dataset has one kind: make two")
    if known := [cohort for cohort in cohorts if cohort in before.cohorts]:
        raise SourceError(
            f"{root}: has the cohort {known[0]!r} already; nothing was added. If these are other samples, give their "
            "cohort another name with --cohort"
        )


def extend_labels(before: Manifest, chosen: Chosen) -> Chosen:
    """The labels numbered as in the dataset, whose shards hold their numbers; new names get the next ones."""
    names = [*before.label_names, *(name for name in chosen.label_names if name not in before.label_names)]
    numbers: Int64s = np.array([*map(names.index, chosen.label_names), -1], np.int64)
    return replace(chosen, labels=numbers[chosen.labels], label_names=tuple(names))


def next_shard(before: Manifest) -> int:
    """The number of the first new shard: above that of every shard with the dataset's own name."""
    own = [shard.url for shard in before.shards if _is_own(before.name, shard.url)]
    return 1 + max(map(shard_index, own), default=len(before.shards) - 1)


def _is_own(name: str, url: str) -> bool:
    digits = url.removesuffix(".tar").rpartition("-")[2]
    return digits.isdecimal() and url == shard_url(name, int(digits))


def join_manifests(before: Manifest, added: Manifest) -> Manifest:
    """What is known of both, without counts of samples. The new samples lie behind the old: not all are mixed."""
    metadata: dict[str, Any] = {**added.metadata, **before.metadata}
    for name in _COUNTS:
        if name in metadata:
            both = Counter(before.metadata.get(name, {})) + Counter(added.metadata.get(name, {}))
            metadata[name] = dict(sorted(both.items()))
    if cohorts := {**before.metadata.get("cohorts", {}), **added.metadata.get("cohorts", {})}:
        metadata["cohorts"] = cohorts
    return replace(
        before,
        cohorts={**before.cohorts, **added.cohorts},
        label_names=added.label_names,
        metadata=metadata,
        shuffled=False,
    )
