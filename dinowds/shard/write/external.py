"""An external shuffle with bounded memory: sources that do not fit into memory are read once, in sequence.

Payloads are first dealt to buckets, files of whole shards each, in the work folder; shards are then made from their
bucket. A spinning disk or a network file system so reads long runs only, where gathering each shard from all over the
sources would jump from sample to sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.files import fsync_folder, write_atomic
from dinowds.shard.sources.source import SourceFile, path_text
from dinowds.shard.write.arrange import Images
from dinowds.shard.write.reader import Reader, allow_open_files

Int64s = npt.NDArray[np.int64]

_NOTE = "buckets.json"
_FEWEST_BYTES = 256 << 10
"""That go to a bucket at once, on average: what lies between two jumps of a spinning disk."""


def is_larger_than(images: Images, memory: int | None) -> bool:
    """Whether the payloads of `images` need the external shuffle."""
    return memory is not None and int(images.numbers("size").sum()) > memory


def bucket_of_shard(shard_bytes: Int64s, step: int) -> Int64s:
    """int64 [S] → int64 [S]: the bucket of each shard, so that few buckets get about `_FEWEST_BYTES` each of a run of
    `step` bytes. A bucket is a run of whole shards.
    """
    most = max(1, step // _FEWEST_BYTES)
    share = max(int(shard_bytes.max()), -(-int(shard_bytes.sum()) // most))
    starts = np.cumsum(shard_bytes) - shard_bytes
    buckets: Int64s = np.unique(starts // share, return_inverse=True)[1].astype(np.int64)
    return buckets


def bucket_path(folder: Path, bucket: int) -> Path:
    """The file of a bucket."""
    return folder / f"bucket-{bucket:06d}.bin"


def deal(
    images: Images,
    bucket_of: Int64s,
    is_needed: npt.NDArray[np.bool_],
    folder: Path,
    identity: str,
    step: int,
    report: Callable[[int, int], None],
) -> Images:
    """Copy payloads to their buckets; the same images, with `read_file` and `place` of where they are read from.

    Further members of samples stay where they are. What an earlier run of the same `identity` has dealt is used again.

    Args:
        bucket_of: int64 [N].
        is_needed: bool [buckets]: those of which not all shards are done.
        step: bytes that are held in memory.
        report: gets (payloads, bytes) read since its last call.

    Raises:
        SourceError: a source changed or cannot be read.
        OSError: `folder` cannot be written.
    """
    sizes = images.numbers("size")
    source_order = np.lexsort((images.numbers("place"), images.numbers("file")))
    places = _places_in_buckets(bucket_of, sizes, source_order)
    totals = np.bincount(bucket_of, weights=sizes, minlength=len(is_needed)).astype(np.int64)
    if not _is_dealt(folder, identity, totals, is_needed):
        _copy(images, bucket_of, source_order[is_needed[bucket_of[source_order]]], folder, step, report)
        write_atomic(folder / _NOTE, json.dumps({"identity": identity}).encode())
    buckets = (bucket_path(folder, bucket) for bucket in range(len(totals)))
    table = images.table.drop_columns("place").append_column("place", pa.array(places))
    table = table.append_column("read_file", pa.array((len(images.files) + bucket_of).astype(np.int32)))
    files = images.files + tuple(SourceFile(path_text(path), path, "tar") for path in buckets)
    return replace(images, table=table, files=files)


def _places_in_buckets(bucket_of: Int64s, sizes: Int64s, source_order: Int64s) -> Int64s:
    """int64 [N]: where each payload lies in its bucket, which has them in the order of the sources."""
    order = source_order[np.argsort(bucket_of[source_order], kind="stable")]
    starts = np.cumsum(sizes[order]) - sizes[order]
    first = np.searchsorted(bucket_of[order], bucket_of[order], "left")
    places = np.empty(len(sizes), np.int64)
    places[order] = starts - starts[first]
    return places


def _copy(
    images: Images, bucket_of: Int64s, source_order: Int64s, folder: Path, step: int, report: Callable[[int, int], None]
) -> None:
    """Read run after run of the sources, and append each run's part to each bucket."""
    names, files = images.column("name"), images.numbers("file")
    places, sizes = images.numbers("place"), images.numbers("size")
    paths = [bucket_path(folder, bucket) for bucket in np.unique(bucket_of[source_order]).tolist()]
    (folder / _NOTE).unlink(missing_ok=True)
    for path in paths:
        path.write_bytes(b"")
    ends = np.cumsum(sizes[source_order])
    no_digests, no_digest = np.empty((0, 16), np.uint8), np.full(len(source_order), -1)
    with closing(Reader(images.files, allow_open_files(len(images.files)))) as reader:
        start = 0
        while start < len(source_order):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + step, "right")))
            run = source_order[start:stop]
            grouped = np.argsort(bucket_of[run], kind="stable")
            to = np.empty(len(run), np.int64)
            to[grouped] = np.cumsum(sizes[run][grouped]) - sizes[run][grouped]
            room = reader.room(int(ends[stop - 1]) - before)
            reader.read(files[run], names, run, places[run], sizes[run], to, no_digest[: len(run)], room, no_digests)
            report(len(run), len(room))
            _append(bucket_of[run][grouped], to[grouped], room, folder)
            start = stop
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    fsync_folder(folder)


def _append(bucket_of: Int64s, to: Int64s, room: Any, folder: Path) -> None:
    """Append each bucket's part of a run, which is sorted by bucket."""
    buckets, first = np.unique(bucket_of, return_index=True)
    edges = [*to[first].tolist(), len(room)]
    for bucket, start, stop in zip(buckets.tolist(), edges[:-1], edges[1:], strict=True):
        with open(bucket_path(folder, bucket), "ab", buffering=0) as file:
            part = memoryview(room)[start:stop]
            while part:
                part = part[file.write(part) :]


def _is_dealt(folder: Path, identity: str, totals: Int64s, is_needed: npt.NDArray[np.bool_]) -> bool:
    try:
        if json.loads((folder / _NOTE).read_bytes())["identity"] != identity:
            return False
        needed = np.flatnonzero(is_needed).tolist()
        return all(bucket_path(folder, bucket).stat().st_size == totals[bucket] for bucket in needed)
    except (OSError, ValueError, KeyError, TypeError):
        return False
