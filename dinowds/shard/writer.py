"""One shard: lay out its tar in memory, copy the payloads into it, write it, and then the rows that make it done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.manifest import SAMPLES_SCHEMA, STATISTICS
from dinowds.files import atomic_write

from .local_output import size_of
from .output import Output, output_errors, shard_url, tar_path
from .reader import Reader
from .records import decode_names, sample_keys
from .selecting import known_places
from .source import SourceFile
from .tarplan import TarPlan, fill, plan_tar


@dataclass(frozen=True)
class Job:
    """What all shards of a run share. Shards and rows are written in `output.work`; payloads can be read by place."""

    files: tuple[SourceFile, ...]
    cohorts: tuple[str, ...]
    key_pattern: str
    output: Output
    name: str
    """Of the dataset."""
    first_shard: int = 0
    """Of the dataset's shards, those before belong to others."""

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


class Buffer:
    """Memory for one tar at a time, used again and again: fresh memory comes from the system page by page."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size], with anything in it."""
        if len(self._bytes) < size:
            self._bytes = np.empty(0, np.uint8)
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]


def write_shard(
    job: Job, task: ShardTask, reader: Reader, buffer: Buffer, report: Callable[[int, int], None]
) -> Callable[[], None]:
    """Write one shard; what is returned makes it done. `report` gets the samples and bytes read since its last call.

    To be done, a shard waits for the disk, is then renamed and given its rows, and is taken by the output. The caller
    can do that in another thread while it reads the next shard. A shard that an earlier run has written, but which the
    output has not taken, is not written again.

    Raises (both it and what it returns):
        SourceError: a source changed or cannot be read.
        OutputError, StorageError: the shard cannot be written.
    """
    path = tar_path(job.folder, task.index)
    before = read_rows(job.folder, task.index)
    if before is not None and size_of(path) == before.num_bytes:
        return lambda: _hand_over(job, task.index)
    rows = task.rows
    keys = _keys(job, rows)
    plan = plan_tar(keys, rows)
    tar = buffer.take(plan.num_bytes)
    fill(plan, tar)
    digests = np.empty((len(rows), 16), np.uint8)
    names = rows["name"].combine_chunks().take(pa.array(plan.sample))
    reader.read(_read_from(rows, plan), names, plan.place, plan.size, plan.to, tar, digests, report)
    sha256 = hashlib.sha256(tar.data).hexdigest()
    done = DoneShard(sample_rows(job, rows, keys, plan.offsets, digests), plan.num_bytes, sha256)
    with output_errors(job.output.root), ExitStack() as stack:
        stack.enter_context(atomic_write(path)).write(tar.data)
        unfinished = stack.pop_all()

    def finish() -> None:
        with output_errors(job.output.root):
            unfinished.close()
            write_rows(rows_path(job.folder, task.index), done)
        _hand_over(job, task.index)

    return finish


def _read_from(rows: Any, plan: TarPlan) -> npt.NDArray[np.int32]:
    """The file of each payload; images may have been dealt to buckets."""
    files: npt.NDArray[np.int32] = rows["file"].to_numpy()[plan.sample]
    if "read_file" in rows.column_names:
        files[: len(rows)] = rows["read_file"].to_numpy()
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


def _keys(job: Job, rows: Any) -> Any:
    kept = rows["key"].combine_chunks() if "key" in rows.column_names else None
    prefixes = [file.prefix for file in job.files]
    file_of, cohort_of, salts = (rows[name].to_numpy() for name in ("file", "cohort", "salt"))
    return sample_keys(rows["name"].combine_chunks(), prefixes, file_of, job.cohorts, cohort_of, salts, kept)


def _hand_over(job: Job, index: int) -> None:
    with output_errors(job.output.root):
        job.output.take_shard(index, shard_url(job.name, index))


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
