"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dinowds.processes import STOP_SIGNALS


class StopRequest:
    """Set by a signal."""

    name: str | None = None
    asked_at: float = 0.0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM or SIGUSR1 into a request; another SIGINT, a second or more later, interrupts at once.

    (A terminal's Ctrl-C reaches a rank twice: by itself and passed on by the launcher.)
    """
    request = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if request.name is None:
            request.name, request.asked_at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - request.asked_at > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
