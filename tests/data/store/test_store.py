"""Payloads from local and remote shards: right bytes or an error, and no byte fetched twice."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from dinowds.data.dataset import Sample
from dinowds.data.manifest import Manifest, Shard
from dinowds.data.store import cache as cache_module
from dinowds.data.store import store as store_module
from dinowds.data.store.cache import CacheOptions
from dinowds.data.store.store import LocalStore, MixedStore, RemoteStore, Run, Store, open_store
from dinowds.errors import DatasetError, SampleError, StorageError
from dinowds.files import sha256_of
from dinowds.remote.files import RemoteFiles, RetryOptions
from tests.servers import S3Server, http_server

SHARDS, SAMPLES, CHUNK = 3, 20, 4
FAST = RemoteFiles(RetryOptions(first_wait_s=0.001, longest_wait_s=0.01, timeout_s=0.3))
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@dataclass(frozen=True)
class Shards:
    """Shards of random payloads, and what an index says of them."""

    urls: tuple[str, ...]
    manifest: Manifest
    samples: tuple[Sample, ...]
    runs: tuple[Run, ...]

    def shard_url(self, shard: int) -> str:
        return self.urls[shard]

    def at(self, root: str) -> Shards:
        return replace(self, urls=tuple(f"{root}/{Path(url).name}" for url in self.urls))

    def run_of(self, sample: Sample) -> Run:
        return self.runs[sample.id // CHUNK]


def make_shards(folder: Path) -> Shards:
    rng = np.random.default_rng(0)
    shards: list[Shard] = []
    samples: list[Sample] = []
    for shard in range(SHARDS):
        content = bytearray()
        for _ in range(SAMPLES):
            content += bytes(512)
            payload = rng.bytes(int(rng.integers(1, 3000)))
            place = (len(samples), f"key{len(samples)}", shard, len(content), len(payload))
            samples.append(Sample(*place, "jpg", xxhash.xxh3_128_digest(payload), None))
            content += payload
        path = folder / f"{shard}.tar"
        path.write_bytes(content + bytes(1024))
        shards.append(Shard(str(path), SAMPLES, path.stat().st_size, sha256_of(path)))
    manifest = Manifest("test", "image", tuple(shards), {}, (), 0, "")
    groups = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
    runs = tuple(Run(group[0].shard, group[0].offset, group[-1].offset + group[-1].size) for group in groups)
    return Shards(tuple(shard.url for shard in shards), manifest, tuple(samples), runs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


@pytest.fixture
def local(folder: Path) -> Shards:
    return make_shards(folder)


@pytest.fixture
def kept(tmp_path: Path) -> CacheOptions:
    return CacheOptions(tmp_path / "cache")


def expected(local: Shards, sample: Sample) -> bytes:
    return Path(local.urls[sample.shard]).read_bytes()[sample.offset : sample.offset + sample.size]


def read_all(store: Store, shards: Shards, order: list[int] | None = None) -> dict[int, bytes]:
    samples = [shards.samples[i] for i in order or range(len(shards.samples))]
    return {sample.id: store.read(sample, shards.run_of(sample)) for sample in samples}


def all_expected(local: Shards) -> dict[int, bytes]:
    return {sample.id: expected(local, sample) for sample in local.samples}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + 30, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def run_bytes(shards: Shards) -> int:
    return sum(run.stop - run.start for run in shards.runs)


def test_local__reads_and_counts(local: Shards) -> None:
    store = open_store(local)
    assert isinstance(store, LocalStore)
    store.expect(local.runs)
    store.expect([*local.runs, Run(0, 10**9, 10**9 + 1)])
    assert store.bytes_read == 0
    assert read_all(store, local) == all_expected(local)
    assert {sample.id: store.read(sample) for sample in local.samples} == all_expected(local)
    assert store.bytes_read == 2 * sum(sample.size for sample in local.samples)
    store.close()
    assert read_all(pickle.loads(pickle.dumps(store)), local) == all_expected(local)  # noqa: S301


def test_local__wrong_bytes(local: Shards) -> None:
    damage(Path(local.urls[0]), local.samples[2].offset)
    store = LocalStore(local)
    with pytest.raises(SampleError, match=r"0.tar: key2.jpg: the bytes do not match the digest"):
        store.read(local.samples[2], local.runs[0])
    assert store.read(local.samples[3], local.runs[0]) == expected(local, local.samples[3])
    assert len(LocalStore(local, verify_digests=False).read(local.samples[2])) == local.samples[2].size


def test_local__shard_that_is_not_whole(local: Shards) -> None:
    path = Path(local.urls[0])
    path.write_bytes(path.read_bytes()[:-1])
    Path(local.urls[1]).unlink()
    store = LocalStore(local)
    store.expect(local.runs)
    with pytest.raises(DatasetError, match=r"0.tar: shard has \d+ bytes, the manifest says \d+; restore it"):
        store.read(local.samples[0])
    with pytest.raises(DatasetError, match=r"1.tar: shard cannot be opened \(No such file"):
        store.read(local.samples[SAMPLES])


def test_local__more_shards_than_open_files(local: Shards) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    store, others = LocalStore(local), [os.dup(0)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(others) + 20, limits[1]))
        with suppress(OSError):
            while True:
                others.append(os.dup(0))
        with pytest.raises(DatasetError, match=r"Too many open files\); raise the limit"):
            store.read(local.samples[0])
        os.close(others.pop())
        for i in np.random.default_rng(0).permutation(len(local.samples)).tolist():  # one file is enough
            assert len(store.read(local.samples[i])) == local.samples[i].size
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in others:
            os.close(descriptor)


def test_local__keeps_a_quarter_of_the_open_files_at_most(local: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = LocalStore(local)
    before = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    room = max(before) + 8
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, limits[1]))
        assert store_module._most_open() == room // 4
        monkeypatch.setattr(store_module, "_OPEN_FILES", 1)
        for sample in local.samples:
            assert store.read(sample) != b""
            assert len(list(Path("/proc/self/fd").iterdir())) <= len(before) + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_local__shard_that_is_forgotten_by_its_file_system(local: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    store, before = LocalStore(local), len(list(Path("/proc/self/fd").iterdir()))

    def stale(_: object, __: int, ___: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "check_size", stale)
        store.expect(local.runs)
        with pytest.raises(SampleError, match=r"0.tar: key0.jpg: cannot be read \(Stale file handle\)"):
            store.read(local.samples[0])
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert read_all(store, local) == all_expected(local)


def test_local__pipe_in_a_shards_place(local: Shards) -> None:
    Path(local.urls[0]).unlink()
    os.mkfifo(local.urls[0])
    with pytest.raises(DatasetError, match=r"0.tar: shard cannot be opened \(Not a regular file\)"):
        LocalStore(local).read(local.samples[0])


def test_remote__chunks_are_whole_without_digests(folder: Path, local: Shards, kept: CacheOptions) -> None:
    """A power cut can leave zeros where a chunk was, of the right size."""
    with http_server(folder) as server:
        remote = local.at(server.url)
        assert read_all(RemoteStore(remote, False, kept), local) == all_expected(local)
        before = server.requests
        assert read_all(RemoteStore(remote, False, kept), local) == all_expected(local)
        assert server.requests == before
        assert kept.folder is not None
        for path in (kept.folder / "chunks").glob("??/*"):
            path.write_bytes(bytes(path.stat().st_size))
        assert read_all(RemoteStore(remote, False, kept), local) == all_expected(local)


@pytest.mark.parametrize("verify", [True, False])
def test_remote__datasets_cannot_poison_each_others_chunks(
    tmp_path: Path, folder: Path, local: Shards, kept: CacheOptions, verify: bool
) -> None:
    """The other one claims the same digests, of shards with other bytes."""
    (tmp_path / "other").mkdir()
    for path in folder.iterdir():
        (tmp_path / "other" / path.name).write_bytes(bytes(path.stat().st_size))
    with http_server(tmp_path / "other") as server:
        poison = RemoteStore(local.at(server.url), verify, kept)
        for sample in local.samples:
            with suppress(SampleError):
                poison.read(sample, local.run_of(sample))
    with http_server(folder) as server:
        assert read_all(RemoteStore(local.at(server.url), verify, kept), local) == all_expected(local)


def test_remote__full_disk_is_one_warning(
    folder: Path, local: Shards, kept: CacheOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_descriptor: int, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "write", full)
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        assert read_all(store, local) == all_expected(local)
        assert server.requests == len(local.samples) + 1  # the first chunk was fetched in vain
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def test_remote__errors_keep_secrets(folder: Path, local: Shards, kept: CacheOptions) -> None:
    damage(Path(local.urls[0]), local.samples[1].offset)
    Path(local.urls[1]).write_bytes(b"short")
    with http_server(folder) as server:
        remote = local.at(server.url.replace("//", "//user:SECRET@"))
        store = RemoteStore(remote, cache=kept)
        for sample in (local.samples[1], local.samples[SAMPLES]):
            with pytest.raises(DatasetError) as caught:
                store.read(sample, local.run_of(sample))
            assert str(caught.value).startswith(f"{server.url}/{sample.shard}.tar: ")


def test_remote__fetches_each_run_once_and_nothing_else(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        remote = local.at(server.url)
        store = open_store(remote, cache=kept)
        assert isinstance(store, RemoteStore)
        order = np.random.default_rng(1).permutation(len(local.samples)).tolist()
        assert read_all(store, remote, order) == all_expected(local)
        assert store.bytes_read == run_bytes(local)
        assert server.bytes_sent <= run_bytes(local)  # counted once it is sent, which may be just now
        assert server.requests == len(local.runs)
        other = open_store(remote, cache=kept)
        assert read_all(other, remote) == all_expected(local)
        assert (other.bytes_read, server.requests) == (0, len(local.runs))
        store.close()
        assert read_all(store, remote) == all_expected(local)


def test_remote__same_shard_elsewhere_is_not_fetched_again(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as first:
        read_all(RemoteStore(local.at(first.url), cache=kept), local)
    with http_server(folder) as second:
        assert read_all(RemoteStore(local.at(second.url), cache=kept), local) == all_expected(local)
        assert second.requests == 0


def test_expect__fetches_ahead_in_order(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        server.hold.clear()
        store.expect(local.runs)
        store.expect(local.runs)
        server.hold.set()
        wait_until(lambda: store.bytes_read == run_bytes(local))
        places = [(f"{run.shard}.tar", run.start, run.stop) for run in local.runs]
        assert Counter(server.ranges) == Counter(places)
        assert set(server.ranges[:4]) <= set(places[:12])  # eight threads take them in this order
        assert read_all(store, local) == all_expected(local)
        assert server.requests == len(local.runs)
        store.close()
        store.expect([Run(0, 0, 10)])
        assert server.requests == len(local.runs)


@pytest.mark.parametrize("ahead", [False, True])
def test_remote__faulty_server(folder: Path, local: Shards, kept: CacheOptions, ahead: bool) -> None:
    with http_server(folder, ("500", "close", "stall", "cut", "503", "short")) as server:
        store = RemoteStore(local.at(server.url), cache=kept, files=FAST)
        if ahead:
            store.expect(local.runs)
        assert read_all(store, local) == all_expected(local)
        assert server.faults_made >= 6
        store.close()


def test_remote__server_gone(local: Shards, folder: Path, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        remote = local.at(server.url)
    store = RemoteStore(remote, cache=kept, files=FAST)
    with pytest.raises(StorageError) as caught:
        store.read(local.samples[0], local.runs[0])
    assert str(caught.value).startswith(f"{remote.urls[0]} [512, {local.runs[0].stop}): cannot be read after 6 tries (")
    assert "\n" not in str(caught.value)


def test_remote__server_without_ranges(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder, ("whole",), every=1) as server:
        with pytest.raises(StorageError, match="the server ignores ranges"):
            read_all(RemoteStore(local.at(server.url), cache=kept, files=FAST), local)
        assert server.requests == 1


def test_remote__damaged_in_the_cache_is_fetched_again(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        remote = local.at(server.url)
        read_all(RemoteStore(remote, cache=kept), local)
        assert kept.folder is not None
        chunks = list((kept.folder / "chunks").glob("??/*"))
        assert len(chunks) == len(local.runs)
        for path in chunks:
            path.write_bytes(bytes(path.stat().st_size))
        before = server.requests
        store = RemoteStore(remote, cache=kept)
        assert read_all(store, local) == all_expected(local)
        assert server.requests == before + 2 * len(local.runs)  # the payload in hand, then the chunk
        assert read_all(RemoteStore(remote, cache=kept), local) == all_expected(local)
        assert server.requests == before + 2 * len(local.runs)


def test_remote__wrong_bytes_at_the_source(folder: Path, local: Shards, kept: CacheOptions) -> None:
    damage(Path(local.urls[0]), local.samples[1].offset)
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        for _ in range(2):
            with pytest.raises(SampleError, match=r"0.tar: key1.jpg: the bytes do not match the digest"):
                store.read(local.samples[1], local.runs[0])
            assert store.read(local.samples[0], local.runs[0]) == expected(local, local.samples[0])
        assert [place[1:] for place in server.ranges].count(local.runs[0][1:]) == 1  # the chunk was kept


@pytest.mark.parametrize("verify", [True, False])
def test_remote__truncated_shard(folder: Path, local: Shards, kept: CacheOptions, verify: bool) -> None:
    path = Path(local.urls[0])
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: local.samples[CHUNK].offset + 1])
    words = rf"0.tar: shard has {path.stat().st_size} bytes, the manifest says {whole}; restore it"
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), verify, kept, FAST)
        if verify:
            assert store.read(local.samples[0], local.runs[0]) == expected(local, local.samples[0])
        with pytest.raises(DatasetError, match=words):
            store.read(local.samples[CHUNK if verify else 0], local.runs[1 if verify else 0])


def test_remote__shard_of_another_size_without_digests(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), False, kept)
        read_all(store, local)
        assert server.requests == len(local.runs) + SHARDS  # one question for the size of each


def test_remote__cache_smaller_than_a_chunk(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=replace(kept, max_bytes=10))
        store.expect(local.runs)
        assert read_all(store, local) == all_expected(local)
        assert store.bytes_read == sum(sample.size for sample in local.samples)


def test_remote__eviction_under_concurrent_readers(folder: Path, local: Shards, kept: CacheOptions) -> None:
    small = replace(kept, max_bytes=3 * max(run.stop - run.start for run in local.runs))
    orders = [np.random.default_rng(seed).permutation(len(local.samples)).tolist() for seed in range(4)]
    with http_server(folder) as server, ThreadPoolExecutor(len(orders)) as threads:
        remote = local.at(server.url)
        stores = [RemoteStore(remote, cache=small) for _ in range(2)]
        stores[0].expect(local.runs)
        found = list(threads.map(lambda i: read_all(stores[i % 2], local, orders[i]), range(len(orders))))
    assert found == [all_expected(local)] * len(orders)


def _read_with_threads(remote: Shards, kept: CacheOptions, seed: int) -> list[dict[int, bytes]]:
    store = RemoteStore(remote, cache=kept)
    orders = [np.random.default_rng([seed, i]).permutation(len(remote.samples)).tolist() for i in range(3)]
    store.expect(remote.runs)
    with ThreadPoolExecutor(len(orders)) as threads:
        return list(threads.map(lambda order: read_all(store, remote, order), orders))


@FORKS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes__fetch_each_run_once(folder: Path, local: Shards, kept: CacheOptions, method: str) -> None:
    with http_server(folder) as server, multiprocessing.get_context(method).Pool(2) as pool:
        remote = local.at(server.url)
        server.hold.clear()
        results = [pool.apply_async(_read_with_threads, (remote, kept, seed)) for seed in range(2)]
        server.hold.set()
        found = [result.get(timeout=60) for result in results]
        assert found == [[all_expected(local)] * 3] * 2
        assert Counter(server.ranges) == Counter((f"{run.shard}.tar", run.start, run.stop) for run in local.runs)


def _read_with(store: Store, shards: Shards, answer: Connection) -> None:
    store.expect(shards.runs)
    answer.send((read_all(store, shards), store.bytes_read))


@FORKS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes__store_that_was_used_before(folder: Path, local: Shards, kept: CacheOptions, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        store.expect(local.runs[:3])
        store.read(local.samples[0], local.runs[0])
        here, there = context.Pipe()
        child = context.Process(target=_read_with, args=(store, local, there))  # pickled by spawn only
        child.start()
        assert here.poll(60)
        found, num_bytes = here.recv()
        child.join()
        assert found == all_expected(local)
        assert store.bytes_read + num_bytes == run_bytes(local)
        assert read_all(store, local) == all_expected(local)
        store.close()


_READER = """
import pickle, sys
from dinowds.data.store.store import RemoteStore
shards, kept = pickle.load(open(sys.argv[1], 'rb'))
store = RemoteStore(shards, cache=kept)
store.expect(shards.runs)
print('ready', flush=True)
"""
_READS_ALL = _READER + "for s in shards.samples: store.read(s, shards.run_of(s)); print(s.id, flush=True)\n"


def _start(tmp_path: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    (tmp_path / "arguments").write_bytes(pickle.dumps(arguments))
    command = [sys.executable, "-c", script, str(tmp_path / "arguments")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_kill__while_fetching(tmp_path: Path, folder: Path, local: Shards, kept: CacheOptions, moment: int) -> None:
    fetching = tmp_path / "cache" / "chunks" / "fetching"
    with http_server(folder, ("stall",), every=moment) as server:
        child = _start(tmp_path, _READS_ALL, local.at(server.url), kept)
        wait_until(lambda: server.faults_made > 0)
        child.kill()
        child.communicate()
        assert list(fetching.iterdir()) != []
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        store.read(local.samples[-1], local.runs[-1])
        assert list(fetching.iterdir()) == []
        assert read_all(store, local) == all_expected(local)


@pytest.mark.parametrize("end", ["", "store.close()", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"])
def test_exit__waits_for_no_fetch(tmp_path: Path, folder: Path, local: Shards, kept: CacheOptions, end: str) -> None:
    with http_server(folder, ("stall",), every=1) as server:
        script = _READER + f"sys.stdin.read(1)\n{end}\nstore.bytes_read\n"
        (tmp_path / "arguments").write_bytes(pickle.dumps((local.at(server.url), kept)))
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "arguments")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: server.requests >= 8)
        _, errors = child.communicate("x", timeout=20)  # less than one try takes
    assert child.returncode == (0 if "SIGINT" not in end else -signal.SIGINT)
    assert errors.count("\n") == 0 or "KeyboardInterrupt" in errors.splitlines()[-1]


def test_close__ends_the_threads(folder: Path, local: Shards, kept: CacheOptions) -> None:
    def threads() -> int:
        return sum(thread.name == "dinowds-ahead" for thread in threading.enumerate())

    wait_until(lambda: threads() == 0)
    with http_server(folder) as server:
        store = RemoteStore(local.at(server.url), cache=kept)
        store.expect(local.runs)
        assert threads() > 0
        store.close()
        wait_until(lambda: threads() == 0)
        dropped = RemoteStore(local.at(server.url), cache=kept)
        dropped.expect(local.runs)
        del dropped
        wait_until(lambda: threads() == 0)


def test_mixed__local_and_remote_shards(folder: Path, local: Shards, kept: CacheOptions) -> None:
    with http_server(folder) as server:
        mixed = replace(local, urls=(local.urls[0], f"{server.url}/1.tar", local.urls[2]))
        store = open_store(mixed, cache=kept)
        assert isinstance(store, MixedStore)
        store.expect(local.runs)
        assert read_all(store, local) == all_expected(local)
        assert {name for name, _, _ in server.ranges} == {"1.tar"}
        payloads = sum(sample.size for sample in local.samples if sample.shard != 1)
        assert store.bytes_read == payloads + server.bytes_sent
        assert read_all(pickle.loads(pickle.dumps(store)), local) == all_expected(local)  # noqa: S301
        store.close()


def test_s3(local: Shards, kept: CacheOptions, s3: S3Server) -> None:
    files = RemoteFiles()
    for url in local.urls:
        files.upload(Path(url), f"{s3.url}/d/{Path(url).name}")
    store = open_store(local.at(f"{s3.url}/d"), cache=kept)
    store.expect(local.runs)
    assert read_all(store, local) == all_expected(local)
    assert store.bytes_read == run_bytes(local)
    files.write(f"{s3.url}/d/0.tar", b"short")
    with pytest.raises(DatasetError, match=r"/d/0.tar: shard has 5 bytes, the manifest says \d+; restore it"):
        store.read(local.samples[0])
    store.close()
