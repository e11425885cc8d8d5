"""Which process this is among those that train together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dinowds.errors import ConfigError


@dataclass(frozen=True)
class World:
    """A plain value, so that a test can pretend to be any cluster."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size):
            raise ConfigError(
                f"the environment says rank {self.rank} of {self.size} (local {self.local_rank} of {self.local_size}); "
                "a rank must be below its world size: check RANK, WORLD_SIZE, LOCAL_RANK or the SLURM_* variables"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> World:
        """torchrun's variables first, then those of a Slurm job step; one process where there are neither.

        The number of visible devices says nothing: one-GPU nodes would silently train separate models.
        SLURM_* count only within a step (`srun`): a batch script sees them too, without being a rank.
        """
        env = os.environ if environment is None else environment
        if "RANK" in env and "WORLD_SIZE" in env:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        else:
            return cls()
        rank, size = int(env[names[0]]), int(env[names[1]])
        local_rank = int(env.get(names[2], "0"))
        return cls(rank, size, local_rank, max(int(env.get(names[3], "1")), local_rank + 1))


def available_cores() -> int:
    """Cores that this process may use (a Slurm job or a container often has fewer than the host)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))
