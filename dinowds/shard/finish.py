"""The end of a run: finished shards get their names, and the index is written; the manifest last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import (
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
    Kind,
    Manifest,
    Shard,
    write_manifest,
)
from dinowds.errors import OutputError
from dinowds.files import atomic_write, sha256_of

from .choice.quality import find_duplicates
from .listing import Listing
from .output import shard_url
from .records import decode_name
from .scanning import Scanned
from .workspace import Workspace
from .writer import DoneShard, read_rows


def write_dataset_index(
    workspace: Workspace,
    kind: Kind,
    name: str,
    seed: int,
    is_shuffled: bool,
    cohorts: Sequence[str],
    label_names: tuple[str, ...],
    scanned: Sequence[Scanned],
    num_shards: int,
    metadata: dict[str, Any],
) -> Manifest:
    """Write the index and the manifest of a run whose shards are all done into the work folder.

    Raises OutputError where a finished shard is gone.
    """
    shards: list[Shard] = []
    counts: Counter[str] = Counter()
    digests: list[npt.NDArray[np.uint8]] = []
    schema = _done(workspace, 0).rows.schema
    with (
        atomic_write(workspace.folder / SAMPLES_NAME) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for index in range(num_shards):
            done = _done(workspace, index)
            writer.write_table(_with_shard(done.rows, index), row_group_size=len(done.rows))
            for count in done.rows["cohort"].value_counts().to_pylist():
                counts[count["values"]] += count["counts"]
            digests.append(np.frombuffer(done.rows["digest"].combine_chunks().buffers()[1], np.uint8).reshape(-1, 16))
            shards.append(Shard(shard_url(name, index), len(done.rows), done.num_bytes, done.sha256))
    duplicates = int(np.count_nonzero(find_duplicates(np.concatenate(digests))))
    manifest = Manifest(
        name=name,
        kind=kind,
        shards=tuple(shards),
        cohorts={cohort: counts[cohort] for cohort in cohorts},
        label_names=label_names,
        seed=seed,
        samples_sha256=sha256_of(workspace.folder / SAMPLES_NAME),
        samples_footer_sha256=footer_sha256(workspace.folder / SAMPLES_NAME),
        quarantined=_write_quarantine(workspace, scanned),
        metadata=metadata | ({"duplicates": duplicates} if duplicates else {}),
        shuffled=is_shuffled,
    )
    write_manifest(workspace.folder, manifest)
    return manifest


def _done(workspace: Workspace, index: int) -> DoneShard:
    done = read_rows(workspace.folder, index)
    if done is None:
        raise OutputError(f"{workspace.output}: its unfinished shard {index} is damaged; give the same command again")
    return done


def _with_shard(rows: Any, shard: int) -> Any:
    position = SAMPLES_SCHEMA.get_field_index("shard")
    return rows.set_column(position, SAMPLES_SCHEMA.field("shard"), pa.array(np.full(len(rows), shard, np.int32)))


def _write_quarantine(workspace: Workspace, scanned: Sequence[Scanned]) -> dict[str, int]:
    """Write quarantine.jsonl, file by file in the order of the file; the number of lines of each reason."""
    reasons: Counter[str] = Counter()
    with atomic_write(workspace.folder / QUARANTINE_NAME) as out:
        for file, listing in scanned:
            for member, reason in _left_out(listing):
                line = {"source": file.path, "member": member, "reason": reason}
                out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                reasons[reason] += 1
    return dict(sorted(reasons.items()))


def _left_out(listing: Listing) -> Iterator[tuple[str, str]]:
    for batch in listing.quarantine.to_batches(max_chunksize=1 << 16):
        for member, reason in zip(batch["member"].to_pylist(), batch["reason"].to_pylist(), strict=True):
            yield decode_name(member), reason
