"""The chunk cache: whole or absent, fetched once, within its bound, whoever is killed when."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dinowds.data.store import cache as cache_module
from dinowds.data.store import cachefiles
from dinowds.data.store.cache import CacheOptions, ChunkCache, FullDiskError, chunk_name
from dinowds.errors import ConfigError, StorageError
from dinowds.files import waiting_lock

SIZE = 5000
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def content_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def name_of(number: int) -> str:
    return chunk_name("shard", number * SIZE, (number + 1) * SIZE)


class Source:
    """Counts what is fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def fetch(self, number: int) -> Callable[[], bytes]:
        def fetch() -> bytes:
            self.fetched.append(number)
            return content_of(number)

        return fetch


def make(folder: Path, chunks: float = 100) -> ChunkCache:
    return ChunkCache(CacheOptions(folder, int(chunks * SIZE)))


def read(cache: ChunkCache, source: Source, number: int) -> bytes:
    return cache.open(name_of(number), SIZE, source.fetch(number)).read(0, SIZE + 1)


def stored_bytes(folder: Path) -> int:
    """Bytes of all chunks, whole or not."""
    total = 0
    for path in (folder / "chunks").glob("*/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed or removed meanwhile
            continue
    return total


def held_bytes(folder: Path) -> int:
    """The same at one moment, in which nobody can add a chunk."""
    with waiting_lock(folder / "chunks" / "total"):
        sizes: dict[int, int] = {}
        for path in (*(folder / "chunks").glob("fetching/*"), *(folder / "chunks").glob("??/*")):
            with suppress(FileNotFoundError):
                about = path.stat()
                sizes[about.st_ino] = about.st_size  # one that is renamed meanwhile is counted once
        return sum(sizes.values())


def written_total(folder: Path) -> int:
    return int((folder / "chunks" / "total").read_text())


def refuse() -> bytes:
    raise AssertionError("fetched again")


def test_open__fetches_once(tmp_path: Path) -> None:
    source = Source()
    for _ in range(3):
        for number in range(10):
            assert read(make(tmp_path), source, number) == content_of(number)
    assert source.fetched == list(range(10))
    assert stored_bytes(tmp_path) == written_total(tmp_path) == 10 * SIZE


def test_prepare__then_open_fetches_nothing(tmp_path: Path) -> None:
    cache, source = make(tmp_path), Source()
    cache.prepare(name_of(1), SIZE, source.fetch(1))
    cache.prepare(name_of(1), SIZE, refuse)
    assert cache.open(name_of(1), SIZE, refuse).read(10, 20) == content_of(1)[10:30]


def test_chunk_name__by_digest_and_range() -> None:
    names = {
        chunk_name(*arguments) for arguments in [("a", 0, 1), ("b", 0, 1), ("a", 1, 2), ("a", 0, 12), ("../../a", 0, 1)]
    }
    assert len(names) == 5
    assert all(len(name) == 32 and name.isalnum() for name in names)


def test_open__threads_fetch_each_chunk_once(tmp_path: Path) -> None:
    source = Source()
    orders = [np.random.default_rng(seed).permutation(30).tolist() for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda order: [read(make(tmp_path), source, number) for number in order], orders))
    assert found == [[content_of(number) for number in order] for order in orders]
    assert sorted(source.fetched) == list(range(30))
    assert list((tmp_path / "chunks" / "fetching").iterdir()) == []


def test_open__failed_fetch_passes_on_its_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise StorageError("no net")

    with pytest.raises(StorageError, match="no net"):
        make(tmp_path).open(name_of(1), SIZE, fail)
    assert stored_bytes(tmp_path) == 0
    assert read(make(tmp_path), Source(), 1) == content_of(1)


def test_prepare__does_not_wait_for_another_one(tmp_path: Path) -> None:
    fetching, finish = threading.Event(), threading.Event()

    def slow() -> bytes:
        fetching.set()
        finish.wait()
        return content_of(1)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(make(tmp_path).open, name_of(1), SIZE, slow)
        fetching.wait()
        make(tmp_path).prepare(name_of(1), SIZE, refuse)
        make(tmp_path).clean()  # what is being fetched is not abandoned
        second = threads.submit(make(tmp_path).open, name_of(1), SIZE, refuse)
        finish.set()
        assert first.result().read(0, SIZE) == second.result().read(0, SIZE) == content_of(1)


@pytest.mark.parametrize("chunks", [1, 1.5, 3, 10, 25])
def test_bound__is_kept_under_concurrent_readers(tmp_path: Path, chunks: float) -> None:
    """The chunks under way are within it too, unless it is smaller than these alone."""
    num_threads, source = 6, Source()
    most: list[int] = []

    def work(seed: int) -> None:
        cache = make(tmp_path, chunks)
        for number in np.random.default_rng(seed).integers(0, 40, 25).tolist():
            assert read(cache, source, number) == content_of(number)
            most.append(held_bytes(tmp_path))

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(work, range(num_threads)))
    assert max(most) <= max(chunks, num_threads) * SIZE
    assert stored_bytes(tmp_path) <= written_total(tmp_path)
    for number in (100, 101, 102):  # alone: strictly
        read(make(tmp_path, chunks), source, number)
        assert stored_bytes(tmp_path) == written_total(tmp_path) <= chunks * SIZE


def test_eviction__least_recently_used_first_and_open_ones_stay_readable(tmp_path: Path) -> None:
    cache, source = make(tmp_path, 10), Source()
    chunks = {number: cache.open(name_of(number), SIZE, source.fetch(number)) for number in range(10)}
    for number, chunk in chunks.items():
        os.utime(chunk.descriptor, ns=(number, number))
    read(cache, source, 0)
    for number in range(10, 14):
        read(cache, source, number)
    for number in (0, 10, 11, 12, 13):
        cache.open(name_of(number), SIZE, refuse)
    source.fetched.clear()
    read(cache, source, 1)
    assert source.fetched == [1]
    assert all(chunk.read(0, SIZE) == content_of(number) for number, chunk in chunks.items())


def test_total__lost_or_damaged_is_counted_anew(tmp_path: Path) -> None:
    source = Source()
    for number, damage in enumerate([b"", b"12x", b"\0" * 21, None]):
        read(make(tmp_path), source, number)
        path = tmp_path / "chunks" / "total"
        path.unlink() if damage is None else path.write_bytes(damage)
    read(make(tmp_path), source, 9)
    assert written_total(tmp_path) == stored_bytes(tmp_path) == 5 * SIZE


@pytest.mark.parametrize("damage", [b"", b"short", bytes(SIZE + 1)])
def test_open__file_of_another_size_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    source = Source()
    for _ in range(2):
        read(make(tmp_path), source, 1)
        next((tmp_path / "chunks").glob(f"*/{name_of(1)}")).write_bytes(damage)
    assert read(make(tmp_path), source, 1) == content_of(1)
    assert source.fetched == [1, 1, 1]


def test_discard__only_the_file_that_was_read(tmp_path: Path) -> None:
    cache, source = make(tmp_path), Source()
    old = cache.open(name_of(1), SIZE, source.fetch(1))
    cache.discard(name_of(1), old)
    assert written_total(tmp_path) == 0
    read(cache, source, 1)
    cache.discard(name_of(1), old)
    cache.open(name_of(1), SIZE, refuse)
    assert source.fetched == [1, 1]


def test_discard__of_a_file_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """As on a network file system that has forgotten it."""
    cache = make(tmp_path)
    chunk = cache.open(name_of(1), SIZE, Source().fetch(1))
    os.close(chunk.descriptor)
    cache.discard(name_of(1), chunk)
    chunk.descriptor = os.open(os.devnull, os.O_RDONLY)  # it closes what it has


def test_eviction__removes_abandoned_fetches_and_counts_those_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, writing, finish = Source(), threading.Event(), threading.Event()
    for number in range(3):
        read(make(tmp_path, 4), source, number)
    abandoned = tmp_path / "chunks" / "fetching" / name_of(50)
    abandoned.write_bytes(bytes(SIZE))

    def slow(descriptor: int, content: bytes) -> None:
        if content == content_of(60):
            writing.set()
            finish.wait()
        cachefiles.write(descriptor, content)

    monkeypatch.setattr(cache_module, "write", slow)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(read, make(tmp_path, 4), source, 60)
        writing.wait()
        try:
            for number in range(4, 8):
                read(make(tmp_path, 4), source, number)
                assert not abandoned.exists()
                assert stored_bytes(tmp_path) <= written_total(tmp_path) <= 4 * SIZE
        finally:
            finish.set()
        assert other.result() == content_of(60)
    assert stored_bytes(tmp_path) == written_total(tmp_path)


def test_total__what_a_killed_fetch_has_left_is_counted_once(tmp_path: Path) -> None:
    read(make(tmp_path), Source(), 1)
    (tmp_path / "chunks" / "fetching" / name_of(2)).write_bytes(bytes(SIZE))
    (tmp_path / "chunks" / "total").write_text(f"{2 * SIZE}")
    assert read(make(tmp_path), Source(), 2) == content_of(2)
    assert stored_bytes(tmp_path) == written_total(tmp_path) == 2 * SIZE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", [3, 0])
def test_full_disk__half_of_the_cache_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, room: int
) -> None:
    """A disk with room for 6 chunks, and later for `room`."""
    cache, source, chunks = make(tmp_path), Source(), 6

    def write(descriptor: int, content: bytes) -> None:
        if len(list((tmp_path / "chunks").glob("??/*"))) >= chunks:
            os.pwrite(descriptor, content[: SIZE // 2], 0)
            raise OSError(code, os.strerror(code))
        cachefiles.write(descriptor, content)

    monkeypatch.setattr(cache_module, "write", write)
    for number in range(7):
        assert read(cache, source, number) == content_of(number)
    assert stored_bytes(tmp_path) == written_total(tmp_path) == 4 * SIZE
    chunks = room
    if room:
        assert read(cache, source, 8) == content_of(8)
    else:
        with pytest.raises(FullDiskError, match=r"^data\.cache_dir: .*cannot be kept here \("):
            read(cache, source, 8)
    assert stored_bytes(tmp_path) == written_total(tmp_path)
    assert list((tmp_path / "chunks" / "fetching").iterdir()) == []


def _killed_at_line(number: int, work: Callable[[], object]) -> bool:
    """Fork a child that does `work`, and is killed when it comes to the `number`-th different line of the cache's code.

    False: there are not as many.
    """
    files = (cache_module.__file__, cachefiles.__file__)
    pid = os.fork()
    if pid == 0:
        seen: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                seen.add((frame.f_code.co_filename, frame.f_lineno))
                if len(seen) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@FORKS
@pytest.mark.parametrize("first", [1, 2])
def test_kill__at_any_line(tmp_path: Path, first: int) -> None:
    def fetch_one_that_evicts() -> None:
        make(tmp_path, 4).open(name_of(7), SIZE, lambda: content_of(7))

    source, line = Source(), first
    for number in range(4):
        read(make(tmp_path, 4), source, number)
    while _killed_at_line(line, fetch_one_that_evicts):
        assert stored_bytes(tmp_path) <= min(4 * SIZE, written_total(tmp_path))
        cache = make(tmp_path, 4)
        assert [read(cache, source, number) for number in (8, 7)] == [content_of(8), content_of(7)]
        cache.clean()
        assert list((tmp_path / "chunks" / "fetching").iterdir()) == []
        for number in range(4):  # full again, and the chunk of the next child is not there
            assert read(cache, source, number) == content_of(number)
        assert stored_bytes(tmp_path) <= min(4 * SIZE, written_total(tmp_path))
        line += 2
    assert line > 60


@FORKS
def test_fork__does_not_hold_on_to_locks(tmp_path: Path) -> None:
    fetching, finish, woken = threading.Event(), threading.Event(), threading.Event()

    def slow() -> bytes:
        fetching.set()
        finish.wait()
        raise StorageError("no net")

    def wait_for_it() -> None:
        read(make(tmp_path), Source(), 1)
        woken.set()

    def fail() -> None:
        with pytest.raises(StorageError):
            make(tmp_path).open(name_of(1), SIZE, slow)

    one, other = threading.Thread(target=fail, daemon=True), threading.Thread(target=wait_for_it, daemon=True)
    one.start()
    fetching.wait()
    pid = os.fork()  # the child has the descriptor of the lock
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        other.start()
        finish.set()
        assert woken.wait(30)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    one.join()
    other.join()


def test_no_locks__warns_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    source = Source()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: read(make(tmp_path, 3), source, number % 8), range(40)))
    assert found == [content_of(number % 8) for number in range(40)]
    assert [record.message.count("data.cache_dir") for record in caplog.records] == [1]
    assert list((tmp_path / "chunks" / "fetching").iterdir()) == []


def test_unusable_folder__one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^data.cache_dir: .*file/chunks: .*Not a directory.*lower data.cache_gib$"):
        read(make(tmp_path / "file"), Source(), 1)


def test_full_disk__one_line_and_nothing_left(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from dinowds.data.store.cache import CacheOptions, ChunkCache\nfrom dinowds.errors import ConfigError\n"
        "cache = ChunkCache(CacheOptions(Path(sys.argv[1]), 10**6))\n"
        "cache.open('aa', 1000, lambda: bytes(1000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: cache.open('bb', 5000, lambda: bytes(5000))\nexcept ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"data.cache_dir: {tmp_path}/chunks: chunks of remote shards cannot be kept here (")
    assert done.stdout.count("\n") == 1
    assert stored_bytes(tmp_path) == 1000
