"""Helper processes: they do not outlive the one that started them, and leave signals to it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process, resource_tracker, util

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
"""What asks a run to save and stop."""


_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a path of TMPDIR below which multiprocessing's sockets can lie: that of a socket has 107 at most."""


def keep_sockets_short() -> None:
    """Let multiprocessing's sockets lie below /tmp where TMPDIR is too long a path for them, as newer Pythons do."""
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        before, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            util.get_temp_dir()  # makes a folder, once
        finally:
            tempfile.tempdir = before


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it ended (SIGKILL too).

    Watches the pipe that multiprocessing keeps between the two. The parent's id would not do: under a fork server it is
    the server's, which lives as long as its children.
    """
    threading.Thread(target=_wait_and_exit, daemon=True).start()


def _wait_and_exit() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def shielded_from_signals() -> Iterator[None]:
    """Processes that are started meanwhile never see `STOP_SIGNALS`.

    A batch system sends those to every process of a job; without helpers the main process could not finish its step.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # multiprocessing's tracker of shared memory is one of them. Starting it lifts the mask, hence once more.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
