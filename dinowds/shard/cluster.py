"""Scanning and writing as tasks of Dask: in processes of this host, or on the workers of a scheduler elsewhere.

Workers read the sources and write into the work folder themselves, so they must see both under the paths of this host.
While tasks run, a file of a random name lies in the work folder: by it a worker knows that this is the folder, and that
the run still lasts. A lost worker costs its tasks alone, which are done again elsewhere. If it lives on all the same,
it writes the same bytes by way of another temporary name.

Needs the extra `cluster`: importing this module without it is a ConfigError.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow.compute as pc

from dinowds.errors import ConfigError, DinowdsError, OutputError, SourceError
from dinowds.files import TEMPORARY_SUFFIX
from dinowds.processes import shielded_from_signals
from dinowds.shard.sources.check import Checks
from dinowds.shard.sources.scanning import Scanned, Stopped, by_source, scan_file
from dinowds.shard.sources.source import Source, SourceFile
from dinowds.shard.write.reader import Reader, allow_open_files
from dinowds.shard.write.threads import Report
from dinowds.shard.write.writer import Job, ShardTask, write_together

try:
    import dask
    from distributed import Client, KilledWorker, LocalCluster, Security, WorkerPlugin, as_completed, get_worker
    from distributed.comm.core import CommClosedError
except ImportError:
    raise ConfigError("--cluster: needs the package 'distributed'; pip install 'dinowds[cluster]'") from None

_LOCAL = "local"
_SCHEMES = ("tcp://", "tls://")
_ANSWER_S = 10
_TRIES = 5
_AHEAD = 2
"""Tasks a thread that the scheduler holds; a task brings the rows of its shard."""

_SETTINGS = {
    "distributed.admin.large-graph-warning-threshold": "1 TiB",  # the rows of a shard may have some MiB
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}

T = TypeVar("T")


@contextmanager
def open_cluster(spec: str, workers: int) -> Iterator[Client]:
    """A client of the cluster `spec`: 'local' for `workers` processes of this host, which end with the context and with
    this process; or the address of a scheduler, 'tcp://host:port' or 'tls://host:port'.

    Raises ConfigError for another spec, and for a scheduler that does not answer within some 10 s, has no workers, or
    has another version of dinowds.
    """
    with _quiet(), dask.config.set(_SETTINGS):
        if spec == _LOCAL:
            with _local_cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
                yield client
        elif spec.startswith(_SCHEMES):
            with _connect(spec) as client:
                check_versions(cast(dict[str, Any], client.get_versions(packages=["dinowds"])), spec)
                yield client
        else:
            raise ConfigError(f"--cluster: is {spec!r}, expected {_LOCAL}, tcp://HOST:PORT or tls://HOST:PORT")


def scan_on_cluster(
    client: Client, sources: Sequence[Source], folder: Path | None, checks: Checks, report: Callable[[int], None]
) -> list[list[Scanned]]:
    """`scanning.scan_sources`, one task a file; `report` hears of whole files.

    Raises what that does, and OutputError where workers cannot do their part.
    """
    places = [(row, position) for row, source in enumerate(sources) for position in range(len(source.files))]
    files = tuple(file for source in sources for file in (*source.files, *source.sidecars) if file.origin is None)
    found: dict[int, Scanned] = {}
    total = 0
    with _stage(client, folder, files, (sources, folder, checks)) as name:
        tasks = (
            _Task(index, sources[row].files[position].path, (name, row, position))
            for index, (row, position) in enumerate(places)
        )
        with closing(_run(client, _scan, tasks)) as run:
            for task, scanned in run:
                found[task.index] = scanned
                listing = scanned.listing
                total += len(listing.images) + len(listing.quarantine) + listing.skipped.total()
                report(total)
    return by_source(sources, (found[index] for index in range(len(places))))


def write_on_cluster(
    client: Client, job: Job, tasks: Iterable[Callable[[], ShardTask]], report: Report, done: Callable[[int], None]
) -> None:
    """`threads.write_shards`, one task a shard; `report` hears of whole shards.

    Raises what that does, and OutputError where workers cannot do their part.
    """
    counts: dict[int, tuple[int, int]] = {}

    def prepared(name: str) -> Iterator[_Task]:
        for make in tasks:
            task = make()
            counts[task.index] = len(task.rows), pc.sum(task.rows["size"]).as_py()
            yield _Task(task.index, f"{job.output}: shard {task.index}", (name, task))

    files = tuple(file for file in job.files if file.file.parent != job.folder)
    with _stage(client, job.folder, files, job) as name, closing(_run(client, _write, prepared(name))) as run:
        for task, _ in run:
            report(*counts.pop(task.index))
            done(task.index)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask tells of each worker that comes or goes; what ends a run is raised."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _local_cluster(workers: int) -> Iterator[LocalCluster]:
    """Encrypted with keys of its own: anyone on this host could have a scheduler without them run code."""
    try:
        security = Security.temporary()
    except ImportError:
        raise ConfigError("--cluster: needs the package 'cryptography'; pip install 'dinowds[cluster]'") from None
    with shielded_from_signals():  # inherited by the thread that starts workers, now and after a loss
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            memory_limit=None,
            security=security,
            silence_logs=logging.CRITICAL,
        )
    with cluster:
        yield cluster


def _connect(address: str) -> Client:
    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--cluster: no scheduler answers at {address} ({said}); start it, or give its address"
        ) from None
    try:
        client.wait_for_workers(1, timeout=_ANSWER_S)
    except asyncio.TimeoutError:
        client.close()
        raise ConfigError(f"--cluster: the scheduler at {address} has no workers; start some") from None
    return client


def check_versions(versions: dict[str, Any], address: str) -> None:
    """Raises ConfigError where the scheduler or a worker has no dinowds, or another one than this process.

    Args:
        versions: what `Client.get_versions` says.
    """
    here = versions["client"]["packages"]["dinowds"]
    for place, about in {f"the scheduler at {address}": versions["scheduler"], **versions["workers"]}.items():
        if (there := about["packages"].get("dinowds")) != here:
            found = f"dinowds {there}" if there else "no dinowds"
            raise ConfigError(f"--cluster: {place} has {found}, expected {here} as here; install the same everywhere")


class _Stage(WorkerPlugin):
    """What the workers of a cluster keep while they scan, or while they write: `work`, which all tasks share.

    Workers that come later get it too.
    """

    def __init__(self, mark: Path | None, files: tuple[SourceFile, ...], work: Any) -> None:
        self.name = f"dinowds-{secrets.token_hex(8)}"
        self.mark = mark
        self.files = files
        self.work = work

    def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask's
        self.is_checked = self.is_over = False
        self.readers: list[Reader] = []

    def teardown(self, worker: Any) -> None:  # noqa: ARG002 - Dask's
        self.is_over = True
        self._close()

    def _close(self) -> None:
        while self.readers:
            self.readers.pop().close()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A reader of the job's files, which stay open for the next shard."""
        files = self.work.files
        reader = self.readers.pop() if self.readers else Reader(files, allow_open_files(len(files)))
        try:
            yield reader
        finally:
            self.readers.append(reader)
            if self.is_over:
                self._close()

    def check(self) -> None:
        """Whether this worker sees what it has to. Raises OutputError or SourceError."""
        host = socket.gethostname()
        if self.mark is not None and not self.mark.exists():
            raise OutputError(
                f"{self.mark.parent}: is another folder, or none, for the worker at {host}; give a folder that all "
                "workers see under this path, by --out, or by --staging for a remote dataset"
            )
        for file in self.files:
            try:
                num_bytes = file.file.stat().st_size
            except OSError as error:
                raise SourceError(
                    f"{file.path}: cannot be read by the worker at {host} ({error.strerror or error}); give absolute "
                    "paths that all workers see"
                ) from None
            if file.mtime_ns and file.kind != "folder" and num_bytes != file.num_bytes:
                raise SourceError(
                    f"{file.path}: has {num_bytes} bytes for the worker at {host}, but {file.num_bytes} here; give "
                    "absolute paths that all workers see"
                )
        self.is_checked = True

    def check_lasts(self, *_: int) -> None:
        """Raises Stopped once the run has ended, however it did."""
        if self.mark is not None:
            try:
                self.mark.open().close()  # a network file system may answer `exists` from its memory
            except FileNotFoundError:
                raise Stopped from None


@contextmanager
def _stage(client: Client, folder: Path | None, files: tuple[SourceFile, ...], work: Any) -> Iterator[str]:
    """Give `work` to all workers; the name that they keep it under. Raises what `_Stage.check` does on any of them."""
    mark = None if folder is None else folder / f".run-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    stage = _Stage(mark, files, work)
    if mark is not None:
        mark.touch(exist_ok=False)
    try:
        _patiently(lambda: client.register_plugin(stage))
        answers: dict[str, Any] = _patiently(lambda: client.run(_check, stage.name, on_error="return"))
        for answer in answers.values():
            if isinstance(answer, DinowdsError):
                raise answer
        yield stage.name
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
        with suppress(OSError, asyncio.TimeoutError, ValueError):  # the cluster may be gone
            client.unregister_worker_plugin(stage.name)


def _patiently(call: Callable[[], T]) -> T:
    """Ask all workers; one may just have been lost."""
    for _ in range(_TRIES):
        with suppress(OSError):
            return call()
        time.sleep(1)
    raise OutputError("--cluster: its workers do not answer; see to the cluster, and give the same command again")


@dataclass(frozen=True)
class _Task:
    index: int
    text: str
    """What it is about, for people."""
    arguments: tuple[Any, ...]


def _run(client: Client, function: Callable[..., T], tasks: Iterator[_Task]) -> Generator[tuple[_Task, T], None, None]:
    """Tasks with their values, as they are done. After an error the others are cancelled."""
    running: dict[object, tuple[Any, _Task]] = {}
    arriving = as_completed(loop=client.loop)

    def begin() -> None:
        free = _AHEAD * max(1, sum(client.nthreads().values())) - len(running)
        for task in islice(tasks, max(0, free)):
            future = client.submit(function, *task.arguments, pure=False)
            running[future.key] = future, _Task(task.index, task.text, ())
            arriving.add(future)

    try:
        begin()
        for future in arriving:
            value = _value(future, running[future.key][1].text)
            _, task = running.pop(future.key)
            begin()
            yield task, value
    finally:
        with suppress(OSError, asyncio.TimeoutError):
            client.cancel([future for future, _ in running.values()], force=True)


def _value(future: Any, text: str) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        raise OutputError(
            f"{text}: {error.allowed_failures + 1} workers have died at it, the last one at "
            f"{error.last_worker.address}; see to their memory and their logs, and give the same command again to go on"
        ) from None
    except (CancelledError, CommClosedError):
        raise OutputError(f"{text}: the scheduler of --cluster is gone; give the same command again to go on") from None


def _here(name: str) -> _Stage:
    stage = cast(_Stage, get_worker().plugins[name])
    if not stage.is_checked:
        stage.check()
    return stage


def _check(name: str, dask_worker: Any) -> None:
    dask_worker.plugins[name].check()


def _scan(name: str, row: int, position: int) -> Scanned:
    stage = _here(name)
    sources, folder, checks = stage.work
    return scan_file(sources[row], position, folder, checks, stage.check_lasts)


def _write(name: str, task: ShardTask) -> None:
    stage = _here(name)
    stage.check_lasts()
    with stage.reader() as reader:
        for shard in write_together(stage.work, [task], reader, stage.check_lasts):
            shard.finish()
