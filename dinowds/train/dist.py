"""torch.distributed: the only place where ranks talk to each other."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinowds.errors import ConfigError, DinowdsError
from dinowds.world import World, rendezvous

Value = TypeVar("Value")
Model = TypeVar("Model", bound=nn.Module)

_TIMEOUT = datetime.timedelta(minutes=10)


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the ranks of `world` (NCCL on GPUs, Gloo on CPUs); nothing for a single process."""
    if world.size == 1:
        yield
        return
    host, port = rendezvous(os.environ)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    backend = "nccl" if device.type == "cuda" else "gloo"
    td.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_TIMEOUT)
    try:
        yield
    finally:
        td.destroy_process_group()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if td.is_initialized():
        td.all_reduce(tensor)
    return tensor


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give the values that rank 0 has to all ranks, in place."""
    if td.is_initialized():
        for tensor in tensors:
            td.broadcast(tensor, src=0)


def on_rank_0(function: Callable[[], Value]) -> Value:
    """Call `function` on rank 0 alone and give its value, a small plain one, to every rank, which waits for it.

    An expected error of rank 0 is raised on all ranks: none is left waiting in a collective. Not for use within a step.
    """
    if not td.is_initialized():
        return function()
    box: list[tuple[Any, DinowdsError | None]] = [(None, None)]
    if td.get_rank() == 0:
        try:
            box = [(function(), None)]
        except DinowdsError as error:
            box = [(None, error)]
    td.broadcast_object_list(box, src=0)
    value, failure = box[0]
    if failure:
        raise failure
    return cast(Value, value)


def barrier() -> None:
    """Wait until every rank is here."""
    if td.is_initialized():
        td.barrier()


def synchronise_batch_norm(model: Model, device: torch.device) -> Model:
    """Let batch norm see the global batch. Raises ConfigError where torch cannot: on several CPU processes."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if not (td.is_initialized() and has_batch_norm):
        return model
    if device.type != "cuda":
        raise ConfigError(
            "student.use_bn_in_head needs one process on the CPU (torch synchronises batch norm on GPUs only); "
            "leave --nproc out"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, no-any-return]


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """The module whose backward averages gradients over ranks; `model` itself for a single process."""
    if not td.is_initialized():
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
