"""`dinowds embed patch`: a dataset of images and weights → a feature for each sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinowds.data.loader import start_fork_server
from dinowds.embed.patches import folder
from dinowds.embed.patches.job import Job, PatchOptions
from dinowds.embed.patches.run import Report, check_budget, embed_shards
from dinowds.errors import StoppedBySignal
from dinowds.train.signals import StopRequest, stop_signals
from dinowds.world import World

Notice = Callable[[str], None]
"""Gets a line for the user."""


@dataclass(frozen=True)
class Plan:
    """What would be done."""

    samples: int
    shards: int
    dim: int
    tokens: int
    """Patch tokens of each image that are written."""
    num_bytes: int
    """Of the features: about that of the files."""
    precision: str
    state: folder.State
    """Of the folder."""


@dataclass(frozen=True)
class Outcome:
    """What a run has done."""

    about: dict[str, Any]
    """`features.json`; {} on ranks other than 0."""
    embedded: int
    """Images that this rank read in this run."""
    images_per_second: float
    """Of those; 0 where there were none."""


def plan_patches(data: str | Path, out: Path, options: PatchOptions) -> Plan:
    """What `embed_patches` would do. Writes nothing. Raises what that would at its beginning."""
    job = Job.open(data, options, World())
    state = folder.check_replaceable(out, job.question, options.overwrite)
    values = job.encoder.dim * (1 + job.num_tokens)
    return Plan(
        samples=len(job.dataset),
        shards=len(job.counts),
        dim=job.encoder.dim,
        tokens=job.num_tokens,
        num_bytes=len(job.dataset) * values * np.dtype(options.dtype).itemsize,
        precision=job.encoder.precision,
        state=state,
    )


def embed_patches(
    data: str | Path,
    out: Path,
    options: PatchOptions,
    report: Report = lambda _done, _total: None,
    notice: Notice = lambda _line: None,
) -> Outcome:
    """Write the features of DATASET or DATASET:SUBSET to the folder `out`; goes on where an earlier call stopped.

    Which rank this is comes from the environment (`World.from_environment`). Shard k is done by rank k mod size; its
    file appears when it is whole, and depends on neither ranks nor restarts. Rank 0 waits for all files.

    Raises:
        StoppedBySignal: on SIGINT, SIGTERM or SIGUSR1; files that are whole stay.
        DinowdsError: bad input, in one line.
    """
    world = World.from_environment()
    with ExitStack() as stack:
        stop = _Stop(stack.enter_context(stop_signals()), out)
        if options.workers != 0:
            start_fork_server()  # it imports while the weights are read
        job = Job.open(data, options, world)
        stack.enter_context(folder.own_folder(out, job.question, options.overwrite, world, stop.wait))
        was_finished = folder.is_finished(out)
        embedded, images_per_second = embed_shards(job, out, report, stop.check)
        if world.rank:
            return Outcome({}, embedded, images_per_second)
        parts = folder.wait_for_parts(out, job.counts, job.digest, stop.wait, notice)
        check_budget([bad for part in parts for bad in part.bad], options.max_bad)
        about = job.about(parts)
        folder.finish(out, about, parts)
        if was_finished and not embedded:
            notice(f"nothing left to do: {out} has the features of all {about['samples']:,} samples")
        return Outcome(about, embedded, images_per_second)


class _Stop:
    """Ends the run where a signal asked for it."""

    def __init__(self, request: StopRequest, out: Path) -> None:
        self._request, self._out = request, out

    def check(self) -> None:
        if self._request.name:
            raise StoppedBySignal(
                f"stopped by {self._request.name}; {self._out} keeps the files that are whole: give the same command "
                "again to go on"
            )

    def wait(self, seconds: float) -> None:
        self.check()
        time.sleep(seconds)
