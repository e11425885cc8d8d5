"""Which process this is among those that train together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dinowds.errors import ConfigError

_FIRST_PORT, _NUM_PORTS = 20_000, 12_000
"""Below 32,768, from where on Linux gives ports to whoever asks for any."""


@dataclass(frozen=True)
class World:
    """A plain value, so that a test can pretend to be any cluster."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this host; also the GPU to use."""
    sharing_cores: int = 1
    """Processes that the cores this one may use are shared among."""
    num_hosts: int = 1
    """Hosts that the ranks are on; ranks of a host follow one another."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(
                f"the environment says rank {self.rank} of {self.size}; a rank must be below its world size: "
                "check RANK and WORLD_SIZE, or the SLURM_* variables"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> World:
        """torchrun's variables first, then those of a Slurm job step; one process where there are neither.

        The number of visible devices says nothing: one-GPU nodes would silently train separate models.
        SLURM_* count only within a step (`srun`): a batch script sees them too, without being a rank. A Slurm task has
        its cores to itself; torchrun's processes share those of the host.
        """
        env = os.environ if environment is None else environment
        if "RANK" in env and "WORLD_SIZE" in env:
            local_rank = _number(env, "LOCAL_RANK")
            sharing = max(_number(env, "LOCAL_WORLD_SIZE", 1), local_rank + 1)
            size = _number(env, "WORLD_SIZE")
            return cls(_number(env, "RANK"), size, local_rank, sharing, max(1, size // sharing))
        if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
            return cls()
        # In an interactive job's shell, a step of one task, SLURM_NTASKS is what the job may start.
        size = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", 1)
        if size == 1:
            return cls()
        hosts = _number(env, "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in env else "SLURM_NNODES", 1)
        return cls(_number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID"), num_hosts=hosts)


def rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port at which the ranks meet: MASTER_ADDR and MASTER_PORT, or the first host of a Slurm job step.

    Raises:
        ConfigError: the environment says neither.
    """
    host = environment.get("MASTER_ADDR")
    if host is None and (hosts := environment.get("SLURM_STEP_NODELIST")):
        host = first_host(hosts)
    if host is None or environment.keys().isdisjoint({"MASTER_PORT", "SLURM_JOB_ID"}):
        raise ConfigError(
            "MASTER_ADDR and MASTER_PORT are not set; start with --nproc, torchrun or srun, or export them everywhere"
        )
    if "MASTER_PORT" in environment:
        return host, _number(environment, "MASTER_PORT")
    return host, _FIRST_PORT + _number(environment, "SLURM_JOB_ID") % _NUM_PORTS


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"the environment says {name}={text}, expected a whole number") from None


def first_host(hosts: str) -> str:
    """The first name of a Slurm host list: 'gpu[07-09,12],login1' → 'gpu07'."""
    prefix, bracket, rest = hosts.partition("[")
    if not bracket or "," in prefix:
        return prefix.partition(",")[0]
    inside, _, after = rest.partition("]")
    return prefix + re.split("[-,]", inside)[0] + after.partition(",")[0]


def available_cores() -> int:
    """Cores that this process may use (a Slurm job or a container often has fewer than the host)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [int(os.environ.get("SLURM_CPUS_PER_TASK", cores)), _cgroup_cores() or cores]
    return max(1, min(cores, *limits))


def available_memory() -> int:
    """Bytes that this process may still take: what is free on the host, and in its container or Slurm job."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) << 10)
    with suppress(OSError, ValueError):  # cgroup 2; 'max' is no number
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_MEM_PER_NODE"]) << 20)
    return max(0, min(limits))


def _cgroup_cores() -> int | None:
    """Whole cores of this container's CPU quota (cgroup 2), or None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
