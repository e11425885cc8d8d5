"""Training over a server that fails throughout, for half an hour: nothing grows, and the samples are the plan's."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from dinowds.config import load_config
from dinowds.data.dataset import Dataset
from dinowds.data.loader import Loader
from dinowds.data.order.make import order_of
from dinowds.files import waiting_lock
from dinowds.shard.build import ShardOptions, build_dataset
from tests.faults.commands import Commands
from tests.faults.form import IS_FULL, amount, tally
from tests.servers import Fault, http_server
from tests.support import TINY_RUN, processes_of, write_cohort

SECONDS = amount(6, 1800)
NUM_PATCHES = 600
CACHE_GIB = 0.0003
"""About half of the dataset."""
OPEN_CHUNKS = 64
"""That a process has open; they stay on the disk until it lets go of them, on top of the cache's bound."""
FAULTS: tuple[Fault, ...] = ("500", "503", "429", "close", "reset", "cut", "short", "stall", "hang")
MEMORY_GROWTH, FILES_GROWTH, THREADS_GROWTH = amount(25, 5) / 100, amount(128, 4), 4
"""From the median of the second quarter to that of the last: a share of it; files; threads. In the first seconds,
allocators still take what they keep, and two loader processes open up to 64 chunks each."""
RUN = (
    *TINY_RUN, "train.batch_size=4", "student.depth=1", "crops.local.count=1", "optim.epochs=1000",
    "optim.max_steps=null", "speed.num_workers=2", f"data.cache_gib={CACHE_GIB}",
    "train.save_every_steps=200", "train.keep_checkpoints=2",
)  # fmt: skip


class Reading(NamedTuple):
    """Of a run's processes together: proportional memory in bytes, open files, threads. Bytes of the cache's chunks,
    those under way included. Chunks that a process has open and the cache has removed, the most of one process.
    """

    memory: int
    files: int
    threads: int
    cache: int
    removed: int


def read(pid: int, cache: Path) -> Reading:
    memory = files = threads = removed = 0
    for one in processes_of(pid):
        with suppress(OSError):  # ended meanwhile
            place = Path(f"/proc/{one}")
            rollup = (place / "smaps_rollup").read_text().splitlines()
            memory += sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
            threads += len(list((place / "task").iterdir()))
            targets = list(map(target_of, (place / "fd").iterdir()))
            files += len(targets)
            removed = max(removed, sum(str(cache) in target and "(deleted)" in target for target in targets))
    return Reading(memory, files, threads, bytes_on_disk(cache), removed)


def target_of(descriptor: Path) -> str:
    with suppress(OSError):  # closed meanwhile
        return str(descriptor.readlink())
    return ""


def bytes_on_disk(cache: Path) -> int:
    """Of all chunks, while nobody can add one."""
    if not (cache / "total").exists():
        return 0
    with waiting_lock(cache / "total"):
        sizes: dict[int, int] = {}
        for path in (*cache.glob("fetching/*"), *cache.glob("??/*")):  # in this order: one that is renamed is seen
            with suppress(FileNotFoundError):
                about = path.stat()
                sizes[about.st_ino] = about.st_size
        return sum(sizes.values())


def median(readings: list[Reading], quarter: int) -> Reading:
    """`quarter` from 0."""
    part = readings[len(readings) * quarter // 4 : len(readings) * (quarter + 1) // 4]
    return Reading(*(round(statistics.median(values)) for values in zip(*part, strict=True)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_soak__nothing_grows_and_the_samples_are_the_plans(command: Commands, tmp_path: Path) -> None:
    local = tmp_path / "served" / "dataset"
    build_dataset([write_cohort(tmp_path / "a.tar", NUM_PATCHES)], local, ShardOptions(max_count=100))
    assert 0.7 * sum(path.stat().st_size for path in (local / "shards").iterdir()) > CACHE_GIB * 2**30
    out, keys, cache = tmp_path / "run", tmp_path / "keys", tmp_path / "cache"
    keys.touch()
    harms = [("quick_retries", 5.0), ("note_keys", str(keys))]
    chunks = cache / "chunks"
    environment = {"DINOWDS_CACHE": str(cache)}
    readings: list[Reading] = []
    with http_server(local, FAULTS, amount(4, 10), seed=1) as server:
        server.skip = 4  # manifest and index: nobody is asked twice to start
        running = command.start(
            "train", "patch", "--data", server.url, "--out", out, *RUN, harms=harms, environment=environment
        )
        deadline = time.monotonic() + 120
        while not keys.stat().st_size:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        begin = time.monotonic()
        while time.monotonic() - begin < SECONDS:
            readings.append(read(running.pid, chunks))
            time.sleep(amount(1, 20) / 5)
        running.terminate()
        ended = running.wait(120)
    assert ended.status == 75, ended
    found = [json.loads(line) for line in keys.read_text().splitlines()]
    steps = [step for step, _ in found]
    assert steps == list(range(1, len(steps) + 1))
    loader = Loader(Dataset.open(local), order_of(load_config(None, RUN)), decode=False)
    assert [batch.keys for batch in islice(loader, len(found))] == [one for _, one in found]
    assert not (out / "bad_samples.jsonl").exists()
    early, late = median(readings, 1), median(readings, 3)
    print(f"{len(found)} steps; {server.faults_made} faults of {server.requests}; {early}; {late}")  # noqa: T201
    assert late.memory <= early.memory * (1 + MEMORY_GROWTH), (early, late)
    assert late.files <= early.files + FILES_GROWTH, (early, late)
    assert late.threads <= early.threads + THREADS_GROWTH, (early, late)
    assert max(reading.cache for reading in readings) <= CACHE_GIB * 2**30, readings
    assert not IS_FULL or late.cache > 0.8 * CACHE_GIB * 2**30, late
    assert max(reading.removed for reading in readings) <= OPEN_CHUNKS + 1, readings
    assert server.faults_made > amount(1, 500)
    epochs = len(found) * 4 / NUM_PATCHES
    assert epochs > amount(0, 3)
    tally("faults injected in the soak", server.faults_made)
    tally("minutes of soak", round(SECONDS / 60))
    tally("samples read in the soak", 4 * len(found))
    tally("epochs of the soak", round(epochs))
    if IS_FULL:
        tally("soak: MiB of memory in the second quarter", early.memory >> 20)
        tally("soak: MiB of memory in the last quarter", late.memory >> 20)
