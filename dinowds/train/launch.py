"""Several processes on this host: torchrun's own launcher, in-process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

from dinowds.errors import ConfigError, StoppedBySignal, TrainingError
from dinowds.train.devices import available_cores


def launch(function: Callable[..., None], arguments: tuple[Any, ...], num_processes: int) -> None:
    """Run `function(*arguments)` as `num_processes` ranks and wait for all. The first failure ends them all.

    `function` must be importable by name and exit with a DinowdsError's exit code after printing it.

    Raises:
        StoppedBySignal: all ranks saved and stopped.
        TrainingError: a rank failed; it has said why.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if num_processes < 1:
        raise ConfigError(f"--nproc is {num_processes}, expected at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
        start_method="spawn",
    )
    try:
        elastic_launch(settings, function)(*arguments)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if StoppedBySignal.exit_code in codes:
            raise StoppedBySignal("stopped on a signal; run the same command again to go on") from None
        rank, failure = error.get_first_failure()
        raise TrainingError(f"rank {rank} failed with exit code {failure.exitcode}; its message is above") from None
