"""Ranks started as `srun` starts them: processes with nothing in common but their environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import IO

from tests.support import free_port


def start_ranks(
    command: Sequence[object], number: int = 2, stderr: int | IO[str] | None = subprocess.PIPE
) -> list[subprocess.Popen[str]]:
    common = {**os.environ, "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            list(map(str, command)),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for rank in range(number)
    ]
