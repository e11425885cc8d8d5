"""Servers on loopback that tests read remote files from: plain HTTP with ranges, a faulty one, and S3.

As context managers (`http_server`, `s3_server`) and as fixtures (`s3`), which `tests/conftest.py` hands on.
"""

from __future__ import annotations

import gzip
import http.server
import itertools
import logging
import random
import re
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import pytest

Fault = Literal[
    "500", "503", "429", "403", "404", "close", "reset", "stall", "hang", "cut", "short", "whole", "other", "endless",
    "gzip", "loop", "file", "elsewhere",
]  # fmt: skip
"""Answers with this status; closes the socket; resets it; never answers; sends half of the body and then nothing, or
closes (cut); sends all of the range but its last byte and says so; sends the whole file instead of a range; sends the
range behind it; sends the range and then goes on until the client is gone; packs the range though it was not to;
redirects to the same URL, to a file of the client's host, to the same path at `elsewhere`."""

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_bucket_numbers = itertools.count()


@dataclass
class HttpServer:
    """What a server has done so far. `ranges` are (name, start, stop) as they were asked for."""

    url: str
    faults: tuple[Fault, ...] = ()
    every: int = 3
    bytes_sent: int = 0
    requests: int = 0
    faults_made: int = 0
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event = field(default_factory=threading.Event)
    """Cleared: answers wait until it is set."""
    drawn: random.Random | None = None
    """Draws which requests fail, and how; in turn otherwise."""
    skip: int = 0
    """Requests before the first that may fail."""
    elsewhere: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request."""

    def next_fault(self) -> Fault | None:
        """Every third request (or `every`) has a fault, one kind after another."""
        with self.lock:
            self.requests += 1
            if not self.faults or self.requests <= self.skip:
                return None
            if self.drawn.random() >= 1 / self.every if self.drawn else self.requests % self.every:
                return None
            self.faults_made += 1
            if self.drawn:
                return self.drawn.choice(self.faults)
            return self.faults[(self.faults_made - 1) % len(self.faults)]

    def sent(self, num_bytes: int) -> None:
        with self.lock:
            self.bytes_sent += num_bytes


@contextmanager
def http_server(
    folder: Path, faults: tuple[Fault, ...] = (), every: int = 3, seed: int | None = None
) -> Iterator[HttpServer]:
    """Serve `folder`. With `faults`, every third request (or `every`) fails in one of these ways, in turn; with `seed`,
    as many at random, in ways drawn at random.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.folder = folder
    server.state = HttpServer(f"http://127.0.0.1:{server.server_port}", faults, every)
    server.state.hold.set()
    server.state.drawn = None if seed is None else random.Random(seed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.state
    finally:
        server.state.ending.set()
        server.state.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    folder: Path
    state: HttpServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def translate_path(self, path: str) -> str:
        self.directory = str(self.server.folder)
        return super().translate_path(path)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""

    def _answer(self, with_body: bool) -> None:
        state = self.server.state
        state.hold.wait()
        with state.lock:
            state.headers.append(dict(self.headers))
        fault = state.next_fault()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault in ("loop", "file", "elsewhere"):
            self.send_response(HTTPStatus.FOUND)
            places = {"loop": self.path, "file": "file:///etc/passwd", "elsewhere": state.elsewhere + self.path}
            self.send_header("Location", places[fault])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "stall":
            state.ending.wait()
        if fault in ("stall", "close"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and fault.isdigit():
            self._send(HTTPStatus(int(fault)), b"", 0, with_body)
            return
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            super().do_GET()
        elif not path.is_file():
            self._send(HTTPStatus.NOT_FOUND, b"", 0, with_body)
        else:
            self._send_file(path, fault, with_body)

    def _send_file(self, path: Path, fault: Fault | None, with_body: bool) -> None:
        content = path.read_bytes()
        encoding = "gzip" if fault == "gzip" or "gzip" in self.headers.get("Accept-Encoding", "") else ""
        content = gzip.compress(content) if encoding else content  # ranges are then those of the compressed file
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or fault == "whole":
            self._send(HTTPStatus.OK, content, len(content), with_body)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        with self.server.state.lock:
            self.server.state.ranges.append((path.name, start, stop))
        if start >= stop:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", 0, with_body, f"bytes */{len(content)}")
            return
        if fault == "short":
            stop -= 1
        if fault == "other":
            start, stop = start + 1, stop + 1
        part = content[start:stop]
        said = f"bytes {start}-{stop - 1}/{len(content)}"
        if fault == "endless":
            self._send_endlessly(part, said)
            return
        body = part[: len(part) // 2] if fault in ("cut", "hang") else part
        self._send(HTTPStatus.PARTIAL_CONTENT, body, len(part), with_body, said, encoding, fault)

    def _send_endlessly(self, part: bytes, said: str) -> None:
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", said)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not self.server.state.ending.is_set():
            self.wfile.write(part)
            self.server.state.sent(len(part))

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        length: int,
        with_body: bool,
        content_range: str = "",
        encoding: str = "",
        fault: Fault | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        if with_body:
            self.server.state.sent(len(body))  # first: the client may look as soon as it has them
            self.wfile.write(body)
            if len(body) < length and fault == "hang":
                self.wfile.flush()
                self.server.state.ending.wait()
        self.close_connection = self.close_connection or len(body) < length


@dataclass(frozen=True)
class S3Server:
    """`url` is that of an empty bucket; `environment` is what a client needs to reach it."""

    url: str
    environment: dict[str, str]


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server. Yields its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An empty bucket, and the environment in which this process and those that it starts reach it."""
    bucket = f"bucket-{next(_bucket_numbers)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/{bucket}", method="PUT")).close()
    environment = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return S3Server(f"s3://{bucket}", environment)
