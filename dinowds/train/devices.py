"""What this process computes on, and in which precision."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dinowds.config import RunConfig
from dinowds.errors import ConfigError, TrainingError
from dinowds.world import World, available_cores

_MAX_WORKERS = 16
_NO_HOST_MEMORY = "DefaultCPUAllocator: "


def choose_device(world: World) -> torch.device:
    """This rank's GPU, or the CPU where there is none. A lone visible GPU is taken to be this rank's own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = 0 if torch.cuda.device_count() == 1 else world.local_rank
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {world.local_rank} has no GPU of its own: this host shows {torch.cuda.device_count()}; "
            "start at most that many processes a host"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` is bf16 where the device has units for it."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bf16(device) else "fp32"


def resolve_renderer(renderer: str, device: torch.device) -> str:
    """`cpu`, `device` or `pil`; `auto` leaves the crops to a GPU where there is one."""
    if renderer != "auto":
        return renderer
    return "device" if device.type == "cuda" else "cpu"


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: Ampere and later, or a CPU with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@contextmanager
def numerics(device: torch.device, tf32: bool, deterministic: bool) -> Iterator[None]:
    """What float32 products and the choice of kernels are to be, whatever was set before, which is restored.

    On the CPU products are exact in any case: there `tf32` would mean bfloat16.
    """
    precision, algorithms = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.set_float32_matmul_precision("high" if tf32 and device.type == "cuda" else "highest")
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(algorithms)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Of a resolved precision; None for float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


@contextmanager
def training_attention(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Around a forward pass in autocast `dtype` and its backward pass: the kernels of attention that suit them.

    On a CPU, bfloat16 attention is made of plain products: the fused kernel's backward pass takes several times as long
    (`benchmarks/step.py`).
    """
    if device.type != "cpu" or dtype is None:
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else it computes in float32; the CPU obeys it too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


@contextmanager
def memory_explained(config: RunConfig) -> Iterator[None]:
    """Say what to change where the memory of a GPU or host is too small: TrainingError in place of torch's error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:2])
        raise TrainingError(
            f"the GPU's memory is full ({reason}); lower train.max_batch_per_device (now "
            f"{config.train.max_batch_per_device}; the rest is accumulated), or set speed.checkpoint_activations=true; "
            "in an evaluation, lower tune.knn.batch_size_per_gpu; with several GPUs, speed.sharding=fsdp"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _NO_HOST_MEMORY not in str(error):
            raise
        raise TrainingError(
            f"the memory of host {socket.gethostname()} is full, or this process may take no more; lower "
            "train.max_batch_per_device or speed.num_workers, or ask the batch system for more memory"
        ) from None


def choose_num_workers(asked: int | None, world: World, device: torch.device) -> int:
    """Loader processes of this rank: all cores of its share beside a GPU, half of them where the CPU also trains."""
    if asked is not None:
        return asked
    share = available_cores() // world.sharing_cores
    return max(1, min(_MAX_WORKERS, share if device.type == "cuda" else share // 2))


def micro_batch_size(rank_batch: int, limit: int) -> int:
    """Images that go through the device at once: the rank's share in the fewest parts of at most `limit`, all of them
    of this size but for the last, which may be smaller.
    """
    num_parts = -(-rank_batch // limit)
    return -(-rank_batch // num_parts)
