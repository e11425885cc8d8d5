"""The `dinowds` command in children of a process that has imported it: they begin at once, and can be harmed.

`commands()` starts that process; run as a script this is it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
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
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import dinowds.cli
from PIL import Image

import dinowds

LONGEST = 300.0
"""Seconds that a command may take; then it is killed with all that it started, and the test fails."""
Harm = tuple[str, Any]
"""A name of `HARMS`, and its value."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `status`: its exit code, or minus the signal; `peak`: bytes of memory of its largest
    process; `late`: it was killed by this module because it took too long.
    """

    status: int
    out: str
    errors: str
    peak: int
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


class _Zygote:
    """The process that forks, which answers each line with one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, request: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that forks commands has ended with {self._process.poll()}"
        return answer


class Running:
    """A command under way. Its pid stays its own until `wait` returns."""

    def __init__(self, zygote: _Zygote, folder: Path, pid: int) -> None:
        self._zygote, self._folder, self.pid = zygote, folder, pid
        self.is_waited_for = False

    def kill(self) -> None:
        """End it and all that it started, at once."""
        os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, limit: float = LONGEST) -> Ended:
        """Its end, within `limit` seconds."""
        watched = os.pidfd_open(self.pid)
        is_late = not select.select([watched], [], [], limit)[0]
        os.close(watched)
        if is_late:
            self.kill()
        self.is_waited_for = True
        status, peak = json.loads(self._zygote.ask("end"))
        out, errors = ((self._folder / name).read_text("utf-8", "backslashreplace") for name in ("out", "errors"))
        return Ended(status, out, errors, peak, is_late)


class Commands:
    """Gives the command, one at a time."""

    def __init__(self, zygote: _Zygote, folder: Path) -> None:
        self._zygote, self._folder = zygote, folder
        self._last: Running | None = None

    def start(
        self,
        *arguments: object,
        harms: Sequence[Harm] = (),
        environment: Mapping[str, str] | None = None,
        room: Path | None = None,
    ) -> Running:
        """Begin `dinowds ARGUMENTS` in this process's environment, changed by `environment`, after `harms`.

        Args:
            room: a folder; the command is given in its `work`, and has its home, its cache and its temporary files in
                `home`, `cache` and `tmp` of it.
        """
        self.end_last()
        surroundings = {**os.environ, **({} if room is None else _surroundings(room)), **(environment or {})}
        task = {
            "arguments": [str(argument) for argument in arguments],
            "environment": {name: value for name, value in surroundings.items() if value is not None},
            "folder": str(self._folder),
            "directory": str(Path.cwd() if room is None else room / "work"),
            "harms": list(harms),
        }
        self._last = Running(self._zygote, self._folder, int(self._zygote.ask(json.dumps(task))))
        return self._last

    def run(
        self,
        *arguments: object,
        harms: Sequence[Harm] = (),
        environment: Mapping[str, str] | None = None,
        room: Path | None = None,
        limit: float = LONGEST,
    ) -> Ended:
        """`start` and `wait`."""
        return self.start(*arguments, harms=harms, environment=environment, room=room).wait(limit)

    def end_last(self) -> None:
        """Of a test that failed before it waited."""
        if self._last is not None and not self._last.is_waited_for:
            self._last.kill()
            self._last.wait()


def _surroundings(room: Path) -> dict[str, str | None]:
    """Variables of the environment; None unsets one."""
    for name in ("work", "home", "tmp", "cache"):
        (room / name).mkdir(parents=True, exist_ok=True)
    places = {"HOME": str(room / "home"), "TMPDIR": str(room / "tmp"), "DINOWDS_CACHE": str(room / "cache")}
    return {**places, "SLURM_TMPDIR": None, "XDG_CACHE_HOME": None, "COLUMNS": "200"}


@contextmanager
def commands() -> Iterator[Commands]:
    """For as long as the block lasts."""
    command = [sys.executable, "-m", "tests.faults.commands"]
    root = Path(__file__).parents[2]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        ) as process,
    ):
        given = Commands(_Zygote(process), Path(folder))
        try:
            yield given
        finally:
            try:
                given.end_last()
            finally:
                process.kill()


# In the process that forks


def main() -> None:
    """Fork a command for each task on stdin; print its pid, and when asked, how it ended. Returns in the child."""
    _import_all()
    gc.collect()
    gc.freeze()  # a child's collections leave alone what all share
    while task := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _become(json.loads(task))
            return
        os.setpgid(child, child)
        print(child, flush=True)  # noqa: T201
        sys.stdin.readline()  # until then its pid is not given to another
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024]), flush=True)  # noqa: T201
    os._exit(0)


_OTHERS = (
    "aiohttp", "s3fs", "tensorboard.compat.proto.event_pb2", "torch.utils.tensorboard", "torchvision", "omegaconf",
    "plotly.io", "jinja2", "pydantic", "pyarrow.dataset", "rich.console", "rich.progress", "rich.table",
)  # fmt: skip
"""What commands import besides the package when they begin."""


def _import_all() -> None:
    for package in (dinowds, dinowds.cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("._kernels"):  # a library of C, not a module
                import_module(module.name)
    for name in _OTHERS:
        import_module(name)
    Image.init()


def _become(task: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    folder = Path(task["folder"])
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["directory"])
    os.environ.clear()
    os.environ.update(task["environment"])
    tempfile.tempdir = None
    sys.argv = ["dinowds", *task["arguments"]]
    for name, value in task["harms"]:
        HARMS[name](value)


def open_files(most: int) -> None:
    """As `ulimit -n`."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def address_space(most: int) -> None:
    """As `ulimit -v`, in bytes."""
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def no_sync(_: object) -> None:
    """No harm where nothing is to be lost, and quicker on some disks."""
    os.fsync = lambda _: None  # type: ignore[assignment]


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
    harm.__name__: harm
    for harm in (address_space, no_override, no_sync, note_keys, open_files, quick_retries, small_shm)
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
