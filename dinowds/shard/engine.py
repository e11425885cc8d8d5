"""Who does the work of both passes: threads of this process, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dinowds.shard.sources.check import Checks
from dinowds.shard.sources.scanning import Scanned, scan_sources
from dinowds.shard.sources.source import Source
from dinowds.shard.write.threads import MakeTask, write_shards
from dinowds.shard.write.writer import Job


class Engine(NamedTuple):
    """Both passes; every engine gives the same results."""

    scan: Callable[[Sequence[Source], Path | None, Checks, Callable[[int], None]], list[list[Scanned]]]
    """(sources, folder, checks, report): see `scanning.scan_sources`."""
    write: Callable[[Job, Sequence[MakeTask], Callable[[int, int], None], Callable[[int], None]], None]
    """(job, tasks, report, done): see `threads.write_shards`."""


@contextmanager
def open_engine(cluster: str | None, workers: int) -> Iterator[Engine]:
    """The workers that `--cluster` and `--workers` ask for. Raises ConfigError where there are none."""
    if cluster is None:
        yield Engine(
            lambda sources, folder, checks, report: scan_sources(sources, folder, checks, workers, report),
            lambda job, tasks, report, done: write_shards(job, tasks, workers, report, done),
        )
        return
    from dinowds.shard.cluster import open_cluster, scan_on_cluster, write_on_cluster

    with open_cluster(cluster, workers) as client:
        yield Engine(partial(scan_on_cluster, client), partial(write_on_cluster, client))
