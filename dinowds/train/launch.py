"""Several processes on this host: torchrun's own launcher, in-process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dinowds.errors import ConfigError, DinowdsError, StoppedBySignal, TrainingError
from dinowds.processes import end_with_parent, shielded_from_signals
from dinowds.train.peers import LostRank
from dinowds.world import available_cores

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

_FIRST = 20.0
"""Seconds for which a rank that lost another one lets that one end first: the launcher tells the error of the first
one that ends, and ends the others.
"""


def launch(function: Callable[..., None], arguments: tuple[Any, ...], num_processes: int) -> None:
    """Run `function(*arguments)` as `num_processes` ranks and wait for all. The first failure ends them all.

    `function` must be importable by name.

    Raises:
        StoppedBySignal: on SIGINT, SIGTERM or SIGUSR1; the ranks have had 30 seconds to save.
        TrainingError: a rank failed; the message is that of the first that did.
    """
    if num_processes < 1:
        raise ConfigError(f"--nproc is {num_processes}, expected at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    # The launcher logs a page about a failed or stopped rank; the line that is raised below says what matters.
    logging.disable(logging.ERROR)
    # The signals that the launcher passes on, and after which it waits for the ranks to save: an environment variable,
    # which newer versions of torch set from their configuration.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _SIGNALS
    later: dict[str, Any] = {"signals_to_handle": _SIGNALS} if hasattr(LaunchConfig, "signals_to_handle") else {}
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # the host's own name need not resolve
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        **later,
    )
    with shielded_from_signals():
        pass  # starts multiprocessing's tracker, which the ranks share; they themselves are to see signals
    try:
        elastic_launch(settings, run_as_rank)(function, arguments)
    except SignalException as stop:
        raise StoppedBySignal(
            f"stopped by {signal.Signals(stop.sigval).name}; "
            "run the same command again to go on from the last checkpoint"
        ) from None
    except ChildFailedError as error:
        failure = error.get_first_failure()[1]
        message = _message(failure)
        # A rank exits so only when all have agreed to stop and rank 0 has saved; the launcher may end the others before
        # they are out.
        stopped = failure.exitcode == StoppedBySignal.exit_code
        raise StoppedBySignal(message) if stopped else TrainingError(message) from None


def _message(failure: ProcessFailure) -> str:
    """The error of a rank: as it recorded it, or what is known of its death."""
    recorded = failure.error_file_data.get("message")
    if isinstance(recorded, dict) and (text := recorded.get("message")):  # else it is what stands for none
        return str(text).partition(": ")[2]  # the class of the error stands before it
    how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    return f"rank {failure.local_rank} ended with {how}; the lines above, or the host's memory, may say why"


def run_as_rank(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the rank's process: hand an error to the launching process, and exit with its code."""
    end_with_parent()
    try:
        function(*arguments)
    except Exception as error:
        if isinstance(error, LostRank):
            time.sleep(_FIRST)
        if not isinstance(error, DinowdsError):
            traceback.print_exc()
        get_error_handler().record_exception(error)
        sys.exit(getattr(error, "exit_code", 1))
