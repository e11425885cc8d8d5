"""One shard: read its payloads from the sources, check them, write the tar, and then the rows that make it done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from dinowds.data.manifest import SAMPLES_SCHEMA
from dinowds.files import atomic_write

from .images import NOT_AN_IMAGE, ImageInfo, NotTaken, describe_image
from .local_output import size_of
from .output import Output, output_errors, shard_url, tar_path
from .payloads import Payloads
from .records import compile_key_pattern, decode_name, find_place, sample_key
from .sources import Source
from .ustar import UstarWriter

_REPORT_EVERY = 512


@dataclass(frozen=True)
class Job:
    """What all shards of a run share. Shards and rows are written in `output.work`; no source is compressed."""

    sources: tuple[Source, ...]
    key_pattern: str
    output: Output
    name: str
    """Of the dataset."""

    @property
    def folder(self) -> Path:
        return self.output.work


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number and its candidates in the order of writing (`Candidates.rows`)."""

    index: int
    rows: Any


class Quarantined(NamedTuple):
    """A candidate that turned out not to be a whole image."""

    source: int
    place: int
    member: str
    reason: str


@dataclass(frozen=True)
class DoneShard:
    """What the rows file of a shard says. `rows` has SAMPLES_SCHEMA, with 0 as `shard`."""

    rows: Any
    num_bytes: int
    sha256: str
    quarantined: tuple[Quarantined, ...]


def rows_path(folder: Path, index: int) -> Path:
    """The file whose existence says that shard `index` was written whole."""
    return folder / f"shard-{index:06d}.arrow"


def write_shard(
    job: Job, task: ShardTask, payloads: Payloads, report: Callable[[int, int], None]
) -> Callable[[], None]:
    """Write one shard; what is returned makes it done. `report` gets the samples and bytes read since its last call.

    To be done, a shard waits for the disk, is then renamed and given its rows, and is taken by the output. The caller
    can do that in another thread while it reads the next shard. A shard of which no candidate is an image has rows but
    no tar. One that an earlier run has written, but which the output has not taken, is not written again.

    Raises (both it and what it returns):
        SourceError: a source changed or cannot be read.
        OutputError, StorageError: the shard cannot be written.
    """
    path = tar_path(job.folder, task.index)
    before = read_rows(job.folder, task.index)
    if before is not None and size_of(path) == before.num_bytes:
        return lambda: _hand_over(job, task.index)
    columns = {name: task.rows[name].to_pylist() for name in task.rows.column_names}
    images, quarantined = _read_images(columns, payloads, report)
    samples = _Samples(job)
    num_bytes, sha256 = 0, ""
    with output_errors(job.output.root), ExitStack() as stack:
        if images:
            tar = UstarWriter(stack.enter_context(atomic_write(path)))
            rows = zip(columns["source"], columns["name"], columns["label"], columns["salt"], strict=True)
            for index, row in enumerate(rows):
                if index in images:
                    samples.write(tar, *row, *images.pop(index))
            num_bytes, sha256 = tar.finish()
        unfinished = stack.pop_all()
    done = DoneShard(samples.table(), num_bytes, sha256, tuple(sorted(quarantined)))

    def finish() -> None:
        with output_errors(job.output.root):
            unfinished.close()
            _write_rows(rows_path(job.folder, task.index), done)
        if num_bytes:
            _hand_over(job, task.index)

    return finish


def _hand_over(job: Job, index: int) -> None:
    with output_errors(job.output.root):
        job.output.take_shard(index, shard_url(job.name, index))


def _read_images(
    columns: dict[str, list[Any]], payloads: Payloads, report: Callable[[int, int], None]
) -> tuple[dict[int, tuple[ImageInfo, bytes]], list[Quarantined]]:
    """Row → image and its bytes, read in the order in which they lie in the sources; and those that are no images."""
    names, places, sizes, sources = (columns[name] for name in ("name", "place", "size", "source"))
    images: dict[int, tuple[ImageInfo, bytes]] = {}
    quarantined: list[Quarantined] = []
    reported, num_bytes = 0, 0
    for count, row in enumerate(sorted(range(len(places)), key=lambda i: (sources[i], places[i])), 1):
        try:
            payload = payloads.read(sources[row], names[row], places[row], sizes[row])
            if payload is None:
                raise NotTaken(NOT_AN_IMAGE)
            images[row] = describe_image(payload), payload
        except NotTaken as reason:
            quarantined.append(Quarantined(sources[row], places[row], decode_name(names[row]), str(reason)))
        num_bytes += sizes[row]
        if count - reported >= _REPORT_EVERY or count == len(places):
            report(count - reported, num_bytes)
            reported, num_bytes = count, 0
    return images, quarantined


class _Samples:
    """Writes samples to a tar and collects their rows."""

    def __init__(self, job: Job) -> None:
        self._sources = job.sources
        self._pattern: re.Pattern[str] | None = compile_key_pattern(job.key_pattern)
        self._columns: dict[str, list[Any]] = {name: [] for name in SAMPLES_SCHEMA.names}

    def write(
        self, tar: UstarWriter, source_at: int, raw: bytes, label: int, salt: int, image: ImageInfo, payload: bytes
    ) -> None:
        source = self._sources[source_at]
        name = decode_name(raw)
        key = sample_key(name, source.cohort, salt)
        offset = tar.add(f"{key}.{image.ext}", payload)
        if label >= 0:
            tar.add(f"{key}.cls", str(label).encode())
        root = source.cohort if source.kind == "folder" else None
        place = find_place(name, self._pattern, root)
        values = (
            *(key, 0, offset, len(payload), image.ext, xxhash.xxh3_128_digest(payload), source.cohort),
            *(
                place.slide,
                place.x,
                place.y,
                label if label >= 0 else None,
                image.width,
                image.height,
                source.path,
                name,
            ),
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def table(self) -> Any:
        arrays = [pa.array(self._columns[field.name], field.type) for field in SAMPLES_SCHEMA]
        return pa.table(arrays, schema=SAMPLES_SCHEMA)


def _write_rows(path: Path, done: DoneShard) -> None:
    notes = {"num_bytes": done.num_bytes, "sha256": done.sha256, "quarantined": done.quarantined}
    schema = SAMPLES_SCHEMA.with_metadata({"dinowds": json.dumps(notes)})
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
        quarantined = tuple(Quarantined(*entry) for entry in notes["quarantined"])
        return DoneShard(rows.replace_schema_metadata(None), notes["num_bytes"], notes["sha256"], quarantined)
    except (OSError, ValueError, KeyError, TypeError):
        return None
