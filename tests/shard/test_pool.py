"""Workers: they end with their starter, and their errors reach it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dinowds.errors import OutputError, SourceError
from dinowds.shard.local_output import LocalOutput
from dinowds.shard.pool import write_shards
from dinowds.shard.sources import Source
from dinowds.shard.writer import Job, ShardTask, read_rows

HANG_IN_WORKERS = """
import sys
from pathlib import Path
import pyarrow as pa
from dinowds.shard.local_output import LocalOutput
from dinowds.shard.pool import write_shards
from dinowds.shard.sources import Source
from dinowds.shard.writer import Job, ShardTask

def tasks(rows):
    yield ShardTask(0, rows)
    print("the first worker has its task", flush=True)
    yield ShardTask(1, rows)

if __name__ == "__main__":
    source = Path(sys.argv[1])
    columns = {"name": [b"pipe.jpg"], "place": [0], "size": [9], "label": [-1], "source": [0], "salt": [-1]}
    job = Job((Source(source, "s", "s", "folder", "", 0, 2**63),), "", LocalOutput(source), "name")
    write_shards(job, tasks(pa.table(columns)), 2, 2, lambda *_: None)
"""


def make_job(folder: Path) -> Job:
    """Of the files in `folder`, with the dataset in `folder/out`."""
    output = LocalOutput(folder / "out")
    output.work.mkdir(parents=True)
    return Job((Source(folder, "given", "c", "folder", "", 0, 2**63),), "", output, "name")


def task(index: int, name: bytes, size: int) -> ShardTask:
    columns = {"name": [name], "place": [0], "size": [size], "label": [-1], "source": [0], "salt": [-1]}
    return ShardTask(index, pa.table(columns))


def test_workers__end_when_their_starter_is_killed_even_in_a_read_that_never_returns(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    arguments = [sys.executable, "-c", HANG_IN_WORKERS, str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "first worker" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # waits for all that hold the pipe: the workers


@pytest.mark.parametrize("workers", [1, 2])
def test_write__error_of_one_shard_ends_the_run_and_keeps_finished_ones(
    tmp_path: Path, make_image: Callable[..., bytes], workers: int
) -> None:
    payload = make_image(0)
    (tmp_path / "good.jpg").write_bytes(payload)
    job = make_job(tmp_path)

    def tasks() -> Iterator[ShardTask]:
        yield task(0, b"good.jpg", len(payload))
        yield task(1, b"gone.jpg", 5)
        for index in range(2, 100):
            yield task(index, b"good.jpg", len(payload))

    with pytest.raises(SourceError, match=r"^given: changed while it was read"):
        write_shards(job, tasks(), 100, workers, lambda *_: None)
    assert workers > 1 or read_rows(job.folder, 0) is not None
    assert read_rows(job.folder, 1) is None
    assert not list(job.folder.glob("shard-000099*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_write__folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, make_image: Callable[..., bytes], workers: int
) -> None:
    payload = make_image(0)
    (tmp_path / "good.jpg").write_bytes(payload)
    job = replace(make_job(tmp_path), output=LocalOutput(tmp_path / "gone"))
    tasks = [task(index, b"good.jpg", len(payload)) for index in range(3)]
    with pytest.raises(OutputError, match=r"gone: cannot be written \(No such file or directory\)"):
        write_shards(job, iter(tasks), 3, workers, lambda *_: None)


def test_write__worker_that_is_killed_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    job = make_job(tmp_path)

    def tasks() -> Iterator[ShardTask]:
        yield task(0, b"pipe.jpg", 5)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        yield task(1, b"pipe.jpg", 5)

    with pytest.raises(OutputError, match=r"ended by signal 9; .* fewer --workers"):
        write_shards(job, tasks(), 2, 2, lambda *_: None)
