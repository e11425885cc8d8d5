"""Work that is done ahead of time, in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Recent(Generic[T]):
    """Remembers the last `most` items."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[T, None] = OrderedDict()

    def is_new(self, item: T) -> bool:
        """Whether `item` was not seen of late; from now on it was."""
        is_new = item not in self._items
        self._items[item] = None
        self._items.move_to_end(item)
        if len(self._items) > self._most:
            self._items.popitem(last=False)
        return is_new


class ReadAhead(Generic[T]):
    """A few threads that do `work` on items in the order in which they were put. Not for a forked child.

    What fails is left to whoever needs it in earnest. The threads are daemons and hold no reference to this object, so
    nothing ever waits for them.
    """

    def __init__(self, work: Callable[[T], object], num_threads: int, most: int) -> None:
        """
        Args:
            work: what to do; must not hold a reference to this object either.
            num_threads: at most; started as they are needed.
            most: items that wait at most; what does not fit is passed over.
        """
        self._work, self._num_threads, self._most = work, num_threads, most
        self._queue: _Queue[T] = _Queue()
        self._recent: Recent[T] = Recent(2 * most)
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()

    def put(self, items: Iterable[T]) -> None:
        """Items to work on soon. Those that were put of late are not taken again."""
        with self._queue.changed:
            for item in items:
                if self._queue.closed or len(self._queue.items) >= self._most:
                    break
                if self._recent.is_new(item):
                    self._queue.items.append(item)
            wanted = min(self._num_threads, len(self._threads) + len(self._queue.items))
            self._queue.changed.notify_all()
        while len(self._threads) < wanted:
            thread = threading.Thread(target=_serve, args=(self._queue, self._work), name="dinowds-ahead", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Forget what waits. The threads end when what they are at is done; this does not wait for them."""
        if os.getpid() == self._pid:  # in a forked child the lock may be held by a thread that is not there
            with self._queue.changed:
                self._queue.closed = True
                self._queue.items.clear()
                self._queue.changed.notify_all()

    def __del__(self) -> None:
        self.close()


class _Queue(Generic[T]):
    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.changed = threading.Condition(threading.RLock())  # __del__ may run while this thread holds it
        self.closed = False


def _serve(queue: _Queue[T], work: Callable[[T], object]) -> None:
    while True:
        with queue.changed:
            queue.changed.wait_for(lambda: queue.items or queue.closed)
            if queue.closed:
                return
            item = queue.items.popleft()
        try:
            work(item)
        except Exception as error:
            with contextlib.suppress(Exception):
                logging.getLogger(__name__).debug("%r: %s", item, error)
