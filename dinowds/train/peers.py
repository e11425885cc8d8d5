"""Ranks watch each other, so that when one fails all of them end, and each says which error was the first.

Gloo notices that a rank is gone. NCCL waits for it in the main thread, where no exception can reach it. So each rank
has a thread that shows a sign of life in torch's store, looks for that of the next rank, and ends the process where the
main thread cannot. A slow checkpoint or evaluation is no reason to end: the thread goes on meanwhile.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

import torch.distributed as td
from torch.distributed.distributed_c10d import PrefixStore, Store

from dinowds.errors import DinowdsError, StoppedBySignal, TrainingError
from dinowds.world import World

INTERVAL = 2.0
"""Seconds between two looks."""
PATIENCE = 15
"""Looks without a sign of life after which a rank counts as gone. Not seconds: a suspended job resumes in any order."""
GRACE = 20.0
"""Seconds that the main thread has to end by itself."""
LEAVING = 30.0
"""Seconds that rank 0, where the store may live, waits for the others at the end."""
_FINISHING = 5.0
"""Seconds that the thread may need for its last look."""

_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|Broken pipe")
_CAUSE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out")
_GO_ON = "the same command goes on from the last checkpoint"
_WHY_GONE = f"its output, or its host's log, says why; {_GO_ON}"


class LostRank(TrainingError):
    """Another rank failed or is gone: its error was the first."""


class Peers:
    """The other ranks, as a context: an exception that leaves it is told to all of them."""

    def __init__(self, world: World, store: Store) -> None:
        """`store`: one that all ranks share."""
        self._world = world
        self._store = PrefixStore("dinowds", store)
        self._own_connection = PrefixStore("dinowds", store.clone())  # the main thread may wait in the other
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dinowds-peers", daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._left.set()
        self._thread.join(_FINISHING)
        failed = error is not None and not isinstance(error, StoppedBySignal)
        with suppress(RuntimeError):  # the store went with its rank
            self._store.set(_alive(self._world.rank), "left")
            self._store.add("left", 1)
            deadline = time.monotonic() + (2 * INTERVAL if failed else LEAVING)
            while self._world.rank == 0 and self._store.add("left", 0) < self._world.size:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)

    def tell(self, error: BaseException) -> BaseException:
        """Let the others know why this rank ends. Returns what to raise: `LostRank` if another one was the reason."""
        if isinstance(error, StoppedBySignal):
            return error
        own = f"rank {self._world.rank} failed: {_line(error)}{_advice(error)}"
        if not is_lost(error):
            self._first_error(own)
            return error
        time.sleep(INTERVAL / 2)  # the rank that failed is about to say why
        cause = _CAUSE.search(str(error))
        lost = (
            f"rank {self._world.rank}: the connection to another rank was lost "
            f"({cause.group() if cause else _line(error)}); {_WHY_GONE}"
        )
        return LostRank(self._first_error(lost))

    def _first_error(self, own: str) -> str:
        """Enter `own` as the first error, unless there is one; returns the first."""
        with suppress(RuntimeError):
            return str(self._store.compare_set("error", "", own), "utf-8", "replace")
        return own

    def _watch(self) -> None:
        """In the thread, until this rank leaves."""
        neighbour = (self._world.rank + 1) % self._world.size
        looks = unchanged = 0
        before = b""
        while not self._left.wait(INTERVAL):
            looks += 1
            try:
                self._own_connection.set(_alive(self._world.rank), str(looks))
                sign = self._read(_alive(neighbour))
                unchanged = unchanged + 1 if sign == before and sign != b"left" else 0
                before = sign
                if unchanged >= PATIENCE:
                    self._own_connection.compare_set("error", "", f"rank {neighbour} is gone; {_WHY_GONE}")
                error = self._read("error").decode("utf-8", "replace")
            except RuntimeError:
                error = f"rank 0, or the launcher on its host, is gone; {_WHY_GONE}"
            if error:
                self._end(error)
                return

    def _read(self, key: str) -> bytes:
        return self._own_connection.get(key) if self._own_connection.check([key]) else b""

    def _end(self, error: str) -> None:
        if not self._left.wait(GRACE):
            sys.stderr.write(f"dinowds: error: {error}\n")
            sys.stderr.flush()
            os._exit(1)  # the main thread waits for what will never come


def is_lost(error: BaseException) -> bool:
    """Whether torch says with it that a rank is gone."""
    return isinstance(error, td.DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


def _alive(rank: int) -> str:
    return f"alive/{rank}"


def _line(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, DinowdsError) else f"{type(error).__name__}: {first}"


def _advice(error: BaseException) -> str:
    """What to do: the errors of dinowds say it themselves, such as that the command itself is wrong."""
    return "" if isinstance(error, DinowdsError) else f"; {_GO_ON}"
