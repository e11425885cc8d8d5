"""A proxy for TCP connections that harms some of them."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """What it has done so far."""

    url: str
    drawn: random.Random
    every: int
    faults_made: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)

    def fault(self) -> tuple[str, int] | None:
        """How an answer is harmed, and after how many of its bytes."""
        with self.lock:
            if self.drawn.randrange(self.every):
                return None
            self.faults_made += 1
            return self.drawn.choice(("reset", "cut", "stall")), self.drawn.choice((0, 100, 600, 2000))


@contextmanager
def faulty_proxy(url: str, seed: int, every: int) -> Iterator[Proxy]:
    """Hand connections on to the server at `url`; about one answer in `every` is reset, cut or stalls."""
    place = urlsplit(url)
    assert place.hostname
    assert place.port
    target = (place.hostname, place.port)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(f"http://127.0.0.1:{listening.getsockname()[1]}", random.Random(seed), every)
        thread = threading.Thread(target=_accept, args=(proxy, listening, target), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ending.set()
            thread.join()


def _accept(proxy: Proxy, listening: socket.socket, target: tuple[str, int]) -> None:
    while not proxy.ending.is_set():
        if select.select([listening], [], [], 0.05)[0]:
            client, _ = listening.accept()
            threading.Thread(target=_serve, args=(proxy, client, target), daemon=True).start()


def _serve(proxy: Proxy, client: socket.socket, target: tuple[str, int]) -> None:
    """Bytes in both directions, until one side ends or a fault is made."""
    with client, socket.create_connection(target) as server, suppress(OSError):
        fault, answered = None, 0
        while not proxy.ending.is_set():
            for ready in select.select([client, server], [], [], 0.05)[0]:
                content = ready.recv(1 << 16)
                if not content:
                    return
                if ready is client:
                    fault, answered = proxy.fault(), 0  # a request is small: it comes at once
                    server.sendall(content)
                    continue
                if fault is None:
                    client.sendall(content)
                    continue
                how, after = fault
                client.sendall(content[: max(0, after - answered)])
                answered += len(content)
                if answered > after:
                    _harm(proxy, client, how)
                    return


def _harm(proxy: Proxy, client: socket.socket, how: str) -> None:
    if how == "stall":
        client.settimeout(0.05)
        while not proxy.ending.is_set():
            with suppress(TimeoutError):
                if not client.recv(1):
                    return
    elif how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
