"""`--in-place`: an index of tars that stay where they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.errors import SourceError
from dinowds.files import sha256_of
from dinowds.shard.sources.scanning import Stopped
from dinowds.shard.sources.source import Source, SourceFile, readable
from dinowds.shard.write.arrange import Int64s
from dinowds.shard.write.writer import DoneShard, Job, read_rows, rows_path, sample_keys_of, sample_rows, write_rows

Report = Callable[[int, int], None]
"""(samples, bytes) done since the last call."""


def check_in_place(sources: Sequence[Source]) -> None:
    """Raises SourceError where payloads cannot be read from a source as it is, and by any reader of tars."""
    for file in (file for source in sources for file in source.files):
        if file.kind != "tar" or file.packing or file.origin is not None:
            what = f"compressed with {file.packing}" if file.packing else f"a {file.kind}"
            what = "remote" if file.origin is not None else what
            raise SourceError(
                f"{file.path}: is {what}, and --in-place takes uncompressed tars of this host alone; leave it out"
            )


def rows_of_files(file_of: npt.NDArray[np.int32], places: Int64s) -> list[tuple[int, Int64s]]:
    """(file, its samples in the order of their bytes) of each file that has any."""
    order = np.lexsort((places, file_of))
    edges = np.flatnonzero(np.diff(file_of[order], prepend=-1, append=-1))
    parts = (order[start:stop] for start, stop in pairwise(edges.tolist()))
    return [(int(file_of[part[0]]), part) for part in parts]


def index_in_place(job: Job, table: Any, first: int, workers: int, report: Report) -> list[SourceFile]:
    """Write the rows of each tar as those of a finished shard; the tars, in the order of these shards.

    Args:
        table: of all samples: the columns of `writer.ShardTask.rows`, and `digest`.
        first: the number of the first of these shards.

    Raises:
        SourceError: a tar cannot be read.
        OSError: the work folder cannot be written.
    """
    parts = rows_of_files(table["file"].to_numpy(), table["place"].to_numpy())
    stop = threading.Event()
    one = partial(_index, job, table, report, stop)
    with ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(one, range(first, first + len(parts)), (part for _, part in parts)))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [job.files[file] for file, _ in parts]


def _index(job: Job, table: Any, report: Report, stop: threading.Event, number: int, part: Int64s) -> None:
    def check() -> None:
        if stop.is_set():
            raise Stopped

    rows = table.take(pa.array(part))
    if read_rows(job.folder, number) is None:
        file = job.files[rows["file"][0].as_py()]
        with readable(file.path):
            sha256 = sha256_of(file.file, check)
        digests = np.frombuffer(rows["digest"].combine_chunks().buffers()[1], np.uint8).reshape(-1, 16)
        found = sample_rows(job, rows, sample_keys_of(job, rows), rows["place"].to_numpy(), digests[: len(rows)])
        write_rows(rows_path(job.folder, number), DoneShard(found, file.num_bytes, sha256))
    report(len(rows), int(rows["size"].to_numpy().sum()))
