"""Batches of samples for a rank, and the processes that make them."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from operator import index
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader

from dinowds.data.blocks import Blocks, Packer, as_images, as_payloads, small_tensor
from dinowds.data.dataset import Dataset
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.source import READ_AHEAD, BadSample, Decode, PlanSource, RawSample
from dinowds.data.store.cache import CacheOptions
from dinowds.errors import ConfigError, DatasetError, DinowdsError
from dinowds.processes import end_with_parent, keep_sockets_short, shielded_from_signals
from dinowds.remote.urls import shown
from dinowds.world import World

StartMethod = Literal["forkserver", "spawn", "fork"]

_SECONDS_AFTER_SIGTERM = 20.0  # for the main process to finish and save its step


@dataclass
class Samples:
    """One rank's share of one global batch."""

    epoch: int
    step: int
    """Counted over all epochs."""
    keys: list[str]
    """[B], in the order of the batch."""
    ids: Tensor
    """int64 [B]: rows of samples.parquet."""
    labels: Tensor
    """int64 [B]: positions in the manifest's label names; -1 for none."""
    images: Tensor | list[Tensor]
    """uint8 [B, H, W, 3] where all have one size, else [B] of [H, W, 3]; empty where nothing is decoded."""
    payloads: list[bytes]
    """[B] encoded bytes; empty where images are decoded."""
    bad: list[BadSample] = field(default_factory=list)
    """What could not be read and was replaced."""

    def pin_memory(self) -> Samples:
        if isinstance(self.images, Tensor):
            self.images = self.images.pin_memory()
        return self


class Collate:
    """Stage: every `batch_size` samples become one `Samples`, packed while they come."""

    def __init__(self, batch_size: int, steps_per_epoch: int, blocks: Blocks) -> None:
        self._batch_size, self._steps_per_epoch, self._blocks = batch_size, steps_per_epoch, blocks

    def __call__(self, stream: Iterable[RawSample]) -> Iterator[Samples]:
        batch: list[RawSample] = []
        packer = None
        for sample in stream:
            if "image" in sample:
                packer = packer or Packer(self._blocks, self._batch_size)
                packer.add(sample.pop("image"))
            batch.append(sample)
            if len(batch) == self._batch_size:
                yield self._joined(batch, packer)
                batch, packer = [], None

    def _joined(self, batch: list[RawSample], packer: Packer | None) -> Samples:
        step = batch[0]["__step__"]
        return Samples(
            epoch=step // self._steps_per_epoch,
            step=step,
            keys=[sample["__key__"] for sample in batch],
            ids=small_tensor(np.array([sample["__id__"] for sample in batch]), self._blocks),
            labels=small_tensor(np.array([sample.get("cls", -1) for sample in batch]), self._blocks),
            images=packer.finish(as_images) if packer else [],
            payloads=[] if packer else self._payloads([sample[sample["__ext__"]] for sample in batch]),
            bad=[bad for sample in batch for bad in sample["__bad__"]],
        )

    def _payloads(self, payloads: list[bytes]) -> Any:
        if self._blocks.is_home:
            return payloads
        packer = Packer(self._blocks)
        for payload, room in zip(payloads, packer.rooms([(len(payload),) for payload in payloads]), strict=True):
            room.data[:] = payload
        return packer.finish(as_payloads)


class Loader:
    """Batches of a dataset, in the order of its plan; iterating again goes on where it was left.

    >>> loader = Loader(Dataset.open("data/patches"), Order(batch_size=256, seed=0), num_workers=4)
    >>> for batch in loader:
    ...     batch.keys, batch.images
    >>> state = loader.state_dict()
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        world: World | None = None,
        epochs: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        decode: bool = True,
        pin_memory: bool = False,
        start_method: StartMethod = "forkserver",
        verify_digests: bool = True,
        read_ahead: int = READ_AHEAD,
        cache: CacheOptions | None = None,
    ) -> None:
        """
        Args:
            world: which rank this is; one process by default. `World.from_environment()` knows torchrun and Slurm.
            epochs: where the stream ends; None for never.
            num_workers: loader processes, 0 for none. They live as long as the iterator.
            prefetch_factor: batches that each process keeps ready.
            decode: give images; False for their encoded bytes.
            start_method: of the loader processes. Other than with fork, a script needs the usual
                `if __name__ == "__main__"` guard.
            verify_digests: compare each payload with the digest in the index.
            read_ahead: batches of each process whose chunks are asked for before they are needed.
            cache: where chunks of remote shards are kept, and how many.

        Raises:
            ConfigError: an order that cannot work for this dataset and world, or a number that cannot be.
        """
        self._world, self._epochs = world or World(), epochs
        _check_at_least(0, epochs=epochs or 0, num_workers=num_workers, read_ahead=read_ahead)
        _check_at_least(1, prefetch_factor=prefetch_factor)
        order.rank_batch(self._world.size)  # before what takes long
        self.dataset, self.plan = dataset, make_plan(dataset, order)
        self.step = 0
        """The next global batch, counted over all epochs."""
        self._decode, self._read_ahead = decode, read_ahead
        self._verify_digests, self._cache = verify_digests, cache
        self._options: dict[str, Any] = {
            "num_workers": num_workers,
            "prefetch_factor": prefetch_factor,
            "pin_memory": pin_memory,
            "start_method": start_method,
        }

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Generator[Samples, None, None]:
        source = PlanSource(
            self.dataset,
            self.plan,
            self._world,
            self.step,
            None if self._epochs is None else self._epochs * self.steps_per_epoch,
            verify_digests=self._verify_digests,
            read_ahead=self._read_ahead,
            cache=self._cache,
        )
        stages = [Decode(source)] if self._decode else []
        blocks = Blocks(self._options["num_workers"], self._options["prefetch_factor"])
        pipeline = wds.DataPipeline(source, *stages, Collate(source.rank_batch, self.steps_per_epoch, blocks))
        for batch in load(pipeline, **self._options):
            self.step = batch.step + 1
            yield batch
            del batch  # so that its place is free as soon as the caller lets it go

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: plain numbers and strings. The same on every rank."""
        epoch, step = divmod(self.step, self.steps_per_epoch)
        return {"epoch": epoch, "step": step, "dataset": self.dataset.fingerprint, "order": asdict(self.plan.order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on any world and with any number of processes.

        Raises:
            ConfigError: it is no loader's state, or of another dataset, subset or order.
        """
        try:
            fingerprint, order = state["dataset"], dict(state["order"])
            step = index(state["epoch"]) * self.steps_per_epoch + index(state["step"])
        except (LookupError, TypeError, ValueError):
            raise ConfigError("this is no loader's state; expected what Loader.state_dict() gave") from None
        if fingerprint != self.dataset.fingerprint:
            raise ConfigError(f"{shown(self.dataset.url)}: the loader's state is of another dataset or subset")
        for name, value in asdict(self.plan.order).items():
            if order.get(name) != value:
                raise ConfigError(f"the loader's state has {name} {order.get(name)}, this loader {value}")
        self.step = step


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name} is {value}, expected at least {least}")


def load(
    pipeline: wds.DataPipeline,
    num_workers: int,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
    start_method: StartMethod = "forkserver",
) -> Generator[Any, None, None]:
    """Items of a pipeline of batches, made in `num_workers` processes (0: in this one), in the order of steps.

    Args:
        prefetch_factor: batches that each process keeps ready.
        pin_memory: copy them to page-locked memory, from which a GPU copies while it computes.

    Raises:
        DinowdsError: as raised in a loader process, message unchanged.
        DatasetError: a loader process died.
    """
    options: dict[str, Any] = {"batch_size": None, "pin_memory": pin_memory}
    if num_workers > 0:
        context = torch.multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            start_fork_server()
        options |= {
            "num_workers": num_workers,
            "prefetch_factor": prefetch_factor,
            "worker_init_fn": _init_worker,
            "multiprocessing_context": context,
        }
    with shielded_from_signals():
        items = [iter(DataLoader(wds.DataPipeline(pipeline, _hand_over_errors), **options))]
    # An iterator that is let go ends its processes. At the interpreter's end torch would not do it any more, and
    # multiprocessing would wait for processes that do not heed SIGTERM at once.
    atexit.register(items.clear)
    try:
        while (item := next(items[0], None)) is not None:
            if isinstance(item, DinowdsError):
                raise item
            yield item
            del item  # so that its place is free as soon as the caller lets it go
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "MemoryError in DataLoader worker" in reason:  # one that takes arguments, which torch cannot make anew
            raise MemoryError(reason) from None
        if "exited unexpectedly" not in reason and "is killed by signal" not in reason:
            raise
        raise DatasetError(
            f"a loader process died ({reason}); if memory ran out, lower speed.num_workers or speed.prefetch_factor, "
            "or give the job more memory and /dev/shm"
        ) from None
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # a traceback that is kept would keep the iterator
        raise
    finally:
        items.clear()
        atexit.unregister(items.clear)


def start_fork_server() -> None:
    """Let the server that forks loader processes import what they need. Called early, it does so beside the caller."""
    keep_sockets_short()
    with shielded_from_signals():
        forkserver.set_forkserver_preload(["dinowds.data.served"])
        forkserver.ensure_running()


def _hand_over_errors(stream: Iterable[Any]) -> Iterator[Any]:
    """Stage: an expected error travels as the last item. DataLoader would wrap its message in a traceback."""
    try:
        yield from stream
    except DinowdsError as error:
        yield error


def _init_worker(_worker: int) -> None:
    """One thread each; no life of its own."""
    end_with_parent()
    # DataLoader ends a worker that does not answer with SIGTERM. A batch system's SIGTERM must not end it at once.
    signal.signal(signal.SIGTERM, _end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)


def _end_soon(_number: int, _frame: FrameType | None) -> None:
    timer = threading.Timer(_SECONDS_AFTER_SIGTERM, os._exit, (1,))
    timer.daemon = True
    timer.start()
