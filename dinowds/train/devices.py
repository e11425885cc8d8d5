"""What this process computes on, and in which precision."""

from __future__ import annotations

from pathlib import Path

import torch

from dinowds.errors import ConfigError
from dinowds.world import World, available_cores

_MAX_WORKERS = 16


def choose_device(world: World) -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {world.local_rank} has no GPU of its own: this host shows {torch.cuda.device_count()}; "
            "start at most that many processes a host"
        )
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32. `auto`: bfloat16 where the device has units for it."""
    if precision == "fp32":
        return None
    return torch.bfloat16 if precision == "bf16" or computes_bf16(device) else None


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: Ampere and later, or a CPU with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def choose_num_workers(asked: int | None, world: World, device: torch.device) -> int:
    """Loader processes of this rank: all cores of its share beside a GPU, half of them where the CPU also trains."""
    if asked is not None:
        return asked
    share = available_cores() // world.local_size
    return max(1, min(_MAX_WORKERS, share if device.type == "cuda" else share // 2))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit` (both at least 1)."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
