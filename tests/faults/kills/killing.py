"""Commands that are killed again and again until one may end, and what must hold meanwhile and in the end."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from tests.faults.form import tally

LIMIT = 300
"""Seconds that a command may take before it is killed, and the test has failed."""
OWN_SHM = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"']

Tree = dict[str, Any]
"""Path below a folder → hash of the content, or what `Normal` makes of it; None for a folder, and in the cache."""
Normal = Callable[[str, bytes], Any]
"""(path, content) → what is compared with that of an undisturbed run; LEAVE_OUT for what differs by design."""
LEAVE_OUT = object()
_OF_MOMENTS = re.compile(r"(?<=^cache/index/)[0-9a-f]{32}")


class Ended(NamedTuple):
    """How a run of a command ended. `moments`: changes of files that it made, `shared`: names in /dev/shm."""

    status: int
    pid: int
    moments: int
    seconds: float
    shared: list[str]
    errors: str

    @property
    def is_killed(self) -> bool:
        return self.status == -signal.SIGKILL


@dataclass(frozen=True)
class Command:
    """A `dinowds` command that writes below `home` alone, where {home} stands in its arguments.

    `before`: is copied to `home/work` before the first run. `finished`: of the paths in a tree, those that look
    finished, which must be as in the undisturbed run. `check`: looks at `home/work` after each kill.
    """

    name: str
    arguments: tuple[str, ...]
    finished: Callable[[Tree], set[str]]
    before: Path | None = None
    normal: Normal = lambda _name, content: content
    check: Callable[[Path], None] = lambda _work: None
    environment: Mapping[str, str] = field(default_factory=dict)
    at: str = ""
    """Changes of files with this in their path are moments to be killed at."""
    refusal: str = "already holds a dataset"
    """What it says when it is given again after it has done all."""


class Nursery:
    """The process whose children are the commands."""

    def __init__(self, process: subprocess.Popen[str], has_own_shm: bool) -> None:
        self._process, self.has_own_shm = process, has_own_shm

    def run(
        self, command: Command, home: Path, delay: float | None = None, nth: int = 0, trace: Path | None = None
    ) -> Ended:
        """Run it to its end, or until it is killed `delay` seconds after its start, or after its `nth` moment."""
        errors = home.with_name(f"{home.name}-stderr")
        errors.unlink(missing_ok=True)
        request = {
            "arguments": [part.replace("{home}", str(home)) for part in command.arguments],
            "environment": {
                "DINOWDS_CACHE": str(home / "cache"),
                "TMPDIR": str(home / "tmp"),
                **command.environment,
            },
            "folder": str(home),
            "stdout": os.devnull,
            "stderr": str(errors),
            "at": command.at,
            "delay": delay,
            "nth": nth,
            "limit": LIMIT,
            "trace": trace and str(trace),
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        said = errors.read_text(errors="replace") if errors.exists() else ""
        assert answer["seconds"] < LIMIT, (command.name, said)
        return Ended(**answer, errors=said)


@contextmanager
def nursery() -> Iterator[Nursery]:
    """With an empty /dev/shm of its own, where that can be had here."""
    script = [sys.executable, "-m", "tests.faults.kills.nursery"]
    tried = subprocess.run([*OWN_SHM, "sh", "true"], capture_output=True, check=False, timeout=60)
    has_own_shm = tried.returncode == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"OWN_SHM": "1"} if has_own_shm else {})
    command = [*OWN_SHM, "sh", *script] if has_own_shm else script
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as process:
        assert process.stdin
        assert process.stdout
        watchdog = threading.Timer(180, process.kill)
        watchdog.start()
        assert json.loads(process.stdout.readline())["ready"]
        watchdog.cancel()
        try:
            yield Nursery(process, has_own_shm)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def begin(command: Command, home: Path) -> None:
    """The folders as they are before the command is given for the first time."""
    shutil.rmtree(home, ignore_errors=True)
    for name in ("work", "cache", "tmp"):
        (home / name).mkdir(parents=True)
    if command.before is not None:
        shutil.copytree(command.before, home / "work", dirs_exist_ok=True)


def prepare(nurse: Nursery, folder: Path, *arguments: object) -> None:
    """Run a command that is to make something ready; {home} stands for `folder`."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    ended = nurse.run(Command("", tuple(map(str, arguments)), lambda _now: set()), folder)
    assert ended.status == 0, ended
    for name in ("tmp", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


def tree(command: Command, home: Path) -> Tree:
    """All below `home`. Of the cache the names alone: it is no result. Some of them are of files and their times."""
    found: Tree = {}
    for path in sorted(home.rglob("*")):
        name = _OF_MOMENTS.sub("INDEX", str(path.relative_to(home)))
        is_read = path.is_file() and not name.startswith("cache/")
        try:
            content = path.read_bytes() if is_read else None
        except FileNotFoundError:  # a helper process is still ending
            continue
        if content is None:
            found[name] = None
        elif (value := command.normal(name, content)) is not LEAVE_OUT:
            found[name] = xxhash.xxh3_128_hexdigest(value) if isinstance(value, bytes) else value
    return found


def survive(nurse: Nursery, command: Command, home: Path, kills: int, seed: int = 0) -> list[Ended]:
    """Kill the command `kills` times, in chains of one and more, each of which ends as a run that nobody disturbed.

    Half of the kills come at any time, half of them just after the command changed a file, or while it does: most of
    these within the tenth of a millisecond in which a small file is written.
    Returns how the runs ended that were not killed.
    """
    rng = random.Random(seed)
    begin(command, home)
    whole = nurse.run(command, home)
    assert whole.status == 0, (command.name, whole)
    expected = tree(command, home)
    seen = dict(expected)
    begin(command, home)
    ends: list[Ended] = []
    sessions: list[int] = []
    killed = in_chain = 0
    share = 1.0
    while killed < kills:
        about = f"{command.name}: seed {seed}, after {killed} kills, {in_chain} in this chain"
        if rng.random() < 0.5:
            ended = nurse.run(command, home, delay=share * rng.uniform(0, whole.seconds))
        else:
            ended = nurse.run(
                command, home, delay=10 ** rng.uniform(-5, -2.5), nth=rng.randint(1, max(1, whole.moments))
            )
        sessions.append(ended.pid)
        if ended.is_killed:
            killed, in_chain = killed + 1, in_chain + 1
            check_killed(command, home, seen, about)
            if rng.random() < 0.6 and killed < kills:
                continue
            ended = nurse.run(command, home)
            sessions.append(ended.pid)
        else:
            share = max(0.1, share / 2)
        assert ended.status == 0 or (in_chain and command.refusal in ended.errors), (about, ended)
        check_ended(nurse, command, home, expected, ended, sessions, about)
        ends.append(ended)
        share = 1.0 if in_chain else share
        in_chain, sessions = 0, []
        begin(command, home)
    tally(f"kills of {command.name} survived", killed)
    return ends


def check_killed(command: Command, home: Path, seen: Tree, about: str) -> None:
    """What looks finished is. `seen` has the finished files of all runs, also of those that are removed later."""
    now = tree(command, home)
    for name in command.finished(now):
        assert now[name] == seen.setdefault(name, now[name]), f"{about}: {name} looks finished and is not"
    command.check(home / "work")


def check_ended(
    nurse: Nursery, command: Command, home: Path, expected: Tree, ended: Ended, sessions: list[int], about: str
) -> None:
    """All is as after the undisturbed run: content, names (so no temporaries), processes and shared memory."""
    wait_until_sessions_end(sessions)
    now = tree(command, home)
    assert not (differing := differences(now, expected, ended)), (about, differing)
    if nurse.has_own_shm:
        assert not ended.shared, (about, ended.shared)


def differences(now: Tree, expected: Tree, ended: Ended) -> list[str]:
    """Paths that are too many, missing or of another content. The cache may have less than after an undisturbed run.

    A command that refused, for it had done all before, has not cleared the cache either.
    """
    found = [name for name in now.keys() | expected.keys() if now.get(name, LEAVE_OUT) != expected.get(name, LEAVE_OUT)]
    return sorted(name for name in found if not name.startswith("cache") or (name in now and ended.status == 0))


def wait_until_sessions_end(sessions: list[int], seconds: float = 90) -> None:
    """Wait until no process is left of those that these session leaders started; fail if one stays."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid, session in _sessions() if session in sessions]:
        assert time.monotonic() < deadline, f"still running: {[_command_line(pid) for pid in left]}"
        time.sleep(0.01)


def _sessions() -> Iterator[tuple[int, int]]:
    """(process, its session) of all that run; zombies do not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            yield int(path.parent.name), int(fields[3])


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return str(pid)


def below(*names: str) -> Callable[[Tree], set[str]]:
    """`finished` of commands whose results appear one by one: files in these folders or of these names, none hidden."""
    return lambda now: {
        path
        for path, content in now.items()
        if content is not None and path.startswith(names) and not any(part[0] == "." for part in path.split("/"))
    }


def dataset(place: str) -> Callable[[Tree], set[str]]:
    """`finished` of commands that write a dataset: nothing before it has its manifest, then all of it."""

    def finished(now: Tree) -> set[str]:
        return below(f"{place}/")(now) if f"{place}/manifest.json" in now else set()

    return finished
