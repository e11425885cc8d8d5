"""The end of a run: finished shards get their names, and the index is written; the manifest last."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import (
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
    Manifest,
    Shard,
    write_manifest,
)
from dinowds.errors import OutputError, SourceError
from dinowds.files import atomic_write, sha256_of

from .layout import Candidates
from .listing import Listing
from .output import shard_url
from .records import decode_name
from .sources import Source
from .workspace import Workspace
from .writer import DoneShard, Quarantined, read_rows


def finish_dataset(
    workspace: Workspace,
    name: str,
    seed: int,
    is_shuffled: bool,
    sources: Sequence[Source],
    listings: Sequence[Listing],
    candidates: Candidates,
    num_shards: int,
) -> Manifest:
    """Write the index of a run whose shards are all done, and publish both. Can be called again where it was ended.

    Raises:
        SourceError: not one candidate was a whole image.
        OutputError: a finished shard is gone.
    """
    shards: list[Shard] = []
    quarantined: list[Quarantined] = []
    cohorts: Counter[str] = Counter()
    with (
        atomic_write(workspace.folder / SAMPLES_NAME) as file,
        pq.ParquetWriter(file, SAMPLES_SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for index in range(num_shards):
            done = _done(workspace, index)
            quarantined.extend(done.quarantined)
            if not len(done.rows):
                continue
            writer.write_table(_with_shard(done.rows, len(shards)), row_group_size=len(done.rows))
            for count in done.rows["cohort"].value_counts().to_pylist():
                cohorts[count["values"]] += count["counts"]
            shards.append(Shard(shard_url(name, index), len(done.rows), done.num_bytes, done.sha256))
    if not shards:
        reasons = ", ".join(
            f"{count} × {reason}" for reason, count in _count(entry.reason for entry in quarantined).items()
        )
        raise SourceError(f"{sources[0].path}: not one image of the sources is whole ({reasons}); no dataset was made")
    skipped: Counter[str] = Counter()
    for listing in listings:
        skipped.update(listing.skipped)
    manifest = Manifest(
        name=name,
        kind="image",
        shards=tuple(shards),
        cohorts={source.cohort: cohorts[source.cohort] for source in sources},
        label_names=candidates.label_names,
        seed=seed,
        samples_sha256=sha256_of(workspace.folder / SAMPLES_NAME),
        samples_footer_sha256=footer_sha256(workspace.folder / SAMPLES_NAME),
        quarantined=_write_quarantine(workspace, sources, listings, quarantined),
        metadata={"skipped": dict(sorted(skipped.items()))} if skipped else {},
        shuffled=is_shuffled,
    )
    write_manifest(workspace.folder, manifest)
    workspace.publish(manifest)
    return manifest


def _done(workspace: Workspace, index: int) -> DoneShard:
    done = read_rows(workspace.folder, index)
    if done is None:
        raise OutputError(f"{workspace.output}: its unfinished shard {index} is damaged; give the same command again")
    return done


def _with_shard(rows: Any, shard: int) -> Any:
    position = SAMPLES_SCHEMA.get_field_index("shard")
    return rows.set_column(position, SAMPLES_SCHEMA.field("shard"), pa.array(np.full(len(rows), shard, np.int32)))


def _write_quarantine(
    workspace: Workspace, sources: Sequence[Source], listings: Sequence[Listing], quarantined: Sequence[Quarantined]
) -> dict[str, int]:
    """Write quarantine.jsonl, source by source in the order of the source; the number of lines of each reason."""
    reasons: Counter[str] = Counter()
    with atomic_write(workspace.folder / QUARANTINE_NAME) as file:
        for position, (source, listing) in enumerate(zip(sources, listings, strict=True)):
            damaged = sorted(
                (entry.place, entry.member, entry.reason) for entry in quarantined if entry.source == position
            )
            for _, member, reason in heapq.merge(_left_out(listing), damaged):
                line = {"source": source.path, "member": member, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                reasons[reason] += 1
    return dict(sorted(reasons.items()))


def _left_out(listing: Listing) -> Iterator[tuple[int, str, str]]:
    for batch in listing.quarantine.to_batches(max_chunksize=1 << 16):
        for place, member, reason in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield place, decode_name(member), reason


def _count(reasons: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))
