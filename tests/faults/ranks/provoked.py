"""Two ranks of a run that is disturbed: `python -m tests.faults.ranks.provoked DATASET OTHER-DATASET FOLDER NAME...`.

Prints JSON: scenario → [[exit code, output, seconds] of each rank]. The ranks are forks of this process, which has
imported what they need.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dinowds.config import load_config
from dinowds.errors import DinowdsError
from dinowds.files import lock_file
from dinowds.train import alike, dist, loop, peers
from dinowds.train.step import train_step
from tests.faults.form import IS_FULL
from tests.support import TINY_RUN, free_port

BOUND = 180.0 if IS_FULL else 60.0
"""Seconds in which all must have ended: with the package's own patience, and with less."""
SLOW = 45.0 if IS_FULL else 3.0
"""Seconds of a step: more than after which a rank without a sign of life counts as gone."""
LATE, NEVER, AT_STEP = 1.5, 3.0, 1
OPTIONS = [*TINY_RUN, "student.depth=1", "student.out_dim=64", "optim.max_steps=3"]


def at_step(action: Callable[[], None]) -> None:
    """Let `action` happen within a step."""

    def disturbed(*arguments: Any) -> Any:
        if arguments[3] == AT_STEP:
            action()
        return train_step(*arguments)

    mock.patch.object(loop, "train_step", disturbed).start()


def out_of_memory() -> None:
    raise MemoryError


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none")


def under_a_limit() -> None:
    """As a batch system sets it: what is asked for is refused."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), resource.RLIM_INFINITY))
    torch.empty(1 << 30)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def other_version() -> None:
    torch.__version__ = "2.0.0"  # type: ignore[assignment]


def other_code() -> None:
    alike._code_digest = lambda: "0123456789ab"  # type: ignore[assignment]


def never() -> None:
    sys.exit(0)


DISTURBED: dict[str, Callable[[], None]] = {
    "undisturbed": lambda: None,
    "killed": lambda: at_step(kill_itself),
    "stopped": lambda: at_step(stop_itself),
    "slow": lambda: at_step(lambda: time.sleep(SLOW)),
    "out of memory": lambda: at_step(out_of_memory),
    "out of GPU memory": lambda: at_step(out_of_gpu_memory),
    "under a limit": lambda: at_step(under_a_limit),
    "another dataset": lambda: None,
    "no dataset": lambda: None,
    "another configuration": lambda: None,
    "another torch": other_version,
    "another code": other_code,
    "late": lambda: time.sleep(LATE),
    "never": never,
    "second run": lambda: None,
}
"""Scenario → what is done on rank 1."""
LONG_FORM = ("out of GPU memory", "under a limit", "no dataset", "another torch", "late")
"""Played in the full form alone: each differs little from another one."""
PLAYED = [name for name in DISTURBED if IS_FULL or name not in LONG_FORM]


def run_rank(name: str, rank: int, port: int, folder: Path, data: Path, other: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    descriptor = os.open(folder / f"output {rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    if not IS_FULL:
        peers.INTERVAL, peers.PATIENCE, peers.GRACE, peers.LEAVING = 0.1, 20, 1.0, 5.0
    if name == "never":
        dist._JOINING = datetime.timedelta(seconds=NEVER)
    options = list(OPTIONS)
    if rank == 1:
        DISTURBED[name]()
        data = {"another dataset": other, "no dataset": folder / "missing"}.get(name, data)
        options += ["optim.lr=3e-3"] if name == "another configuration" else []
    try:
        loop.train(data, folder / "run", load_config(None, options))
    except DinowdsError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)


def play(name: str, folder: Path, data: Path, other: Path) -> list[tuple[int | None, str, float]]:
    context, port, start = multiprocessing.get_context("fork"), free_port(), time.monotonic()
    folder.mkdir()
    if name == "second run":
        (folder / "run").mkdir()
        with lock_file(folder / "run" / ".lock"):
            return _play(context, name, port, folder, data, other, start)
    return _play(context, name, port, folder, data, other, start)


def _play(
    context: Any, name: str, port: int, folder: Path, data: Path, other: Path, start: float
) -> list[tuple[int | None, str, float]]:
    arguments = [(name, rank, port, folder, data, other) for rank in range(2)]
    ranks = [context.Process(target=run_rank, args=each) for each in arguments]
    for process in ranks:
        process.start()
    ends = []
    for process in ranks:
        process.join(max(0.0, start + BOUND - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
            ends.append((None, time.monotonic() - start))
        else:
            ends.append((process.exitcode, time.monotonic() - start))
        if name == "stopped" and process is ranks[0]:
            os.kill(ranks[1].pid, signal.SIGCONT)  # when it finds that it was left
    return [(code, (folder / f"output {rank}").read_text(), seconds) for rank, (code, seconds) in enumerate(ends)]


def main() -> None:
    data, other, folder = map(Path, sys.argv[1:4])
    ends = {name: play(name, folder / name.replace(" ", "-"), data, other) for name in sys.argv[4:] or PLAYED}
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
