"""Who does the work of both passes: threads of this process, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dinowds.shard.sources.check import Checks
from dinowds.shard.sources.scanning import Scanned, scan_sources
from dinowds.shard.sources.source import Source
from dinowds.shard.write.threads import write_shards
from dinowds.shard.write.writer import Job, ShardTask

MakeTask = Callable[[], ShardTask]


class Engine(Protocol):
    """All give the same results."""

    def scan(
        self, sources: Sequence[Source], folder: Path | None, checks: Checks, report: Callable[[int], None]
    ) -> list[list[Scanned]]:
        """See `scanning.scan_sources`."""

    def write(
        self,
        job: Job,
        tasks: Iterator[MakeTask],
        count: int,
        report: Callable[[int, int], None],
        done: Callable[[int], None],
    ) -> None:
        """See `threads.write_shards`; there are `count` tasks."""


@dataclass(frozen=True)
class Threads:
    """Threads of this process."""

    workers: int

    def scan(
        self, sources: Sequence[Source], folder: Path | None, checks: Checks, report: Callable[[int], None]
    ) -> list[list[Scanned]]:
        return scan_sources(sources, folder, checks, self.workers, report)

    def write(
        self,
        job: Job,
        tasks: Iterator[MakeTask],
        count: int,
        report: Callable[[int, int], None],
        done: Callable[[int], None],
    ) -> None:
        write_shards(job, tasks, min(self.workers, count), report, done)


@dataclass(frozen=True)
class Cluster:
    """The workers of a dask.distributed cluster."""

    client: Any

    def scan(
        self, sources: Sequence[Source], folder: Path | None, checks: Checks, report: Callable[[int], None]
    ) -> list[list[Scanned]]:
        from dinowds.shard.cluster import scan_on_cluster

        return scan_on_cluster(self.client, sources, folder, checks, report)

    def write(
        self,
        job: Job,
        tasks: Iterator[MakeTask],
        count: int,  # noqa: ARG002 - a cluster takes what comes
        report: Callable[[int, int], None],
        done: Callable[[int], None],
    ) -> None:
        from dinowds.shard.cluster import write_on_cluster

        write_on_cluster(self.client, job, tasks, report, done)


@contextmanager
def open_engine(cluster: str | None, workers: int) -> Iterator[Engine]:
    """The workers that `--cluster` and `--workers` ask for. Raises ConfigError where there are none."""
    if cluster is None:
        yield Threads(workers)
        return
    from dinowds.shard.cluster import open_cluster

    with open_cluster(cluster, workers) as client:
        yield Cluster(client)
