"""The end of a run: the index of all shards, the quarantine, and the manifest that describes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import QUARANTINE_NAME, SAMPLES_NAME, Manifest, Shard
from dinowds.errors import OutputError
from dinowds.files import atomic_write, sha256_of
from dinowds.shard.choice.quality import find_duplicates
from dinowds.shard.outputs.workspace import Workspace
from dinowds.shard.records import decode_name
from dinowds.shard.sources.listing import Listing
from dinowds.shard.sources.scanning import Scanned
from dinowds.shard.write.indexfile import IndexReader, IndexWriter, joined_schema, write_index
from dinowds.shard.write.writer import DoneShard, read_rows


class RunIndex:
    """samples.parquet of a run: shard after shard, in the order of their numbers, whenever they are done.

    Args:
        first: the number of the run's first shard.
        before: of the dataset in the output that this run adds to.
        opened: closes the file.
    """

    def __init__(self, workspace: Workspace, first: int, before: Manifest | None, opened: ExitStack) -> None:
        self._workspace, self._before, self._opened = workspace, before, opened
        self._next = first
        self._waiting: dict[int, str] = {}
        self._writer: IndexWriter | None = None
        self.shards = list(before.shards) if before else []
        """All that are in the index."""
        self.cohorts = Counter(before.cohorts if before else {})

    def take(self, number: int, url: str) -> None:
        """Shard `number`, at `url` in the dataset, is done. For one thread at a time.

        Raises:
            OutputError: a finished shard is gone.
            DatasetError: the index that the run adds to cannot be read, or does not fit.
        """
        self._waiting[number] = url
        while self._next in self._waiting:
            self._write(_done(self._workspace, self._next), self._waiting.pop(self._next))
            self._next += 1

    def _write(self, done: DoneShard, url: str) -> None:
        if self._writer is None:
            self._writer = self._open(done.rows.schema)
        self._writer.write(done.rows)
        for count in done.rows["cohort"].value_counts().to_pylist():
            self.cohorts[count["values"]] += count["counts"]
        self.shards.append(Shard(url, len(done.rows), done.num_bytes, done.sha256))

    def _open(self, schema: Any) -> IndexWriter:
        """With the rows that there were."""
        root, path = self._workspace.output.root, self._workspace.folder / SAMPLES_NAME
        if self._before is None:
            return self._opened.enter_context(write_index(path, schema))
        with closing(IndexReader(root / SAMPLES_NAME, self._before)) as old:
            schema = joined_schema([old.schema, schema], [str(root), "the new samples"])
            writer = self._opened.enter_context(write_index(path, schema))
            for group in range(len(self._before.shards)):
                writer.write(old.read(group))
        return writer


@contextmanager
def open_index(workspace: Workspace, first: int, before: Manifest | None) -> Iterator[RunIndex]:
    """A `RunIndex` that is there, in the work folder, when the context has ended."""
    with ExitStack() as opened:
        yield RunIndex(workspace, first, before, opened)


def finish_manifest(
    workspace: Workspace,
    manifest: Manifest,
    index: RunIndex,
    scanned: Sequence[Scanned],
    before: Manifest | None = None,
) -> Manifest:
    """Write quarantine.jsonl into the work folder; the whole manifest.

    Args:
        manifest: what is known of the dataset; its cohorts without counts.
        index: of all its shards, and closed.
        before: of the dataset in the output that this run adds to.
    """
    samples = workspace.folder / SAMPLES_NAME
    metadata = dict(manifest.metadata)
    if duplicates := int(np.count_nonzero(find_duplicates(_digests(samples)))):
        metadata["duplicates"] = duplicates
    reasons = _write_quarantine(workspace, scanned, before)
    return replace(
        manifest,
        shards=tuple(index.shards),
        cohorts={cohort: index.cohorts[cohort] for cohort in manifest.cohorts},
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


def _digests(samples: Path) -> npt.NDArray[np.uint8]:
    """uint8 [N, 16]."""
    column = pq.read_table(samples, columns=["digest"])["digest"].combine_chunks()
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
