"""Threads for requests: in order, and nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from dinowds.remote.threads import Threads, in_threads


def test_in_threads__values_in_order() -> None:
    assert in_threads(lambda number: number * number, range(100), 7) == [number * number for number in range(100)]
    assert in_threads(str, [], 7) == []


def test_in_threads__error_begins_no_more_and_waits_for_those_that_are_begun() -> None:
    begun, ended = [], []
    failed = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            failed.set()
            raise ValueError("this one")
        failed.wait()
        threading.Event().wait(0.05)
        ended.append(number)

    with pytest.raises(ValueError, match="this one"):
        in_threads(work, range(50), 3)
    assert sorted(ended) == sorted(begun)[1:]
    assert len(begun) < 50


def test_close__cancels_what_waits() -> None:
    threads, at_work, finish = Threads(1), threading.Event(), threading.Event()

    def work() -> str:
        at_work.set()
        finish.wait()
        return "done"

    first, second = threads.submit(work), threads.submit(work)
    at_work.wait()
    assert threads.num_waiting == 1
    threads.close()
    finish.set()
    assert first.result() == "done"
    for future in (second, threads.submit(work)):
        with pytest.raises(CancelledError):
            future.result()


def test_exit__waits_for_no_thread() -> None:
    script = (
        "import threading\nfrom dinowds.remote.threads import in_threads\nat_work = threading.Event()\n"
        "def work(number):\n    at_work.set()\n    threading.Event().wait()\n"
        "def interrupt():\n    import os\n    at_work.wait()\n    os.kill(os.getpid(), 2)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try: in_threads(work, range(9), 3)\nexcept KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
