"""Shards written by several threads: what takes time in them lets go of the interpreter."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing

import pyarrow.compute as pc

from dinowds.shard.sources.scanning import Stopped
from dinowds.shard.write.reader import Reader, allow_open_files
from dinowds.shard.write.writer import Job, ShardTask, Unfinished, write_together

MakeTask = Callable[[], ShardTask]

Report = Callable[[int, int], None]
"""(samples, bytes) read since the last call; called in several threads."""


def write_shards(
    job: Job, tasks: Sequence[MakeTask], workers: int, report: Report, done: Callable[[int], None]
) -> None:
    """Write all of `tasks` in `workers` threads. `done` gets the number of each shard that is done.

    Raises the first error of any thread, once the others have ended. A shard that is not done is written again by the
    next run.
    """
    most_open = max(1, allow_open_files(len(job.files) * workers) // workers)
    run = _Run(job, tasks, workers, report, done, most_open)
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
        tasks: Sequence[MakeTask],
        workers: int,
        report: Report,
        done: Callable[[int], None],
        most_open: int,
    ) -> None:
        self._job = job
        self._tasks = deque(tasks)
        self._workers = workers
        self._report = report
        self._done = done
        self._most_open = most_open
        self._lock, self._done_lock = threading.Lock(), threading.Lock()
        self.is_stopped = False

    def work(self) -> None:
        """Write shard after shard; while some wait for the disk, the next ones are read."""
        with closing(Reader(self._job.files, self._most_open)) as reader, ThreadPoolExecutor(1) as finisher:
            unfinished: list[Future[None]] = []
            count = self._check if self._job.output.is_remote else self._count
            while makers := self._next():
                shards = write_together(self._job, [make() for make in makers], reader, count)
                try:
                    _wait_for(unfinished)
                except BaseException as error:
                    for shard in shards:
                        shard.abandon(error)
                    raise
                unfinished = [finisher.submit(self._finish, shard) for shard in shards]
            _wait_for(unfinished)

    def _finish(self, shard: Unfinished) -> None:
        shard.finish()
        task = shard.task
        if self._job.output.is_remote:
            self._count(len(task.rows), pc.sum(task.rows["size"]).as_py())
        with self._done_lock:
            self._done(task.index)

    def _next(self) -> list[MakeTask]:
        """The next two shards, or one: at the end all threads get their share."""
        with self._lock:
            count = 0 if self.is_stopped else min(2, -(-len(self._tasks) // self._workers))
            return [self._tasks.popleft() for _ in range(count)]

    def _check(self, samples: int, num_bytes: int) -> None:  # noqa: ARG002 - they count once they are uploaded
        if self.is_stopped:
            raise Stopped

    def _count(self, samples: int, num_bytes: int) -> None:
        self._check(samples, num_bytes)
        self._report(samples, num_bytes)


def _wait_for(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
