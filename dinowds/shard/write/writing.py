"""Pass 2: the images, laid out in shards, are written, as far as an earlier run has not done it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dinowds.shard.engine import Engine
from dinowds.shard.options import ShardOptions
from dinowds.shard.outputs.output import shard_url
from dinowds.shard.progress import Progress, Report
from dinowds.shard.write.arrange import Images, Int64s, cut_shards, sample_bytes, shuffled
from dinowds.shard.write.external import bucket_of_shard, bucket_path, deal, is_larger_than
from dinowds.shard.write.writer import Job, ShardTask, read_rows


class Layout(NamedTuple):
    """The order of the samples, and where in it each shard begins (and the last ends)."""

    order: Int64s
    bounds: list[int]
    num_bytes: Int64s
    """int64 [N]: what each sample takes in a tar, in that order."""

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    def part(self, shard: int) -> Int64s:
        """The samples of a shard, in the order of writing."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def lay_out(images: Images, labels: Int64s, options: ShardOptions) -> Layout:
    """Shuffle and cut the samples. Pure."""
    order = shuffled(len(images), options.seed) if options.shuffle else np.arange(len(images), dtype=np.int64)
    num_bytes = sample_bytes(images.table, labels)[order]
    return Layout(order, cut_shards(num_bytes, options.shard_size, options.max_count), num_bytes)


def write_missing(
    job: Job, images: Images, layout: Layout, first: int, memory: int | None, engine: Engine, report: Report
) -> None:
    """Write the shards that an earlier run has not written, or not uploaded.

    Args:
        images: with the columns of `writer.ShardTask.rows`.
        first: the number of the first shard.
        memory: see `options.ShardOptions`.
    """
    shards = range(first, first + layout.num_shards)
    sizes = {number: before.num_bytes for number in shards if (before := read_rows(job.folder, number)) is not None}
    present = job.output.present(sizes, partial(shard_url, job.name))
    parts = {number: layout.part(number - first) for number in shards if number not in present}
    if not parts:
        return
    done: Callable[[int], None] = _nothing
    if is_larger_than(images, memory):
        assert memory is not None
        images, done = _deal(job, images, layout, [number - first for number in parts], memory // 2, report)
        job = replace(job, files=images.files)
    tasks = [partial(_task, images.table, number, part) for number, part in parts.items()]
    progress = Progress("write", images, list(parts.values()), report)
    engine.write(job, tasks, progress.advance, lambda number: done(number - first))


def _task(table: Any, number: int, part: Int64s) -> ShardTask:
    return ShardTask(number, table.take(pa.array(part)))


def _deal(
    job: Job, images: Images, layout: Layout, missing: Sequence[int], step: int, report: Report
) -> tuple[Images, Callable[[int], None]]:
    """Put the images into buckets; they in these, and what to do with a shard that is done."""
    of_shard = bucket_of_shard(np.add.reduceat(layout.num_bytes, layout.bounds[:-1]), step)
    bucket_of = np.empty(len(images), np.int64)
    bucket_of[layout.order] = np.repeat(of_shard, np.diff(layout.bounds))
    left = Counter(of_shard[missing].tolist())
    is_needed = np.isin(np.arange(of_shard.max() + 1), list(left))
    progress = Progress("deal", images, [np.flatnonzero(is_needed[bucket_of])], report)
    dealt = deal(images, bucket_of, is_needed, job.folder, f"{step} {layout.num_shards}", step, progress.advance)

    def done(shard: int) -> None:
        left[bucket := int(of_shard[shard])] -= 1
        if not left[bucket]:
            bucket_path(job.folder, bucket).unlink(missing_ok=True)

    return dealt, done


def _nothing(shard: int) -> None:
    """Of what is gathered from the sources, nothing is left behind."""
