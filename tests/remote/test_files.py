"""Remote files: exact ranges whatever the server does, and one clear line where that cannot be."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.memory
import numpy as np
import pytest

from dinowds.errors import StorageError
from dinowds.remote import files as files_module
from dinowds.remote.files import MissingFileError, RemoteFiles, RetryOptions
from tests.servers import Fault, S3Server, http_server

FAST = RetryOptions(first_wait_s=0.001, longest_wait_s=0.01, timeout_s=0.5)
ALL_FAULTS: tuple[Fault, ...] = ("500", "close", "cut", "503", "short", "429")


def random_bytes(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(random_bytes(1, 100_000))
    (tmp_path / "empty.bin").write_bytes(b"")
    return tmp_path


def test_read__exact_ranges(folder: Path) -> None:
    content = (folder / "a.bin").read_bytes()
    rng = np.random.default_rng(0)
    with http_server(folder) as server:
        files = RemoteFiles(FAST)
        for start, stop in [
            (0, 1),
            (0, 100_000),
            (99_999, 100_000),
            *np.sort(rng.integers(0, 100_001, (30, 2))).tolist(),
        ]:
            assert files.read(f"{server.url}/a.bin", start, stop) == content[start:stop]
        assert files.read(f"{server.url}/a.bin") == content
        assert files.read(f"{server.url}/a.bin", 99_000) == content[99_000:]
        assert files.read(f"{server.url}/empty.bin") == b""
        assert files.size(f"{server.url}/empty.bin") == 0
        assert files.size(f"{server.url}/a.bin") == 100_000
        assert files.exists(f"{server.url}/a.bin")
        assert not files.exists(f"{server.url}/b.bin")
        assert files.names(server.url) == ["a.bin", "empty.bin"]
        assert files.names(f"{server.url}/nowhere") == []


def test_read__asks_for_no_more_than_the_range(folder: Path) -> None:
    with http_server(folder) as server:
        RemoteFiles(FAST).read(f"{server.url}/a.bin", 500, 700)
        assert (server.requests, server.bytes_sent) == (1, 200)


def test_read__every_third_request_fails(folder: Path) -> None:
    content = (folder / "a.bin").read_bytes()
    ranges = np.sort(np.random.default_rng(1).integers(0, 100_001, (60, 2))).tolist()
    with http_server(folder, ALL_FAULTS) as server, ThreadPoolExecutor(4) as threads:
        files = RemoteFiles(dataclasses.replace(FAST, tries=20))  # four at once: one can meet each third request
        found = list(threads.map(lambda pair: files.read(f"{server.url}/a.bin", *pair), ranges))
        assert server.faults_made >= 2 * len(ALL_FAULTS)
    assert found == [content[start:stop] for start, stop in ranges]


def test_read__stalls(folder: Path) -> None:
    content = (folder / "a.bin").read_bytes()
    with http_server(folder, ("stall",), every=2) as server:
        files = RemoteFiles(RetryOptions(first_wait_s=0.001, timeout_s=0.2))
        for start in range(0, 3000, 1000):
            assert files.read(f"{server.url}/a.bin", start, start + 1000) == content[start : start + 1000]
        assert server.faults_made == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "500 Internal Server Error"), ("503", "503 Service Unavailable"), ("stall", "no answer in time"),
        ("cut", "ClientPayloadError"), ("short", "99 of 100 bytes"), ("close", "ServerDisconnectedError"),
    ],
)  # fmt: skip
def test_read__final_error_after_all_tries(folder: Path, fault: Fault, reason: str) -> None:
    options = RetryOptions(tries=3, first_wait_s=0.001, timeout_s=0.2)
    with http_server(folder, (fault,), every=1 if fault != "short" else 3) as server:
        if fault == "short":  # asking for the size must not be cut short too: faults on requests 1, 3, 5
            server.every, server.requests = 2, 1
        url = f"{server.url}/a.bin"
        with pytest.raises(StorageError) as caught:
            RemoteFiles(options).read(url, 100, 200)
    message = str(caught.value)
    assert message.startswith(f"{url} [100, 200): cannot be read after 3 tries (")
    assert reason in message
    assert "check the network" in message
    assert "\n" not in message


def test_read__refused_connection() -> None:
    with socket.socket() as bound:  # bound, not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/a.bin"
        with pytest.raises(StorageError, match=r"after 6 tries .*annot connect"):
            RemoteFiles(FAST).read(url, 0, 10)


@pytest.mark.parametrize(
    ("fault", "name", "words", "requests"),
    [
        ("403", "a.bin", "after 1 try .not allowed, or no such file: 403.; check your credentials", 1),
        ("whole", "a.bin", "the server ignores ranges", 1),
        (None, "b.bin", "no such file or bucket; check the URL", 1),
        (None, "short.bin", r"the file has only 150 bytes; restore it", 2),
    ],
)  # fmt: skip
def test_read__final_at_once(folder: Path, fault: Fault | None, name: str, words: str, requests: int) -> None:
    (folder / "short.bin").write_bytes(bytes(150))
    with http_server(folder, (fault,) if fault else (), every=1) as server:
        with pytest.raises(StorageError, match=words):
            RemoteFiles(FAST).read(f"{server.url}/{name}", 100, 200)
        assert server.requests == requests
        assert server.bytes_sent <= 100_000


def test_read__whole_file_from_a_server_without_ranges(folder: Path) -> None:
    with http_server(folder, ("whole",), every=1) as server:
        assert RemoteFiles(FAST).read(f"{server.url}/a.bin") == (folder / "a.bin").read_bytes()


def test_read__other_bytes_than_asked_for_are_refused(folder: Path) -> None:
    with http_server(folder, ("other",), every=1) as server:
        with pytest.raises(StorageError, match=r"\[100, 200\): the server ignores ranges and sends .*another part"):
            RemoteFiles(FAST).read(f"{server.url}/a.bin", 100, 200)
        assert server.requests == 1


def test_read__takes_no_more_than_the_range_from_a_server_without_end(folder: Path) -> None:
    with http_server(folder, ("endless",), every=1) as server:
        with pytest.raises(StorageError, match="the server ignores ranges"):
            RemoteFiles(RetryOptions(tries=1, timeout_s=5)).read(f"{server.url}/a.bin", 0, 50_000)
        assert server.bytes_sent < 100 << 20


def test_read__whole_files_are_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_MOST_AT_ONCE", 99_999)
    with http_server(folder) as server:
        with pytest.raises(StorageError, match=r"a\.bin: has 100000 bytes, expected at most"):
            RemoteFiles(FAST).read(f"{server.url}/a.bin")
        assert server.bytes_sent <= 1  # counted once it is sent, which may be just now


def test_read__through_the_proxy_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "http:" / "nowhere.invalid").mkdir(parents=True)  # a proxy is asked for the whole URL
    (folder / "http:" / "nowhere.invalid" / "b.bin").write_bytes(b"by proxy")
    with http_server(folder) as server:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", server.url)
        assert RemoteFiles(FAST).read("http://nowhere.invalid/b.bin", 3, 8) == b"proxy"


def test_errors__keep_secrets(folder: Path) -> None:
    with http_server(folder) as server:
        url = server.url.replace("//", "//user:password@") + "/b.bin?signature=secret"
        with pytest.raises(MissingFileError) as caught:
            RemoteFiles(FAST).read(url, 0, 1)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_missing_package__names_the_extra(scheme: str, package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from dinowds.errors import StorageError\nfrom dinowds.remote.files import RemoteFiles\n"
        f"try: RemoteFiles().read('{scheme}://b/k', 0, 1)\nexcept StorageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{scheme}:// needs {package}")
    assert done.stdout.count("\n") == 1
    assert "pip install 'dinowds[" in done.stdout


def test_unknown_scheme() -> None:
    with pytest.raises(StorageError, match=r"^carrier-pigeon://a/b: .*known"):
        RemoteFiles().read("carrier-pigeon://a/b")


def test_memory__all_operations(tmp_path: Path) -> None:
    files = RemoteFiles(FAST)
    (tmp_path / "x").write_bytes(b"hello")
    files.upload(tmp_path / "x", "memory://test_remote/d/x")
    files.write("memory://test_remote/d/y", b"good bye")
    assert files.names("memory://test_remote/d") == ["x", "y"]
    assert files.read("memory://test_remote/d/x", 1, 3) == b"el"
    assert files.size("memory://test_remote/d/y") == 8
    assert not files.exists("memory://test_remote/d")
    files.remove("memory://test_remote/d/x")
    files.remove("memory://test_remote/d/x")
    assert files.names("memory://test_remote/d") == ["y"]


def test_http__is_read_only() -> None:
    with pytest.raises(StorageError, match=r"^http://h/x: cannot be written, http is read only"):
        RemoteFiles().write("http://h/x", b"")


class Lossy(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Loses the end of what is uploaded."""

    protocol = "lossy"

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:-1])


def test_upload__that_did_not_arrive_whole(tmp_path: Path) -> None:
    fsspec.register_implementation("lossy", Lossy, clobber=True)
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(StorageError, match=r"x: cannot be written after 6 tries \(4 of 5 bytes arrived\)"):
        RemoteFiles(FAST).upload(tmp_path / "x", "lossy://d/x")


@pytest.mark.parametrize("url", ["s3://key:s3cret@bucket/x", "s3://key:s3c/ret@bucket/x", "gs://key@bucket/x"])
def test_keys_in_urls__are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StorageError, match=r"has a user or a key before '@'") as caught:
        RemoteFiles(FAST).read(url)
    assert "key:" not in str(caught.value)
    assert "ret" not in str(caught.value)
    with pytest.raises(StorageError, match="names no bucket"):
        RemoteFiles(FAST).read("s3:///x")


def test_s3__without_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=r"after 1 try .*credentials.*; set AWS_ACCESS_KEY_ID and .* or AWS_PROFILE"):
        RemoteFiles(FAST).read(f"{s3.url}/x", 0, 1)


def test_s3__folders_that_are_objects_too(s3: S3Server) -> None:
    """As the console's 'create folder' makes them."""
    files = RemoteFiles(FAST)
    for name in ("d/", "d/sub/", "d/a"):
        files.write(f"{s3.url}/{name}", b"")
    assert files.names(f"{s3.url}/d") == ["a", "sub"]
    assert files.names(f"{s3.url}/d/") == ["a", "sub"]
    assert files.names(f"{s3.url}/d/sub") == []


def test_s3__has_bucket(s3: S3Server) -> None:
    files = RemoteFiles(FAST)
    assert files.has_bucket(f"{s3.url}/deep/down")
    assert not files.has_bucket("s3://no-such-bucket-anywhere/x")
    assert files.has_bucket("http://127.0.0.1:9/x")


def test_s3__write_read_list_remove(s3: S3Server, tmp_path: Path) -> None:
    files = RemoteFiles(FAST)
    big = random_bytes(2, 1_000_000)
    (tmp_path / "big").write_bytes(big)
    assert files.names(f"{s3.url}/d") == []
    files.upload(tmp_path / "big", f"{s3.url}/d/big.tar")
    files.write(f"{s3.url}/d/small.json", b"{}")
    assert files.names(f"{s3.url}/d") == ["big.tar", "small.json"]
    assert files.names(s3.url) == ["d"]
    assert files.size(f"{s3.url}/d/big.tar") == len(big)
    assert files.read(f"{s3.url}/d/big.tar", 1000, 5000) == big[1000:5000]
    assert files.read(f"{s3.url}/d/big.tar") == big
    files.write(f"{s3.url}/d/small.json", b"changed")
    assert files.read(f"{s3.url}/d/small.json") == b"changed"
    files.remove(f"{s3.url}/d/small.json")
    assert not files.exists(f"{s3.url}/d/small.json")
    assert not files.exists(f"{s3.url}/d")
    with pytest.raises(MissingFileError):
        files.read(f"{s3.url}/d/small.json", 0, 1)
    with pytest.raises(StorageError, match="has only 1000000 bytes"):
        files.read(f"{s3.url}/d/big.tar", 2_000_000, 2_000_001)
    with pytest.raises(StorageError, match="bucket"):
        files.write("s3://no-such-bucket-anywhere/x", b"")


def test_s3__other_endpoint_variable(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    RemoteFiles(FAST).write(f"{s3.url}/x", b"123")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    script = f"from dinowds.remote.files import RemoteFiles; print(RemoteFiles().read({s3.url + '/x'!r}))"
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", s3.environment["AWS_ENDPOINT_URL"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("b'123'\n", "")


def test_s3__unreachable(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"\[0, 10\): cannot be read after 3 tries .*; check the network"):
            RemoteFiles(RetryOptions(tries=3, first_wait_s=0.001)).read(f"{s3.url}/x", 0, 10)


@pytest.mark.parametrize("fault", ["500", "503", "stall", "cut", "close", "short"])
@pytest.mark.usefixtures("s3")
def test_s3__every_third_request_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    content = random_bytes(3, 10_000)
    (folder / "bucket").mkdir()
    (folder / "bucket" / "key").write_bytes(content)
    files = RemoteFiles(RetryOptions(first_wait_s=0.001, timeout_s=1.0))
    with http_server(folder, (fault,)) as server:  # to a client, S3's GET is that of any server
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        for start in range(0, 10_000, 2500):
            assert files.read("s3://bucket/key", start, start + 2500) == content[start : start + 2500]
        assert server.faults_made >= 1


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "the server answered 503 Service Unavailable"),
        ("cut", "ClientPayloadError"),
    ],
)
def test_s3__tries_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str) -> None:
    (folder / "bucket").mkdir()
    (folder / "bucket" / "key").write_bytes(bytes(100))
    with http_server(folder, (fault,), every=1) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(StorageError, match=rf"after 4 tries \(.*{reason}"):
            RemoteFiles(RetryOptions(tries=4, first_wait_s=0.001)).read("s3://bucket/key", 0, 10)
        assert server.requests == 4


@pytest.mark.usefixtures("s3")
def test_s3__server_without_ranges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bucket").mkdir()
    (folder / "bucket" / "key").write_bytes(bytes(100))
    with http_server(folder, ("whole",), every=1) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(StorageError, match="the server ignores ranges"):
            RemoteFiles(FAST).read("s3://bucket/key", 0, 10)


def _read_in_child(files: RemoteFiles, url: str, answer: Connection) -> None:
    answer.send_bytes(files.read(url, 10, 20))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes__after_use_in_this_one(folder: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with http_server(folder) as server:
        files = RemoteFiles(FAST)
        expected = files.read(f"{server.url}/a.bin", 10, 20)
        here, there = context.Pipe()
        child = context.Process(
            target=_read_in_child, args=(files, f"{server.url}/a.bin", there)
        )  # pickled by spawn only
        child.start()
        assert here.poll(60)
        assert here.recv_bytes() == expected
        child.join()
        assert files.read(f"{server.url}/a.bin", 10, 20) == expected


def test_interrupt__ends_at_once(folder: Path) -> None:
    script = (
        "import signal, sys\nfrom dinowds.remote.files import RemoteFiles\nprint('ready', flush=True)\n"
        "try: RemoteFiles().read(sys.argv[1], 0, 10)\nexcept KeyboardInterrupt: print('interrupted')"
    )
    with http_server(folder, ("stall",), every=1) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", script, f"{server.url}/a.bin"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = threading.Event()
        while not server.requests:
            waiting.wait(0.01)
        child.send_signal(2)
        out, errors = child.communicate(timeout=20)
    assert out == "ready\ninterrupted\n"
    assert errors == ""
    assert child.returncode == 0
