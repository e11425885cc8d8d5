"""The end of a run: the index of all shards, the quarantine, and the manifest that describes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import QUARANTINE_NAME, SAMPLES_NAME, Manifest, Shard
from dinowds.errors import OutputError
from dinowds.files import atomic_write, sha256_of
from dinowds.shard.choice.quality import find_duplicates
from dinowds.shard.outputs.workspace import Workspace
from dinowds.shard.records import decode_name
from dinowds.shard.sources.listing import Listing
from dinowds.shard.sources.scanning import Scanned
from dinowds.shard.write.indexfile import IndexReader, joined_schema, write_index
from dinowds.shard.write.writer import DoneShard, read_rows


def write_dataset_index(
    workspace: Workspace,
    manifest: Manifest,
    shards: Mapping[int, str],
    scanned: Sequence[Scanned],
    before: Manifest | None = None,
) -> Manifest:
    """Write samples.parquet and quarantine.jsonl of a run whose shards are all done into the work folder.

    Args:
        manifest: what is known of the dataset; its cohorts without counts.
        shards: number of a shard in the work folder → its URL.
        before: of the dataset in the output that this run adds to.

    Returns:
        The whole manifest.

    Raises:
        OutputError: a finished shard is gone.
    """
    counts: Counter[str] = Counter(before.cohorts if before else {})
    digests: list[npt.NDArray[np.uint8]] = []
    written = list(before.shards) if before else []
    schema = _done(workspace, next(iter(shards))).rows.schema
    with ExitStack() as stack:
        root = workspace.output.root
        old = stack.enter_context(closing(IndexReader(root / SAMPLES_NAME, before))) if before else None
        if old is not None:
            schema = joined_schema([old.schema, schema], [str(root), "the new samples"])
        index = stack.enter_context(write_index(workspace.folder / SAMPLES_NAME, schema))
        for group in range(len(written)):
            assert old is not None
            rows = old.read(group)
            digests.append(_digests(rows))
            index.write(rows)
        for number, url in shards.items():
            done = _done(workspace, number)
            digests.append(_digests(done.rows))
            index.write(done.rows)
            for count in done.rows["cohort"].value_counts().to_pylist():
                counts[count["values"]] += count["counts"]
            written.append(Shard(url, len(done.rows), done.num_bytes, done.sha256))
    metadata = dict(manifest.metadata)
    if duplicates := int(np.count_nonzero(find_duplicates(np.concatenate(digests)))):
        metadata["duplicates"] = duplicates
    reasons = _write_quarantine(workspace, scanned, before)
    samples = workspace.folder / SAMPLES_NAME
    return replace(
        manifest,
        shards=tuple(written),
        cohorts={cohort: counts[cohort] for cohort in manifest.cohorts},
        samples_sha256=sha256_of(samples),
        samples_footer_sha256=footer_sha256(samples),
        quarantined=dict(sorted(reasons.items())),
        metadata=metadata,
    )


def _done(workspace: Workspace, number: int) -> DoneShard:
    done = read_rows(workspace.folder, number)
    if done is None:
        raise OutputError(f"{workspace.output}: its unfinished shard {number} is damaged; give the same command again")
    return done


def _digests(rows: Any) -> npt.NDArray[np.uint8]:
    """uint8 [N, 16]."""
    column = rows["digest"].combine_chunks()
    values = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 16)
    return values[column.offset : column.offset + len(column)]


def _write_quarantine(workspace: Workspace, scanned: Sequence[Scanned], before: Manifest | None) -> Counter[str]:
    """Write quarantine.jsonl, file by file in the order of the file, after what was there; lines of each reason."""
    reasons: Counter[str] = Counter(before.quarantined if before else {})
    with atomic_write(workspace.folder / QUARANTINE_NAME) as out:
        out.writelines(_lines(workspace.output.root / QUARANTINE_NAME) if before else ())
        for file, listing in scanned:
            for member, reason in _left_out(listing):
                line = {"source": file.path, "member": member, "reason": reason}
                out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                reasons[reason] += 1
    return reasons


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def _left_out(listing: Listing) -> Iterator[tuple[str, str]]:
    for batch in listing.quarantine.to_batches(max_chunksize=1 << 16):
        for member, reason in zip(batch["member"].to_pylist(), batch["reason"].to_pylist(), strict=True):
            yield decode_name(member), reason
