"""torch.distributed: the only place where ranks talk to each other."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous as join_store
from torch.nn.parallel import DistributedDataParallel

from dinowds.data.dataset import Dataset
from dinowds.errors import ConfigError, DinowdsError, TrainingError
from dinowds.remote.urls import shown, shown_in
from dinowds.train.alike import difference
from dinowds.train.peers import Peers
from dinowds.world import World, rendezvous

Value = TypeVar("Value")
Model = TypeVar("Model", bound=nn.Module)

_JOINING = datetime.timedelta(minutes=10)
"""From the first rank's start to the last one's."""
_WAITING = datetime.timedelta(minutes=30)
"""For a rank that lives, as while it reads a large checkpoint. That one is gone is noticed sooner, see `peers`."""


@contextmanager
def process_group(
    world: World, device: torch.device | Callable[[], torch.device], facts: Callable[[], dict[str, str]] = dict
) -> Iterator[torch.device]:
    """Join the ranks of `world` (NCCL on GPUs, Gloo on CPUs), with nothing to join for a single process. Yields what
    this rank computes on.

    If one of them fails meanwhile, all end within a minute and tell the first error. So whatever can fail on one rank
    alone belongs in here.

    Args:
        device: or what chooses it, which may fail on one rank alone, too.
        facts: what must be the same on all ranks: name → text for people.

    Raises:
        LostRank: another rank failed.
        ConfigError: the ranks are not alike.
        TrainingError: not all of them came.
    """
    choose = device if callable(device) else lambda: device
    if world.size == 1:
        yield choose()
        return
    store = _meet(world)
    with Peers(world, store) as peers:
        backend = "gloo"
        try:
            _check_facts(world, facts(), store)
            own = choose()
            _check_devices(world, own, store)
            backend = "nccl" if own.type == "cuda" else "gloo"
            td.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=_WAITING)
            if backend == "gloo":
                td.barrier()  # where a rank fails while another one still connects, Gloo writes lines of its own
            yield own
        except BaseException as error:
            told = peers.tell(error)
            if backend == "gloo":
                _leave_group()  # NCCL would wait for what is under way; it ends with the process
            if told is error:
                raise
            raise told from None
        _leave_group()


def _meet(world: World) -> Store:
    """The store that all ranks share."""
    host, port = rendezvous(os.environ)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    try:
        store, _, _ = next(join_store("env://", world.rank, world.size, timeout=_JOINING))
    except td.DistError as error:
        why = " ".join(str(error).split())
        raise TrainingError(
            f"rank {world.rank}: the {world.size} ranks did not meet at {host}:{port} ({why}); see what the others "
            "say, and that MASTER_ADDR and MASTER_PORT are those of rank 0's host and free there"
        ) from None
    return cast(Store, store)


def _check_facts(world: World, facts: dict[str, str], store: Store) -> None:
    """Raise ConfigError where this rank has other facts than rank 0. Not by a collective: other versions may hang."""
    if world.rank == 0:
        store.set("facts", json.dumps(facts))
    if found := difference(facts, json.loads(store.get("facts"))):
        raise ConfigError(
            f"rank {world.rank} on {socket.gethostname()} has {shown_in(found)}; start all ranks with the same "
            "installation and the same command"
        )


def check_same_dataset(world: World, dataset: Dataset) -> None:
    """Raise ConfigError where this rank has opened another dataset than rank 0."""
    first = on_rank_0(lambda: (dataset.fingerprint, len(dataset)))
    if first != (dataset.fingerprint, len(dataset)):
        raise ConfigError(
            f"rank {world.rank} on {socket.gethostname()} has another dataset at {shown(dataset.url)} than rank 0 "
            f"({len(dataset):,} samples, there {first[1]:,}); copy the same one to each host"
        )


def _check_devices(world: World, device: torch.device, store: Store) -> None:
    """Raise ConfigError where this rank computes on another kind of device than rank 0: they could not talk."""
    if world.rank == 0:
        store.set("device", device.type)
    if (first := store.get("device").decode()) != device.type:
        raise ConfigError(
            f"rank {world.rank} computes on {device.type}, rank 0 on {first}; look at the GPUs of its host "
            f"({socket.gethostname()}) with 'dinowds doctor'"
        )
    if device.type == "cuda":
        check_own_gpu(world, str(torch.cuda.get_device_properties(device).uuid), store)


def check_own_gpu(world: World, uuid: str, store: Store) -> None:
    """Raise ConfigError where another rank has this GPU: NCCL would speak of an invalid usage."""
    if store.add(f"gpu/{uuid}", 1) > 1:
        raise ConfigError(
            f"rank {world.rank} has no GPU of its own, another rank computes on the same; start one process for each "
            f"GPU that 'dinowds doctor' shows on {socket.gethostname()}"
        )


def _leave_group() -> None:
    if td.is_initialized():
        td.destroy_process_group()


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return bool(td.is_initialized())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if td.is_initialized():
        td.all_reduce(tensor)
    return tensor


def all_gather_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in their order: [N_r, …] of one dtype, alike but for their lengths N_r ≥ 0."""
    if not td.is_initialized():
        return [tensor]
    lengths = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(td.get_world_size())]
    td.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    counts = torch.cat(lengths).tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in counts]
    td.all_gather(gathered, padded)
    return [whole[:count] for whole, count in zip(gathered, counts, strict=True)]


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


@contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Forward and backward passes of a replicated or sharded module: its gradients are averaged over ranks with the
    last micro-batch only.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
        yield
