"""Work that is done ahead of time, in the background."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Generic, TypeVar

from dinowds.remote.threads import Threads

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

    What fails is left to whoever needs it in earnest. Nothing ever waits for the threads.
    """

    def __init__(self, work: Callable[[T], object], num_threads: int, most: int) -> None:
        """
        Args:
            work: what to do; must not hold a reference to this object.
            num_threads: at most; started as they are needed.
            most: items that wait at most; what does not fit is passed over.
        """
        self._work, self._most = work, most
        self._recent: Recent[T] = Recent(2 * most)
        self._threads = Threads(num_threads, "dinowds-ahead")
        self._putting = threading.Lock()

    def put(self, items: Iterable[T]) -> None:
        """Items to work on soon. Those that were put of late are not taken again."""
        with self._putting:
            for item in items:
                if self._threads.num_waiting >= self._most:
                    break
                if self._recent.is_new(item):
                    self._threads.submit(partial(_try, self._work, item))

    def close(self) -> None:
        """Forget what waits; wait for nothing."""
        self._threads.close()


def _try(work: Callable[[T], object], item: T) -> None:
    try:
        work(item)
    except Exception as error:
        with contextlib.suppress(Exception):
            logging.getLogger(__name__).debug("%r: %s", item, error)
