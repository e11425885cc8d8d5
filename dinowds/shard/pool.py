"""Shards written by several processes. They share nothing, and end when the process that started them does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from dinowds.errors import DinowdsError, OutputError
from dinowds.processes import end_with_parent, shielded_from_signals

from .payloads import Payloads
from .writer import Job, ShardTask, write_shard

Report = Callable[[int, int], None]
"""(samples, bytes) read since the last call."""


def write_shards(job: Job, tasks: Iterator[ShardTask], count: int, workers: int, report: Report) -> None:
    """Write all of `tasks` (`count` of them), in this process or in `workers` processes.

    Raises the first error of any worker, once the others have ended.
    """
    workers = min(workers, count)
    if workers > 1:
        _write_in_processes(job, tasks, workers, report)
        return
    with closing(_Writer(job)) as writer:
        for task in tasks:
            writer.write(task, report)
        writer.finish(report)


class _Writer:
    """Writes shard after shard; while one waits for the disk, the next one is read."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._payloads = Payloads(job.sources)
        self._thread = ThreadPoolExecutor(1)
        self._unfinished: tuple[Future[None], ShardTask] | None = None

    def write(self, task: ShardTask, report: Report) -> None:
        """Write one shard. Its own last errors come with the next call, or with `finish`.

        Samples are reported as they are read; those of a remote output when their shard is uploaded.
        """
        finish = write_shard(self._job, task, self._payloads, _ignore if self._job.output.is_remote else report)
        self.finish(report)
        self._unfinished = self._thread.submit(finish), task

    def finish(self, report: Report) -> None:
        """Wait until all shards are done."""
        if self._unfinished is not None:
            future, task = self._unfinished
            future.result()
            if self._job.output.is_remote:
                report(len(task.rows), sum(task.rows["size"].to_pylist()))
        self._unfinished = None

    def close(self) -> None:
        """Let go of threads and files."""
        self._thread.shutdown()
        self._payloads.close()


def _ignore(samples: int, num_bytes: int) -> None:
    pass


def _write_in_processes(job: Job, tasks: Iterator[ShardTask], workers: int, report: Report) -> None:
    with _processes(job, workers) as pipes:
        busy: dict[Any, BaseProcess] = {}
        idle = dict(pipes)
        while True:
            while idle and (task := next(tasks, None)) is not None:
                pipe, process = idle.popitem()
                busy[pipe] = process
                _send(pipe, process, task)
            if not busy:
                break
            for ready in connection.wait(list(busy)):
                if _receive(ready, busy[ready], report):
                    idle[cast(Connection, ready)] = busy.pop(ready)
        for pipe, process in pipes.items():
            _send(pipe, process, None)
        for pipe, process in pipes.items():
            while not _receive(pipe, process, report):
                pass


def _send(pipe: Connection, process: BaseProcess, task: ShardTask | None) -> None:
    try:
        pipe.send(task)
    except OSError:
        raise OutputError(_how_it_died(process)) from None


def _receive(pipe: Any, process: BaseProcess, report: Report) -> bool:
    """Take one message of a worker; whether its task is done."""
    try:
        message = pipe.recv()
    except (EOFError, OSError):
        raise OutputError(_how_it_died(process)) from None
    if isinstance(message, DinowdsError):
        raise message
    if isinstance(message, str):
        raise RuntimeError(f"a worker failed:\n{message}")
    if message is None:
        return True
    report(*message)
    return False


def _how_it_died(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode or 0
    how = f"was ended by signal {-code}" if code < 0 else f"ended early with exit code {code}"
    return (
        f"a worker process {how}; if memory is short, give fewer --workers or a smaller --shard-size; "
        "the same command goes on"
    )


@contextmanager
def _processes(job: Job, workers: int) -> Iterator[dict[Connection, BaseProcess]]:
    """Start workers; end them on the way out, whatever they are doing."""
    context = get_context("spawn")
    pipes: dict[Connection, BaseProcess] = {}
    # What is sent to the whole group reaches this process alone, which then ends the workers.
    with shielded_from_signals():
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            pipes[ours] = process
    try:
        yield pipes
    except BaseException:
        for process in pipes.values():
            process.kill()  # a shard that is not done is written again
        raise
    finally:
        for pipe, process in pipes.items():
            pipe.close()
            process.join()


def _work(pipe: Connection, job: Job) -> None:
    """A worker's life: tasks come in, then None for the end; each is answered.

    Answers are any number of (samples, bytes), and then None, or the error that ends the worker.
    """
    end_with_parent()

    def report(samples: int, num_bytes: int) -> None:
        pipe.send((samples, num_bytes))

    with closing(_Writer(job)) as writer, suppress(BrokenPipeError, EOFError):
        try:
            while (task := pipe.recv()) is not None:
                writer.write(task, report)
                pipe.send(None)
            writer.finish(report)
            pipe.send(None)
        except (BrokenPipeError, EOFError):
            raise
        except DinowdsError as error:
            pipe.send(error)
        except Exception:
            pipe.send(traceback.format_exc())
