"""What the server that forks loader processes imports: what these need; and what it leaves to no one."""

from __future__ import annotations

import atexit
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import dinowds.data.loader  # noqa: F401


@atexit.register
def _remove_socket() -> None:
    """Remove the socket that the server listened on, and its folder in TMPDIR, if whoever had started it was killed.

    The server ends when the last one is gone that could ask it; one that ends by itself has removed them before.
    """
    server = vars(forkserver)["_forkserver"]  # there is no public name
    address = getattr(server, "_forkserver_address", None)
    is_server = getattr(server, "_forkserver_pid", None) is None
    if is_server and isinstance(address, str) and address.startswith("/"):
        with suppress(OSError):
            Path(address).unlink()
            Path(address).parent.rmdir()
