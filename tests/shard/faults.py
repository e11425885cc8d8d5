"""`dinowds shard` in children of a process that has imported it: killed, or on a disk that is full.

A child begins at once with its work, so that a moment drawn at random lies in that work. Run as a script by
`test_faults`: one argument, JSON; prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cli.main
import dinowds.shard.build
import dinowds.shard.engine  # noqa: F401

PAGE = 4096
ROOMY = 1 << 30


class Ended(NamedTuple):
    """How a run of the command ended. `began`: phase → seconds after the start."""

    status: int
    errors: list[str]
    began: dict[str, float]
    seconds: float

    @property
    def phase(self) -> str:
        """The last one that began."""
        return list(self.began)[-1] if self.began else ""


def run(arguments: list[str], kill_in: str | None = None, delay: float = 0) -> Ended:
    """Run the command, and kill it `delay` seconds after the phase `kill_in` began."""
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_command(arguments, writing)
    os.close(writing)
    began: dict[str, float] = {}
    errors = []
    with open(reading) as lines:
        for line in lines:
            name = line.strip().partition(":")[0]
            if name not in ("list", "deal", "write", "index"):
                errors.append(line.strip())
                continue
            began.setdefault(name, time.monotonic() - start)
            if name == kill_in:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                kill_in = None
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(status, errors, began, time.monotonic() - start)


def _become_command(arguments: list[str], errors: int) -> None:
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["dinowds", "shard", *arguments]
    status = 99
    try:
        cli.main.run()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder; None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def begin(out: Path, before: str | None) -> None:
    """What lies at the output before the command is given for the first time."""
    shutil.rmtree(out, ignore_errors=True)
    if before is not None:
        shutil.copytree(before, out)


def kill_at_random(
    arguments: list[str], out: str, before: str | None, phases: list[str], kills: int, seed: int
) -> dict[str, int]:
    """Kill the command `kills` times in each of `phases`, and let it end now and then; the kills in each phase."""
    os.fsync = lambda _: None  # type: ignore[assignment]  # a killed process loses nothing that it has written
    random, place = np.random.default_rng(seed), Path(out)
    arguments = [*arguments, "--out", out]
    old = tree(Path(before)) if before else None
    begin(place, before)
    whole = run(arguments)
    assert whole.status == 0, whole
    assert list(whole.began) == phases, whole
    expected = tree(place)
    assert ".unfinished" not in expected
    ends = [*list(whole.began.values())[1:], whole.seconds]
    lengths = {phase: end - whole.began[phase] for phase, end in zip(phases, ends, strict=True)}
    begin(place, before)
    counts = dict.fromkeys(phases, 0)
    for phase in phases * kills:
        share, is_killed = 1.0, False
        while not is_killed:
            if place.exists() and tree(place) == expected:
                begin(place, before)
            is_whole = place.exists() and tree(place).items() >= expected.items()
            ended = run(arguments, phase, float(random.uniform(0, share * lengths[phase])))
            is_killed = ended.status == -signal.SIGKILL
            if is_killed:
                counts[phase] += 1
                _check_killed(place, expected, old)
                if random.random() < 0.5:
                    continue
                is_whole = tree(place).items() >= expected.items()
                ended = ended if tree(place) == expected else run(arguments)
            assert ended.status == 0 or is_whole, ended
            now = tree(place)
            assert now == expected, (phase, ended, now.keys() ^ expected.keys())
            begin(place, before)
            share /= 2
    return counts


def _check_killed(out: Path, expected: dict[str, bytes | None], old: dict[str, bytes | None] | None) -> None:
    """What looks finished is the new dataset, or the one that was there before."""
    if (out / "manifest.json").exists():
        found = tree(out).items()
        assert found >= expected.items() or (old is not None and found >= old.items()), sorted(tree(out))


def fill_disk(arguments: list[str], disk: str, before: str | None, step: int, last: int) -> dict[str, int]:
    """Run the command on disks that are too small, and again once there is room.

    The smallest disk that is enough is searched for, within `step` pages; the `last` sizes before it, page by page, and
    some that are spread evenly, are tried too.

    Returns:
        Of what a file could not be written: how often.
    """
    Path(disk).mkdir()
    out = Path(disk) / "out"
    arguments = [*arguments, "--out", str(out)]
    old = tree(Path(before)) if before else None
    _mount(disk, ROOMY)
    begin(out, before)
    low = _used(out) // PAGE
    whole = run(arguments)
    assert whole.status == 0, whole
    expected = tree(out)
    assert ".unfinished" not in expected
    high = 3 * _used(out) // PAGE + 32
    _unmount(disk)
    found: dict[str, int] = {}

    def is_enough(size: int) -> bool:
        _mount(disk, size)
        begin(out, before)
        ended = run(arguments)
        if ended.status:
            what = _check_full(ended, out, old)
            found[what] = found.get(what, 0) + 1
            subprocess.run(["mount", "-o", f"remount,size={ROOMY}", disk], check=True)
            again = run(arguments)
            assert again.status == 0, (size, ended, again)
        assert tree(out) == expected, (size, ended, tree(out).keys() ^ expected.keys())
        _unmount(disk)
        return ended.status == 0

    first, smallest = low + 1, high
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle * PAGE) else (middle, high)
    assert high < smallest
    # A smaller disk may be enough too: how much is on it at once depends on how the threads take turns.
    for size in {*range(max(first, low - last), low), *np.linspace(first, low, 4).astype(int).tolist()}:
        is_enough(size * PAGE)
    return found


def _check_full(ended: Ended, out: Path, old: dict[str, bytes | None] | None) -> str:
    """What could not be written."""
    assert ended.status == 1, ended
    (line,) = ended.errors
    assert "cannot be written (No space left on device); make room and give the same command again" in line, ended
    if old is None:
        assert not (out / "manifest.json").exists(), ended
    else:
        assert tree(out).items() >= old.items(), ended
    work = out / ".unfinished"
    has_rows = all(path.with_suffix(".arrow").exists() for path in work.glob("shard-*.tar"))
    return ended.phase if has_rows else "rows"


def close_each(sources: list[str], closed: list[str], out: str) -> dict[str, str]:
    """Give the command while each of `closed` cannot be opened, and again; what it said first."""
    said = {}
    arguments = [*sources, "--max-count", "3", "--name", "same", "--out"]
    assert run([*arguments, f"{out}-whole"]).status == 0
    for number, name in enumerate(closed):
        path, place = Path(name), f"{out}-{number}"
        mode = path.stat().st_mode
        path.chmod(0)
        ended = run([*arguments, place])
        path.chmod(mode)
        assert ended.status == 1, ended
        (said[name],) = ended.errors
        assert not (Path(place) / "manifest.json").exists()
        again = run([*arguments, place])
        assert again.status == 0, again
        assert tree(Path(place)) == tree(Path(f"{out}-whole"))
    return said


def _used(folder: Path) -> int:
    """Bytes that a folder takes on a tmpfs."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _mount(disk: str, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)


def _unmount(disk: str) -> None:
    subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    task: dict[str, Any] = json.loads(sys.argv[1])
    tasks: dict[str, Callable[..., Any]] = {"kill": kill_at_random, "fill": fill_disk, "close": close_each}
    print(json.dumps(tasks[task.pop("does")](**task)))  # noqa: T201
