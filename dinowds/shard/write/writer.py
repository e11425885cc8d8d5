"""Shards: lay out their tars, copy the payloads into them part by part, and then the rows that make them done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.manifest import SAMPLES_SCHEMA, STATISTICS
from dinowds.files import atomic_write, output_errors
from dinowds.shard.kernels import Sha256s
from dinowds.shard.outputs.local_output import size_of
from dinowds.shard.outputs.output import Output, shard_url, tar_path
from dinowds.shard.records import decode_names, sample_keys
from dinowds.shard.selecting import known_places
from dinowds.shard.sources.source import SourceFile
from dinowds.shard.write.reader import Reader
from dinowds.shard.write.tarplan import TarPlan, cut_tar, fill, plan_tar

_STEP = 4 << 20
"""Bytes of a tar that are put together at once: they stay in the processor's last cache until they are written."""

_WRITE = 256 << 10
"""Bytes that are written at once. Larger writes get larger pages of the cache, which take new memory where there are
old small ones; in a virtual machine, whose host has to find it first, that took three times as long.
"""


@dataclass(frozen=True)
class Job:
    """What all shards of a run share. Shards and rows are written in `output.work`; payloads can be read by place."""

    files: tuple[SourceFile, ...]
    cohorts: tuple[str, ...]
    key_pattern: str
    output: Output
    name: str
    """Of the dataset."""

    @property
    def folder(self) -> Path:
        return self.output.work


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number and its samples in the order of writing.

    `rows` is an Arrow table: the columns of `arrange.Images.table`, and `cohort` int32 (position in the job's cohorts),
    `label` int64 (-1 for none) and `salt` int32 (see `records.sample_keys`).
    """

    index: int
    rows: Any


@dataclass(frozen=True)
class DoneShard:
    """What the rows file of a shard says. `rows` has the columns of samples.parquet, with 0 as `shard`."""

    rows: Any
    num_bytes: int
    sha256: str


def rows_path(folder: Path, index: int) -> Path:
    """The file whose existence says that shard `index` was written whole."""
    return folder / f"shard-{index:06d}.arrow"


class Unfinished:
    """A shard that is written, but not yet done: it waits for the disk, is renamed, gets its rows, and is taken by the
    output. That can be done in another thread while the next shard is read.
    """

    def __init__(self, job: Job, task: ShardTask, done: DoneShard | None = None, file: ExitStack | None = None) -> None:
        self.index, self.num_samples = task.index, len(task.rows)
        self.num_bytes: int = pc.sum(task.rows["size"]).as_py()
        """Of its images."""
        self._job, self._done, self._file = job, done, file

    def finish(self) -> None:
        """Make it done. Raises OutputError or StorageError."""
        with output_errors(self._job.output.root):
            if self._file is not None and self._done is not None:
                self._file.close()
                write_rows(rows_path(self._job.folder, self.index), self._done)
            self._job.output.take_shard(self.index, shard_url(self._job.name, self.index))

    def abandon(self, reason: BaseException) -> None:
        """Leave nothing of it."""
        if self._file is not None:
            self._file.__exit__(type(reason), reason, None)


@dataclass(frozen=True)
class _Draft:
    """A shard that is being written: `digests`, uint8 [N, 16], of its images come with its parts."""

    task: ShardTask
    keys: Any
    plan: TarPlan
    digests: npt.NDArray[np.uint8]
    file: BinaryIO
    opened: ExitStack
    """Closes `file`."""


def write_together(
    job: Job, tasks: Sequence[ShardTask], reader: Reader, report: Callable[[int, int], None]
) -> list[Unfinished]:
    """Write one shard, or two at once, which takes less time. `report` gets samples and bytes read since its last call.

    A shard that an earlier run has written, but which the output has not taken, is not written again.

    Raises:
        SourceError: a source changed or cannot be read.
        OutputError: a shard cannot be written.
    """
    written = {task.index for task in tasks if _is_written(job, task)}
    unfinished = [Unfinished(job, task) for task in tasks if task.index in written]
    with output_errors(job.output.root), ExitStack() as stack:
        missing = [task for task in tasks if task.index not in written]
        drafts = [_draft(job, task, stack.enter_context(ExitStack())) for task in missing]
        sha256s = _write_tars(drafts, reader, report)
        done = [_done(job, draft, sha256) for draft, sha256 in zip(drafts, sha256s, strict=True)]
        for draft, rows in zip(drafts, done, strict=True):
            unfinished.append(Unfinished(job, draft.task, rows, draft.opened.pop_all()))
    return unfinished


def _is_written(job: Job, task: ShardTask) -> bool:
    before = read_rows(job.folder, task.index)
    return before is not None and size_of(tar_path(job.folder, task.index)) == before.num_bytes


def _draft(job: Job, task: ShardTask, opened: ExitStack) -> _Draft:
    keys = sample_keys_of(job, task.rows)
    file = opened.enter_context(atomic_write(tar_path(job.folder, task.index)))
    return _Draft(task, keys, plan_tar(keys, task.rows), np.empty((len(keys), 16), np.uint8), file, opened)


def _done(job: Job, draft: _Draft, sha256: str) -> DoneShard:
    rows = sample_rows(job, draft.task.rows, draft.keys, draft.plan.offsets, draft.digests)
    return DoneShard(rows, draft.plan.num_bytes, sha256)


def _write_tars(drafts: Sequence[_Draft], reader: Reader, report: Callable[[int, int], None]) -> list[str]:
    """Write shards side by side, part by part; the sha256 of each."""
    sha256s, none = Sha256s(len(drafts)), np.empty(0, np.uint8)
    parts = (_parts(draft, reader, place, report) for place, draft in enumerate(drafts))
    for together in zip_longest(*parts, fillvalue=none):
        sha256s.update(together)
        for draft, part in zip(drafts, together, strict=True):
            for at in range(0, len(part), _WRITE):
                draft.file.write(part[at : at + _WRITE].data)
    return sha256s.hexdigests()


def _parts(
    draft: _Draft, reader: Reader, place: int, report: Callable[[int, int], None]
) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a shard's tar, uint8 [bytes] for each part, in the same memory, which is that of `place`."""
    rows, plan = draft.task.rows, draft.plan
    files, names = _read_from(rows, plan), rows["name"].combine_chunks()
    for start, stop in pairwise(cut_tar(plan, _STEP)):
        part = reader.room(stop - start, place)
        copies = fill(plan, start, part)
        to, rows_of, images = plan.to[copies] - start, plan.sample[copies], plan.image[copies]
        wanted = np.where(images < len(rows), images, -1)
        reader.read(
            files[copies], names, rows_of, plan.place[copies], plan.size[copies], to, wanted, part, draft.digests
        )
        yield part
        report(int(np.count_nonzero(wanted >= 0)), stop - start)


def _read_from(rows: Any, plan: TarPlan) -> npt.NDArray[np.int32]:
    """The file of each payload; images may have been dealt to buckets."""
    files: npt.NDArray[np.int32] = rows["file"].to_numpy()[plan.sample]
    if "read_file" in rows.column_names:
        files = np.where(plan.image < len(rows), rows["read_file"].to_numpy()[plan.sample], files)
    return files


def sample_rows(job: Job, rows: Any, keys: Any, offsets: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> Any:
    """The rows of samples.parquet of some samples, with 0 as `shard`."""
    count = len(rows)
    slide, x, y = known_places(rows, job.files, job.key_pattern)
    paths = pa.array([file.path for file in job.files], pa.string())
    labels = rows["label"].to_numpy()
    columns = {
        "key": keys,
        "shard": np.zeros(count, np.int32),
        "offset": offsets,
        "size": rows["size"],
        "ext": rows["ext"],
        "digest": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(digests)]),
        "cohort": pa.DictionaryArray.from_arrays(rows["cohort"].combine_chunks(), list(job.cohorts)),
        "slide": slide,
        "x": x,
        "y": y,
        "label": pa.array(labels, mask=labels < 0),
        "width": rows["width"],
        "height": rows["height"],
        "source": paths.take(rows["file"].combine_chunks()),
        "source_name": decode_names(rows["name"]),
    }
    for name in ("source", "source_name"):
        if name in rows.column_names:
            columns[name] = pc.coalesce(rows[name], columns[name].cast(pa.string()))
    columns |= {name: rows[name] for name in STATISTICS if name in rows.column_names}
    fields = [*SAMPLES_SCHEMA, *(pa.field(name, pa.float32()) for name in STATISTICS if name in columns)]
    return pa.table(columns).cast(pa.schema(fields))


def sample_keys_of(job: Job, rows: Any) -> Any:
    """The keys of some samples, large_string."""
    kept = rows["key"].combine_chunks() if "key" in rows.column_names else None
    prefixes = [file.prefix for file in job.files]
    file_of, cohort_of, salts = (rows[name].to_numpy() for name in ("file", "cohort", "salt"))
    return sample_keys(rows["name"].combine_chunks(), prefixes, file_of, job.cohorts, cohort_of, salts, kept)


def write_rows(path: Path, done: DoneShard) -> None:
    """Write the rows of a finished shard."""
    notes = {"num_bytes": done.num_bytes, "sha256": done.sha256}
    schema = done.rows.schema.with_metadata({"dinowds": json.dumps(notes)})
    with atomic_write(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(done.rows.replace_schema_metadata(schema.metadata))


def read_rows(folder: Path, index: int) -> DoneShard | None:
    """What is known of shard `index`, or None where it was not written."""
    path = rows_path(folder, index)
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, pa.ipc.open_file(file) as reader:
            rows = reader.read_all()
        notes = json.loads(rows.schema.metadata[b"dinowds"])
        return DoneShard(rows.replace_schema_metadata(None), notes["num_bytes"], notes["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
