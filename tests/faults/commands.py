"""The `dinowds` command in children of a process that has imported it: they begin at once, and can be harmed.

`commands()` starts that process; run as a script this is it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

LONGEST = 300.0
"""Seconds that a command may take; then it is killed with all that it started, and the test fails."""
Harm = tuple[str, Any]
"""A name of `HARMS`, and its value."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `late`: it was killed by this module because it took too long."""

    status: int
    out: str
    errors: str
    late: bool = False

    @property
    def error(self) -> str:
        """What the command says of its failure, after checking that it is one line, the last, and no traceback."""
        assert not self.late, self
        assert self.status == 1, self
        assert "Traceback" not in self.errors, self.errors
        last = self.errors.splitlines()[-1]
        assert last.startswith("dinowds: error: "), self.errors
        assert self.errors.count("dinowds: error: ") == 1, self.errors
        return last.removeprefix("dinowds: error: ")


class Running:
    """A command under way."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path, pid: int) -> None:
        self._zygote, self._folder, self.pid = zygote, folder, pid

    def kill(self) -> None:
        """End it and all that it started, at once."""
        os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, limit: float = LONGEST) -> Ended:
        """Its end, within `limit` seconds."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        watchdog = threading.Timer(limit, end)
        watchdog.start()
        try:
            status = int(_line(self._zygote))
        finally:
            watchdog.cancel()
            watchdog.join()
        out, errors = ((self._folder / name).read_text() for name in ("out", "errors"))
        return Ended(status, out, errors, late.is_set())


class Commands:
    """Gives the command, one at a time."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path) -> None:
        self._zygote, self._folder = zygote, folder

    def start(
        self, *arguments: object, harms: Sequence[Harm] = (), environment: Mapping[str, str] | None = None
    ) -> Running:
        """Begin `dinowds ARGUMENTS` in this process's environment, changed by `environment`, after `harms`."""
        task = {
            "arguments": [str(argument) for argument in arguments],
            "environment": {**os.environ, **(environment or {})},
            "folder": str(self._folder),
            "harms": list(harms),
        }
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps(task) + "\n")
        self._zygote.stdin.flush()
        return Running(self._zygote, self._folder, int(_line(self._zygote)))

    def run(
        self,
        *arguments: object,
        harms: Sequence[Harm] = (),
        environment: Mapping[str, str] | None = None,
        limit: float = LONGEST,
    ) -> Ended:
        """`start` and `wait`."""
        return self.start(*arguments, harms=harms, environment=environment).wait(limit)


@contextmanager
def commands() -> Iterator[Commands]:
    """For as long as the block lasts."""
    arguments = [sys.executable, "-m", "tests.faults.commands"]
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        zygote = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        )
        try:
            yield Commands(zygote, Path(folder))
        finally:
            assert zygote.stdin
            assert zygote.stdout
            zygote.stdin.close()
            zygote.stdout.close()
            try:
                zygote.wait(10)
            except subprocess.TimeoutExpired:  # a test that failed has left a command
                zygote.kill()
                zygote.wait()


def _line(zygote: subprocess.Popen[str]) -> str:
    assert zygote.stdout
    line = zygote.stdout.readline()
    assert line, f"the process that forks commands has ended with {zygote.poll()}"
    return line


# In the process that forks


def main() -> None:
    """Fork a command for each line on stdin; print its pid, and how it ended. Returns in the child."""
    _import_all()
    gc.freeze()  # a child's collections leave alone what all share
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(task)
            return
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201
    os._exit(0)


_IMPORTED = (
    "aiohttp", "s3fs", "tensorboard.compat.proto.event_pb2", "torch.utils.tensorboard", "torchvision", "omegaconf",
    "plotly", "rich.console", "rich.progress",
    "dinowds.cli.main", "dinowds.embed.patches.embed", "dinowds.embed.regions.embed", "dinowds.model.weights.export",
    "dinowds.report.make", "dinowds.report.page", "dinowds.shard.build", "dinowds.train.launch", "dinowds.train.loop",
)  # fmt: skip
"""What commands import when they begin."""


def _import_all() -> None:
    for name in _IMPORTED:
        import_module(name)


def _become(task: dict[str, Any]) -> None:
    os.setsid()
    folder = Path(task["folder"])
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.argv = ["dinowds", *task["arguments"]]
    for name, value in task["harms"]:
        HARMS[name](value)


def open_files(most: int) -> None:
    """As `ulimit -n`."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def small_shm(size: int) -> None:
    """A /dev/shm of `size` bytes, in mounts of its own."""
    new_mounts = 0x20000
    assert ctypes.CDLL(None, use_errno=True).unshare(new_mounts) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


def no_override(_: object) -> None:
    """Take root's right to pass over permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    for index in range(3):
        sets[index] &= ~0b110
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def quick_retries(timeout: float) -> None:
    """As many tries as ever, but hardly any waiting: each takes `timeout` s at most, and 20 ms lie between them."""
    options = import_module("dinowds.remote.files").RetryOptions()
    quick = {"first_wait_s": 0.02, "longest_wait_s": 0.02, "timeout_s": timeout}
    files = import_module("dinowds.remote.files").RemoteFiles
    files.__init__.__defaults__ = (replace(options, **quick),)


def note_keys(path: str) -> None:
    """Of each step of a training run: a line [step from 1, keys] in the file `path`."""
    recorder = import_module("dinowds.train.recorder").Recorder
    record = recorder.record

    def noted(self: Any, step: int, metrics: Any, values: Any, batch: Any, waited: float) -> None:
        with open(path, "a") as file:
            file.write(json.dumps([step, batch.keys]) + "\n")
        record(self, step, metrics, values, batch, waited)

    recorder.record = noted


HARMS: dict[str, Callable[[Any], None]] = {
    harm.__name__: harm for harm in (open_files, small_shm, no_override, quick_retries, note_keys)
}


def _run_and_end() -> None:
    """As the interpreter ends, but without taking all of torch apart, which lasts longer than many a command."""
    from dinowds.cli.main import run

    status: object = 99
    try:
        run()
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
    _run_and_end()
