"""FSDP2: each rank holds its share of weights, gradients and optimizer state; checkpoints are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dinowds.model.dino import DinoModel

State = dict[str, Any]


def shard(model: DinoModel, device: torch.device) -> None:
    """Leave each rank its rows of every parameter, in place: each block, the rest of the backbone, and the head are
    gathered when they are needed and freed after it. (Zhao et al. 2023; `torch.distributed.fsdp.fully_shard`.)

    `model` is on `device` with the same weights on all ranks, compiled and with activation checkpointing if it is to
    be. Every forward pass is a collective; the first one is to be of the whole model.
    """
    model.backbone.register_forward_hook(_own_memory)
    mesh = init_device_mesh(device.type, (td.get_world_size(),))
    # The backbone apart from the model: torch leaves the outermost module's own parameters whole after a forward pass
    # without a backward one, and the teacher would not see its updates.
    for module in (*model.backbone.blocks, model.backbone, model.head, model):
        fully_shard(module, mesh=mesh)


def _own_memory(_module: nn.Module, _inputs: object, features: Tensor) -> Tensor:
    """Class tokens are a view of the last norm's tokens; torch warns of views of sharded modules, which must not be
    changed.
    """
    return features.clone()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@torch.no_grad()
def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's rows of sharded tensors, in the same memory; other tensors as they are. A share may be empty."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


class Share(nn.Parameter):
    """This rank's rows of a sharded parameter, for its optimizer."""

    whole: DTensor

    @classmethod
    def of(cls, parameter: DTensor) -> Share:
        (rows,) = local([parameter.detach()])
        share = cls(rows)
        share.whole = parameter
        return share


def shard_optimizer(optimizer: Optimizer) -> None:
    """Let an optimizer of sharded parameters that has made no step yet work on this rank's shares.

    They are plain tensors: torch would dispatch each call for a list of sharded ones in Python, tens of milliseconds a
    step. A step takes the gradients of the model's parameters, which then have none. For other parameters nothing
    changes.
    """
    for group in optimizer.param_groups:
        group["params"] = [Share.of(p) if isinstance(p, DTensor) else p for p in group["params"]]
    optimizer.register_step_pre_hook(_take_gradients)


@torch.no_grad()
def _take_gradients(optimizer: Optimizer, *_: object) -> None:
    for share in _parameters(optimizer):
        if isinstance(share, Share):
            (share.data,) = local([share.whole])  # the first forward pass may have moved it
            (share.grad,) = local([share.whole.grad]) if share.whole.grad is not None else (None,)
            share.whole.grad = None


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """In the order in which `state_dict` numbers them."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def full_model_state(model: nn.Module) -> State:
    """`model.state_dict()` with whole tensors: as of one process. All ranks call it together.

    Sharded tensors come as copies in CPU memory on rank 0, as None on the others; others are the model's own.
    """
    return {name: _whole(value) for name, value in model.state_dict().items()}


def load_full_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """`model.load_state_dict` of a `full_model_state`, which every rank has."""
    own = model.state_dict()
    model.load_state_dict({name: _as_sharded(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: Optimizer) -> State:
    """`optimizer.state_dict()` with whole tensors, as `full_model_state`."""
    state, parameters = optimizer.state_dict(), list(_parameters(optimizer))
    return _map_optimizer_state(state, lambda number, value: _whole(_joined(value, parameters[number])))


def load_full_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` of a `full_optimizer_state`, which every rank has."""
    parameters = list(_parameters(optimizer))

    def share(number: int, value: Any) -> Any:
        parameter = parameters[number]
        if not isinstance(parameter, Share) or not _has_rows(value):
            return value
        (rows,) = local([_as_sharded(value, parameter.whole)])
        return rows.clone()  # or it would keep the whole tensor in memory

    optimizer.load_state_dict(_map_optimizer_state(state, share))


def _map_optimizer_state(state: Mapping[str, Any], change: Callable[[int, Any], Any]) -> State:
    """With `change(number of the parameter, value)` in the place of each value of its state."""
    changed = {
        number: {name: change(number, value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": changed}


def _has_rows(value: Any) -> bool:
    """Whether it is laid out as the parameter: moments are, the number of steps is not."""
    return isinstance(value, Tensor) and value.ndim > 0


def _joined(value: Any, parameter: Tensor) -> Any:
    """The sharded tensor that a share's state is this rank's rows of."""
    if not isinstance(parameter, Share) or not _has_rows(value):
        return value
    whole = parameter.whole
    return DTensor.from_local(
        value, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _whole(value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()  # one at a time: the device need not hold them all
    return whole.cpu() if td.get_rank() == 0 else None


def _as_sharded(value: Any, like: Any) -> Any:
    """A whole tensor, which every rank has, laid out over the ranks as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
