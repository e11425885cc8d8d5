"""Memory for whole batches that is filled again and again, and shared with loader processes.

A batch of 256 images of 196 kB in fresh memory costs 12,288 page faults: up to a third of the time that decoding takes.
So batches are packed into places of a file that is in no folder (`memfd_create`) and that every process maps. It needs
no /dev/shm, it is gone with the last process that has it, and of a place only the pages that were written exist.

A loader process takes a place, fills it and sends its number and the shapes. In the main process they arrive as
tensors on that very memory; when nothing refers to any of them, the place may be filled again. So a batch is its
user's for as long as he keeps it. If he keeps so many that no place is left, batches get fresh memory.

    flags: 1 byte a place, 0: free · at (1 + place) << 36: what is packed there
"""

from __future__ import annotations

import math
import mmap
import os
import uuid
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from dinowds.errors import DatasetError

Bytes = NDArray[np.uint8]
Shape = tuple[int, ...]
Build = Callable[[Bytes, Sequence[Shape]], Any]
"""Makes what a batch holds from packed arrays, uint8 [n], and their shapes. Can be pickled; copies or keeps views."""

_PLACE_BITS = 36
"""A place has 64 GiB of addresses in the file, far more than a batch; only what is written takes memory."""
_IN_USE = 3
"""Batches of one process that its user has: the one at hand, the next, and one that something still refers to."""


class Blocks:
    """The places of all loader processes. Made in the main process for one iteration; they get it with what they run.

    Takes at most max(1, `num_workers`) × `per_worker` × the bytes of the largest batch, and only as much of that as
    there were batches at once. Needs no lock: a place is set by its loader process alone, when it is free, and freed by
    the main process alone.
    """

    def __init__(self, num_workers: int = 0, prefetch_factor: int = 2) -> None:
        """As for `load`; with 0 loader processes, batches are made in this one."""
        self.per_worker = _IN_USE + (prefetch_factor if num_workers else 0)
        self._count = max(1, num_workers) * self.per_worker
        self._home, self._name = os.getpid(), uuid.uuid4().hex
        self._open(_new_file((1 + self._count) << _PLACE_BITS))
        _of_this_process[self._name] = self

    def _open(self, file: int | None) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._largest = 1
        self._file = file
        self._taken: Bytes = np.ones(self._count, np.uint8)  # without a file, no place is ever free
        if file is not None:
            weakref.finalize(self, os.close, file).atexit = False
            self._taken = np.frombuffer(mmap.mmap(file, self._count), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("per_worker", "_count", "_home", "_name")}
        return {**state, "file": None if self._file is None else reduction.DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state.pop("file")
        self.__dict__.update(state)
        self._open(None if file is None else file.detach())

    @property
    def is_home(self) -> bool:
        """Whether this is the process that made it, where batches arrive."""
        return os.getpid() == self._home

    def take(self) -> int | None:
        """A place of this loader process that was free; None if there is none."""
        worker = None if self.is_home else get_worker_info()
        first = worker.id * self.per_worker if worker else 0
        for place in range(first, min(first + self.per_worker, self._count)):
            if not self._taken[place]:
                self._taken[place] = 1
                return place
        return None

    def memory(self, place: int, num_bytes: int) -> Bytes:
        """The first `num_bytes` of a place, uint8 [num_bytes]. Asked for more, it is the same memory and more of it."""
        map_ = self._maps.get(place)
        if map_ is None or len(map_) < num_bytes:
            assert self._file is not None
            if num_bytes > 1 << _PLACE_BITS:
                raise DatasetError(f"a batch of {num_bytes / 2**30:.0f} GiB, expected at most 64; lower the batch size")
            self._largest = max(self._largest, num_bytes)
            map_ = self._maps[place] = mmap.mmap(self._file, self._largest, offset=(1 + place) << _PLACE_BITS)
        return np.frombuffer(map_, np.uint8, num_bytes)

    def arrived(self, place: int, num_bytes: int) -> Bytes:
        """The same, in the process that has the batch: the place is free when nothing refers to this array."""
        memory = self.memory(place, num_bytes)
        weakref.finalize(memory, _free, self._taken, place).atexit = False
        return memory


class Packer:
    """Puts arrays into one place, one by one as they are made: what was just decoded is still in the CPU's cache."""

    def __init__(self, blocks: Blocks, count: int = 1) -> None:
        """`count`: how many arrays will come, to guess how much they take."""
        self._blocks, self._count = blocks, count
        self._place = blocks.take()
        self._fresh: Tensor = torch.empty(0, dtype=torch.uint8)
        self._memory: Bytes = self._fresh.numpy()
        self._shapes: list[Shape] = []
        self._end = 0

    def add(self, array: Bytes) -> None:
        """Append a copy of `array`; if it is the last `peek`, it is there already."""
        (room,) = self.rooms([array.shape])
        if room.ctypes.data != array.ctypes.data:
            room[...] = array

    def peek(self, shape: Shape) -> Bytes:
        """The memory that the next array will have if it is of this shape, to make it there."""
        size = math.prod(shape)
        if self._end + size > len(self._memory):
            self._grow(self._end + size, len(self._shapes) + 1)
        return self._memory[self._end : self._end + size].reshape(shape)

    def rooms(self, shapes: Sequence[Shape]) -> list[Bytes]:
        """Append arrays that the caller fills before the next ones are appended."""
        sizes = [math.prod(shape) for shape in shapes]
        if self._end + sum(sizes) > len(self._memory):
            self._grow(self._end + sum(sizes), len(self._shapes) + len(shapes))
        rooms = []
        for shape, size in zip(shapes, sizes, strict=True):
            rooms.append(self._memory[self._end : self._end + size].reshape(shape))
            # Pickled once if it is one and the same tuple.
            self._shapes.append(self._shapes[-1] if self._shapes and self._shapes[-1] == shape else shape)
            self._end += size
        return rooms

    def _grow(self, num_bytes: int, num_arrays: int) -> None:
        """To at least `num_bytes`, which `num_arrays` arrays take."""
        guess = max(num_bytes, num_bytes * self._count // num_arrays)
        if self._place is not None:
            self._memory = self._blocks.memory(self._place, guess)
            return
        fresh = _fresh(guess, is_shared=not self._blocks.is_home)
        fresh.numpy()[: self._end] = self._memory[: self._end]
        self._fresh, self._memory = fresh, fresh.numpy()

    def finish(self, build: Build) -> Any:
        """What `build` makes of all that was appended; in a loader process, what arrives as that in the main one."""
        fresh = None if self._place is not None else self._fresh
        packed = (self._place, fresh, self._end, self._shapes, build)
        return _arrive(self._blocks, *packed) if self._blocks.is_home else _Parcel(self._blocks._name, *packed)


def as_images(memory: Bytes, shapes: Sequence[Shape]) -> Tensor | list[Tensor]:
    """uint8 [n, …] where all have one shape, else [n] of […]. Not copied."""
    if shapes and all(shape == shapes[0] for shape in shapes):
        return torch.from_numpy(memory).view(len(shapes), *shapes[0])
    return as_tensors(memory, shapes)


def as_tensors(memory: Bytes, shapes: Sequence[Shape]) -> list[Tensor]:
    """[n] of […]. Not copied."""
    parts = torch.from_numpy(memory).split([int(np.prod(shape)) for shape in shapes])  # type: ignore[no-untyped-call]
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def as_payloads(memory: Bytes, shapes: Sequence[Shape]) -> list[bytes]:
    """A copy of each array of bytes."""
    content, start, payloads = memory.data, 0, []
    for (size,) in shapes:
        payloads.append(bytes(content[start : start + size]))
        start += size
    return payloads


def small_tensor(numbers: NDArray[Any], blocks: Blocks) -> Any:
    """A tensor of a few numbers; from a loader process they are sent as they are, not as shared memory of their own."""
    return torch.from_numpy(numbers) if blocks.is_home else _Numbers(numbers)


class _Parcel:
    """On the way: becomes what was built where it is unpickled."""

    def __init__(self, *about: Any) -> None:
        self._about = about

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, self._about


class _Numbers:
    """On the way: becomes a tensor where it is unpickled."""

    def __init__(self, numbers: NDArray[Any]) -> None:
        self._numbers = numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self._numbers,)


_of_this_process: weakref.WeakValueDictionary[str, Blocks] = weakref.WeakValueDictionary()


def _unpack(name: str, *packed: Any) -> Any:
    return _arrive(_of_this_process[name], *packed)


def _arrive(
    blocks: Blocks, place: int | None, fresh: Tensor | None, num_bytes: int, shapes: list[Shape], build: Build
) -> Any:
    if place is not None:
        return build(blocks.arrived(place, num_bytes), shapes)
    assert fresh is not None
    return build(fresh.numpy()[:num_bytes], shapes)


def _free(taken: Bytes, place: int) -> None:
    taken[place] = 0


def _new_file(num_bytes: int) -> int | None:
    """A file in memory, all of it holes; None where there is no such thing."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        file = os.memfd_create("dinowds-batches")
    except OSError:  # forbidden in some sandboxes
        return None
    os.ftruncate(file, num_bytes)
    return file


def _fresh(num_bytes: int, is_shared: bool) -> Tensor:
    """uint8 [num_bytes] that is not used again."""
    if not is_shared:
        return torch.empty(num_bytes, dtype=torch.uint8)
    try:
        storage = torch.UntypedStorage._new_shared(num_bytes)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        raise DatasetError(
            f"/dev/shm has no {num_bytes / 2**20:.0f} MiB left for one more batch ({str(error).splitlines()[0]}); keep "
            "fewer batches, lower speed.num_workers or speed.prefetch_factor, or give the job more /dev/shm"
        ) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)
