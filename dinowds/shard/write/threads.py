"""Shards written by several threads: what takes time in them lets go of the interpreter."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing

from dinowds.shard.sources.scanning import Stopped
from dinowds.shard.write.reader import Reader, allow_open_files
from dinowds.shard.write.writer import Job, ShardTask, Unfinished, write_together

MakeTask = Callable[[], ShardTask]

Report = Callable[[int, int], None]
"""(samples, bytes) read since the last call; called in several threads."""

_FEW_ROWS = 1 << 16
"""Of a shard that is written beside another: of more, the rows of both take much memory, and hashing little time."""


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
        self._lock = threading.Lock()
        self.is_stopped = False

    def work(self) -> None:
        """Write shard after shard; while some wait for the disk, the next ones are read."""
        with closing(Reader(self._job.files, self._most_open)) as reader, ThreadPoolExecutor(1) as finisher:
            unfinished: list[Future[None]] = []
            count = self._check if self._job.output.is_remote else self._count
            while (make := self._next()) is not None:
                tasks = [make()]
                if len(tasks[0].rows) <= _FEW_ROWS and (make := self._next(left=self._workers)) is not None:
                    tasks.append(make())
                shards = write_together(self._job, tasks, reader, count)
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
        if self._job.output.is_remote:
            self._count(shard.num_samples, shard.num_bytes)
        with self._lock:
            self._done(shard.index)

    def _next(self, left: int = 1) -> MakeTask | None:
        """The next shard, while at least so many are left."""
        with self._lock:
            return None if self.is_stopped or len(self._tasks) < left else self._tasks.popleft()

    def _check(self, samples: int, num_bytes: int) -> None:  # noqa: ARG002 - they count once they are uploaded
        if self.is_stopped:
            raise Stopped

    def _count(self, samples: int, num_bytes: int) -> None:
        self._check(samples, num_bytes)
        self._report(samples, num_bytes)


def _wait_for(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
