"""Helper processes that do not outlive the one that started them."""

from __future__ import annotations

import os
import threading
from multiprocessing import connection, parent_process


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
