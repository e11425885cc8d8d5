"""Shards written by several threads: what takes time in them lets go of the interpreter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing

import pyarrow.compute as pc

from dinowds.shard.sources.scanning import Stopped
from dinowds.shard.write.reader import Reader, allow_open_files
from dinowds.shard.write.writer import Job, ShardTask, Unfinished, write_shard

Report = Callable[[int, int], None]
"""(samples, bytes) read since the last call; called in several threads."""


def write_shards(
    job: Job, tasks: Iterator[Callable[[], ShardTask]], workers: int, report: Report, done: Callable[[int], None]
) -> None:
    """Write all of `tasks` in `workers` threads. `done` gets the number of each shard that is done.

    Raises the first error of any thread, once the others have ended. A shard that is not done is written again by the
    next run.
    """
    most_open = max(1, allow_open_files(len(job.files) * workers) // workers)
    run = _Run(job, tasks, report, done, most_open)
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(run.work) for _ in range(workers)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.is_stopped = True
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error


class _Run:
    """What the threads of a run share."""

    def __init__(
        self,
        job: Job,
        tasks: Iterator[Callable[[], ShardTask]],
        report: Report,
        done: Callable[[int], None],
        most_open: int,
    ) -> None:
        self._job = job
        self._tasks = tasks
        self._report = report
        self._done = done
        self._most_open = most_open
        self._lock = threading.Lock()
        self.is_stopped = False

    def work(self) -> None:
        """Write shard after shard; while one waits for the disk, the next one is read."""
        with closing(Reader(self._job.files, self._most_open)) as reader, ThreadPoolExecutor(1) as finisher:
            unfinished: Future[None] | None = None
            while (make := self._next()) is not None:
                task = make()
                count = self._check if self._job.output.is_remote else self._count
                shard = write_shard(self._job, task, reader, count)
                try:
                    if unfinished is not None:
                        unfinished.result()
                except BaseException as error:
                    shard.abandon(error)
                    raise
                unfinished = finisher.submit(self._finish, task, shard)
            if unfinished is not None:
                unfinished.result()

    def _finish(self, task: ShardTask, shard: Unfinished) -> None:
        shard.finish()
        if self._job.output.is_remote:
            self._count(len(task.rows), pc.sum(task.rows["size"]).as_py())
        with self._lock:
            self._done(task.index)

    def _next(self) -> Callable[[], ShardTask] | None:
        with self._lock:
            return None if self.is_stopped else next(self._tasks, None)

    def _check(self, samples: int, num_bytes: int) -> None:  # noqa: ARG002 - they count once they are uploaded
        if self.is_stopped:
            raise Stopped

    def _count(self, samples: int, num_bytes: int) -> None:
        self._check(samples, num_bytes)
        self._report(samples, num_bytes)
