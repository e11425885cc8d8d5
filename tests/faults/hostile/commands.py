"""The `dinowds` command in children of a process that has imported it: how it ended, what it said and what it took.

Run as a script by `Commands`: a request on each line of stdin, an answer on each line of stdout, both JSON.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import cli
import cli.main
import dinowds

LIMIT = 90.0
"""Seconds that a command may take: far more than any does."""
_MOST_MEMORY = 12 << 30


class Ended(NamedTuple):
    """`status` is the exit code, or minus the signal; `peak` the bytes of memory of its largest process."""

    status: int
    out: str
    err: str
    peak: int
    seconds: float


class Commands:
    """Starts commands, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *arguments: object, room: Path, limit: float = LIMIT) -> Ended:
        """`dinowds` with `arguments` in the folder `room`/work, with a home, a cache and a folder of temporary files
        of its own.
        """
        for name in ("work", "home", "tmp", "cache"):
            (room / name).mkdir(parents=True, exist_ok=True)
        request = {"arguments": [os.fsdecode(str(part)) for part in arguments], "room": str(room), "limit": limit}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(limit + 60, self._process.kill)
        watchdog.start()
        try:
            answer = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert answer, "the process that starts commands has ended"
        said = json.loads(answer)
        texts = [(room / f".{name}").read_bytes().decode("utf-8", "backslashreplace") for name in ("out", "err")]
        for name in ("out", "err"):
            (room / f".{name}").unlink()
        return Ended(said["status"], texts[0], texts[1], said["peak"], said["seconds"])


@contextmanager
def commands() -> Iterator[Commands]:
    command = [sys.executable, "-m", "tests.faults.hostile.commands"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Commands(process)
        finally:
            process.kill()


_NEEDED_LATER = ("rich.table", "rich.console", "rich.progress", "pydantic", "pyarrow.dataset", "jinja2", "plotly.io")


def _serve() -> None:
    for package in (dinowds, cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("._kernels"):  # a library of C, not a module
                importlib.import_module(module.name)
    for name in _NEEDED_LATER:
        importlib.import_module(name)
    Image.init()
    gc.collect()
    gc.freeze()  # children that collect would copy all pages
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)  # noqa: T201


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_command(request["arguments"], Path(request["room"]))
    watched = os.pidfd_open(child)
    has_ended = bool(select.select([watched], [], [], request["limit"])[0])
    os.close(watched)
    if not has_ended:
        os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - begin
    return {"status": os.waitstatus_to_exitcode(status), "peak": used.ru_maxrss * 1024, "seconds": seconds}


def _become_command(arguments: list[str], room: Path) -> None:
    os.setpgid(0, 0)
    os.chdir(room / "work")
    for name in ("SLURM_TMPDIR", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": str(room / "home"), "TMPDIR": str(room / "tmp"), "DINOWDS_CACHE": str(room / "cache")}
    os.environ |= {"COLUMNS": "200"}
    tempfile.tempdir = None
    os.fsync = lambda _: None  # type: ignore[assignment]  # nothing is lost here, and some disks take their time
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(room / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    sys.argv = ["dinowds", *arguments]
    status = 99
    try:
        cli.main.run()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # some remove temporary files
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
