"""Two ranks that fail in all ways, for `test_dist.py`. Prints JSON: scenario → [[exit code, output] of each rank]."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dinowds.errors import ConfigError, OutputError, StoppedBySignal, TrainingError
from dinowds.train import dist, peers
from dinowds.world import World
from tests.support import free_port

SECONDS = 60.0
"""In which all must have ended."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OutputError("the disk of this host is full")


def hang() -> None:
    """As the main thread does that waits for NCCL."""
    threading.Event().wait()


def talk() -> None:
    for number in range(1000):
        dist.all_reduce_sum(torch.tensor(number))
        time.sleep(0.01)


def work(seconds: float) -> None:
    time.sleep(seconds)
    dist.all_reduce_sum(torch.tensor(1))


def stop() -> None:
    raise StoppedBySignal("stopped by SIGUSR1")


def gather() -> None:
    rank = int(os.environ["RANK"])
    parts = dist.all_gather_tensors(torch.full((2 * rank, 2), rank, dtype=torch.uint8))
    sys.stdout.write(f"{[part.tolist() for part in parts]}\n")


def after(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    def wait_and_act() -> None:
        time.sleep(seconds)
        action()

    return wait_and_act


SCENARIOS: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "raises": (talk, after(0.1, fail)),
    "killed": (talk, after(0.1, kill)),
    "raises beside one that hangs": (hang, fail),
    "killed beside one that hangs": (hang, after(0.3, kill)),
    "rank 0 killed beside one that hangs": (after(0.3, kill), hang),
    "slow": (lambda: work(1.5), lambda: work(0)),
    "leaves late": (lambda: None, after(1.5, lambda: None)),
    "stopped": (after(0.3, stop), stop),
    "other device": (talk, lambda: None),
    "no device": (talk, talk),
    "gathers": (gather, gather),
}


def device_of(name: str, rank: int) -> torch.device:
    if name == "no device" and rank == 1:
        raise ConfigError("local rank 1 has no GPU of its own")
    return torch.device("meta" if name == "other device" and rank == 1 else "cpu")


def run_rank(name: str, rank: int, port: int, output: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115
    peers.INTERVAL, peers.PATIENCE, peers.GRACE = 0.05, 10, 0.5
    try:
        with dist.process_group(World.from_environment(), lambda: device_of(name, rank)):
            SCENARIOS[name][rank]()
    except (TrainingError, OutputError, StoppedBySignal, ConfigError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)


def fail_on_rank_1() -> None:
    """For `launch`. The rank that fails is the last to end, as one with loader processes may be."""
    world = World.from_environment()
    try:
        with dist.process_group(world, torch.device("cpu")):
            (talk, after(0.1, fail))[world.rank]()
    finally:
        time.sleep(2 * world.rank)


def run_scenario(name: str, folder: Path) -> list[tuple[int | None, str]]:
    context, port = multiprocessing.get_context("fork"), free_port()
    outputs = [folder / f"{name} {rank}" for rank in range(2)]
    ranks = [context.Process(target=run_rank, args=(name, rank, port, str(outputs[rank]))) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in ranks:
        process.join(deadline - time.monotonic())
        if process.exitcode is None:
            process.kill()
    return [(process.exitcode, output.read_text()) for process, output in zip(ranks, outputs, strict=True)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        ends = {name: run_scenario(name, Path(temporary)) for name in SCENARIOS}
    sys.stdout.write(json.dumps(ends))
