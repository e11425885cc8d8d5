"""Threads that wait for servers, and that nobody has to wait for."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Threads:
    """A few threads that do work in the order in which it is submitted. Not for a forked child.

    concurrent.futures' own pools wait for their threads when they, or the process, end: after a Ctrl-C for as long as
    a server is silent. These are daemons and hold no reference to this object, so nothing ever waits for them.
    """

    def __init__(self, num_threads: int, name: str = "dinowds") -> None:
        """At most `num_threads`, started as they are needed."""
        self._num_threads, self._name = num_threads, name
        self._threads: list[threading.Thread] = []
        self._queue = _Queue()
        self._pid = os.getpid()

    @property
    def num_waiting(self) -> int:
        """Items that nobody works on yet."""
        return len(self._queue.items)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done, which must not hold a reference to this object. Cancelled once that is closed."""
        future: Future[T] = Future()
        with self._queue.changed:
            if self._queue.closed:
                _cancel(future)
                return future
            self._queue.items.append((future, work))
            if len(self._threads) < min(self._num_threads, self._queue.at_work + len(self._queue.items)):
                thread = threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._queue.changed.notify()
        return future

    def close(self) -> None:
        """Cancel what waits. The threads end when what they are at is done; this does not wait for them."""
        if os.getpid() == self._pid:  # in a forked child the lock may be held by a thread that is not there
            with self._queue.changed:
                self._queue.closed = True
                for future, _ in self._queue.items:
                    _cancel(future)
                self._queue.items.clear()
                self._queue.changed.notify_all()

    def __del__(self) -> None:
        self.close()


def in_threads(function: Callable[[T], U], items: Collection[T], num_threads: int) -> list[U]:
    """The function's values, in order. After an error no more are begun, and those that are begun end first; a Ctrl-C
    waits for nothing.
    """
    threads = Threads(num_threads)
    futures = [threads.submit(partial(function, item)) for item in items]
    try:
        return [future.result() for future in futures]
    except Exception:
        threads.close()
        concurrent.futures.wait(futures)
        raise
    finally:
        threads.close()


class _Queue:
    def __init__(self) -> None:
        self.items: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.changed = threading.Condition(threading.RLock())  # __del__ may run while this thread holds it
        self.at_work = 0
        self.closed = False


def _cancel(future: Future[Any]) -> None:
    future.cancel()
    future.set_running_or_notify_cancel()  # else who waits for it would wait on


def _serve(queue: _Queue) -> None:
    while True:
        with queue.changed:
            queue.changed.wait_for(lambda: queue.items or queue.closed)
            if queue.closed:
                return
            future, work = queue.items.popleft()
            queue.at_work += 1
        _do(future, work)
        del future, work  # what they hold may go while this thread waits
        with queue.changed:
            queue.at_work -= 1


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
