"""`dinowds` commands in children of a process that has imported all that they need, and their end by SIGKILL.

A child begins at once with its work, so that a moment drawn at random lies in that work. It leads a session of its own,
by which its helper processes are found when it is gone. Run as a script: requests and answers are lines of JSON.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
"""Audit events that change what lies in a folder, or in a file."""
ALSO = ("numpy.random", "pyarrow.dataset", "pyarrow.parquet", "sklearn", "tensorboard", "torch.utils.tensorboard")


def import_all() -> None:
    """All of dinowds, so that no child has to; what needs a package that is missing stays out."""
    import cli
    import dinowds

    names = [module.name for package in (dinowds, cli) for module in _modules(package)]
    for name in (*names, *ALSO):
        if name != "dinowds.model.weights.consumer":  # reads stdin
            try:
                importlib.import_module(name)
            except ImportError:
                continue


def _modules(package: Any) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda _name: None))


def serve() -> None:
    """Answer each request when its child has ended."""
    import_all()
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)  # noqa: T201


def _run(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_command(request, writing)
    os.close(writing)
    handle = os.pidfd_open(child)
    moments = _wait(handle, reading, request, begin)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - begin
    os.close(handle)
    os.close(reading)
    shared = [path.name for path in Path("/dev/shm").iterdir()] if os.environ.get("OWN_SHM") else []
    return {"status": status, "pid": child, "moments": moments, "seconds": seconds, "shared": shared}


def _wait(handle: int, reading: int, request: dict[str, Any], begin: float) -> int:
    """Until the child has ended, by itself or killed `delay` s after its `nth` moment (0: its start). Moments seen."""
    moments, nth, delay = 0, request["nth"], request["delay"]
    kill_at = begin + delay if delay is not None and nth == 0 else None
    deadline = begin + request["limit"]
    poll = select.poll()
    for descriptor in (handle, reading):
        poll.register(descriptor, select.POLLIN)
    while True:
        until = deadline if kill_at is None else kill_at
        # In whole milliseconds, rounded down: the last one is spent looking, so that a kill is not late.
        ready = {descriptor for descriptor, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000)))}
        if handle in ready:
            return moments
        if reading in ready:
            got = len(os.read(reading, 1 << 16))
            if got == 0:
                poll.unregister(reading)
            if delay is not None and moments < nth <= moments + got:
                kill_at = time.monotonic() + delay
            moments += got
        elif time.monotonic() >= until:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            kill_at, deadline = None, time.monotonic() + 60


def _become_command(request: dict[str, Any], moments: int) -> None:
    os.setsid()
    for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    tempfile.tempdir = None  # as that of this environment
    if request["trace"]:
        from tests.faults.kills import tracing

        tracing.install(Path(request["trace"]), request["folder"])
    else:
        _tell_moments(moments, request["folder"], request["at"])
    sys.argv = ["dinowds", *request["arguments"]]
    status = 99
    try:
        from cli.main import run

        run()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # as at the end of an interpreter, which a forked child cannot come to
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell_moments(pipe: int, folder: str, at: str) -> None:
    """A byte for each change of a file in `folder` whose path has `at` in it."""
    own = os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING)
        if is_change and os.getpid() == own and any(folder in p and at in p for p in map(str, arguments[:2])):
            os.write(pipe, b".")

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()
