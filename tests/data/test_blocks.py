"""Memory of batches is filled again only when no one looks at it, and nothing of it stays."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dinowds.data import blocks as blocks_module
from dinowds.data.blocks import Blocks, Packer, Shape, as_images, as_payloads, as_tensors, small_tensor
from dinowds.data.loader import Samples, load
from dinowds.errors import DatasetError

EQUAL: list[Shape] = [(4, 4, 3)] * 5
SHAPES: list[list[Shape]] = [EQUAL, [(4, 4, 3), (2, 7, 3), (9, 9, 3)], [(1, 1, 3), (300, 300, 3)], [(0, 3), (5, 1)], []]
FORK = "ignore:.*multi-threaded, use of fork:DeprecationWarning"


def arrays(shapes: list[Shape], seed: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, shape, np.uint8) for shape in shapes]


def pack(blocks: Blocks, content: list[NDArray[np.uint8]], build: Any = as_images, count: int = 1) -> Any:
    packer = Packer(blocks, count)
    for array in content:
        packer.add(array)
    return packer.finish(build)


def is_same(images: Any, content: list[NDArray[np.uint8]]) -> bool:
    return all(np.array_equal(image.numpy(), array) for image, array in zip(images, content, strict=True))


def num_taken(blocks: Blocks) -> int:
    gc.collect()
    return int(blocks._taken.sum())


@pytest.mark.parametrize("count", [1, 5, 100])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("are_held", [False, True])
def test_images__are_what_was_packed(shapes: list[Shape], count: int, are_held: bool) -> None:
    blocks = Blocks()
    held = []
    for seed in range(8):
        content = arrays(shapes, seed)
        images = pack(blocks, content, count=count)
        assert isinstance(images, Tensor) == (bool(shapes) and len(set(shapes)) == 1)
        assert is_same(images, content)
        if are_held:
            held.append((images, content))
        del images
    assert all(is_same(*pair) for pair in held)


def test_tensors__keep_their_place_as_long_as_one_view_is_left() -> None:
    blocks = Blocks()
    first = arrays(EQUAL, 0)
    view = pack(blocks, first, as_tensors)[3][1:].numpy()
    assert num_taken(blocks) == 1
    for seed in range(6):
        pack(blocks, arrays(EQUAL, seed + 1))
    assert np.array_equal(view, first[3][1:])
    del view
    assert num_taken(blocks) == 0


def test_tensors__are_their_users_when_the_blocks_are_gone() -> None:
    content = arrays(EQUAL, 0)
    images = pack(Blocks(), content)
    gc.collect()
    images += 1
    assert is_same(images, [array + 1 for array in content])


def test_places__are_filled_again() -> None:
    blocks = Blocks()
    addresses = {pack(blocks, arrays(EQUAL, seed)).data_ptr() for seed in range(20)}
    assert len(addresses) == 1
    kept = [pack(blocks, arrays(EQUAL, seed)) for seed in range(blocks.per_worker + 2)]
    assert num_taken(blocks) == blocks.per_worker
    del kept[1]
    gc.collect()
    kept.append(pack(blocks, arrays(EQUAL, 30)))
    assert num_taken(blocks) == blocks.per_worker


def test_payloads__are_copies() -> None:
    blocks = Blocks()
    content = arrays([(3000,), (1,), (0,)], 0)
    payloads = pack(blocks, content, as_payloads)
    assert num_taken(blocks) == 0
    pack(blocks, arrays([(4000,)], 1))
    assert payloads == [array.tobytes() for array in content]


def test_rooms__are_filled_by_the_caller() -> None:
    packer = Packer(Blocks())
    shapes: list[Shape] = [(2, 3), (500, 40), (1,)]
    content = arrays(shapes, 0)
    for room, array in zip(packer.rooms(shapes), content, strict=True):
        room[...] = array
    assert is_same(packer.finish(as_tensors), content)


def test_memory__of_a_growing_place_is_the_same() -> None:
    """Views of a batch stay what they were when its place is mapped anew."""
    blocks = Blocks()
    small = blocks.memory(1, 100)
    small[:] = 7
    large = blocks.memory(1, 1 << 20)
    assert (large[:100] == 7).all()
    large[0] = 8
    assert small[0] == 8
    assert not blocks.memory(0, 1 << 20).any()


def test_memory__more_than_a_place_has() -> None:
    with pytest.raises(DatasetError, match="a batch of 65 GiB, expected at most 64"):
        Blocks().memory(0, 65 << 30)


def test_system_without_such_files__gets_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    blocks = Blocks()
    assert blocks.take() is None
    kept = [(pack(blocks, arrays(EQUAL, seed)), arrays(EQUAL, seed)) for seed in range(5)]
    assert all(is_same(*pair) for pair in kept)


def test_full_shared_memory__is_an_error_in_one_line() -> None:
    with pytest.raises(DatasetError, match=r"^/dev/shm has no \d+ MiB left .*prefetch_factor") as caught:
        blocks_module._fresh(1 << 50, is_shared=True)
    assert "\n" not in str(caught.value)


def test_pinned_copy__frees_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader's thread pins what arrives; a copy stands in for page-locked memory, which only a GPU's driver has."""
    blocks, content = Blocks(), arrays(EQUAL, 0)
    numbers = torch.zeros(5, dtype=torch.int64)
    samples = Samples(0, 0, [], numbers, numbers, pack(blocks, content), [])
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    assert num_taken(blocks) == 1
    samples = samples.pin_memory()
    assert num_taken(blocks) == 0
    pack(blocks, arrays(EQUAL, 1))
    assert is_same(samples.images, content)


class Batches(IterableDataset[Any]):
    """(step, images, number) in loader processes; kills its process at step `death`."""

    def __init__(self, blocks: Blocks, shapes: list[Shape], death: int | None = None) -> None:
        self.blocks, self.shapes, self.death = blocks, shapes, death

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        for step in range(worker.id, 40, worker.num_workers):
            images = pack(self.blocks, arrays(self.shapes, step), count=3)
            if step == self.death:
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, images, small_tensor(np.array([step]), self.blocks)


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize(
    ("method", "shapes"), [("fork", EQUAL), ("fork", SHAPES[1]), ("forkserver", EQUAL), ("spawn", SHAPES[1])]
)
def test_loader_processes__fill_places_again(method: str, shapes: list[Shape]) -> None:
    blocks = Blocks(2, prefetch_factor=2)
    loader: Any = DataLoader(
        Batches(blocks, shapes), batch_size=None, num_workers=2, multiprocessing_context=method, prefetch_factor=2
    )
    seen, addresses, held = [], set(), []
    for step, images, number in loader:
        assert number.tolist() == [step]
        assert is_same(images, arrays(shapes, step))
        seen.append(step)
        addresses.add(images[0].data_ptr())
        if step in (0, 21):
            held.append((images[1:3], arrays(shapes, step)[1:3]))
        del images
    assert seen == list(range(40))
    assert len(addresses) <= 2 * blocks.per_worker
    assert num_taken(blocks) == len(held)
    assert (np.flatnonzero(blocks._taken) // blocks.per_worker).tolist() == [0, 1]  # of each process its own
    del blocks, loader
    gc.collect()
    assert all(is_same(*pair) for pair in held)


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("has_places", [False, True])
def test_loader_processes__all_batches_are_kept(has_places: bool) -> None:
    """Fresh memory where no place is left, or there never were places for that many processes."""
    blocks = Blocks(2 if has_places else 0)
    loader: Any = DataLoader(Batches(blocks, SHAPES[1]), batch_size=None, num_workers=2, multiprocessing_context="fork")
    kept = list(loader)
    assert all(is_same(images, arrays(SHAPES[1], step)) for step, images, _ in kept)


@pytest.mark.filterwarnings(FORK)
def test_loader_process__killed_with_a_place_taken() -> None:
    kept: list[Any] = []
    batches = load([Batches(Blocks(2), EQUAL, death=11)], 2, start_method="fork")
    # torch's handler of SIGCHLD may also raise its own error between two batches.
    with pytest.raises((DatasetError, RuntimeError), match=r"a loader process died|DataLoader worker"):
        kept.extend((images, arrays(EQUAL, step)) for step, images, _ in batches)
    del batches
    gc.collect()
    assert all(is_same(*pair) for pair in kept)


def test_blocks__leave_no_file_open() -> None:
    blocks = Blocks(4)
    assert blocks._file is not None
    images = [pack(blocks, arrays(EQUAL, seed)) for seed in range(5)]
    file, inode = blocks._file, os.fstat(blocks._file).st_ino
    del blocks, images
    gc.collect()
    with suppress(OSError):  # it is closed, or another file has got its number
        assert os.fstat(file).st_ino != inode


def test_blocks__take_only_what_is_written() -> None:
    blocks = Blocks(8, prefetch_factor=8)
    assert blocks._file is not None
    images = pack(blocks, arrays([(100, 100, 3)] * 10, 0), count=10)
    assert os.fstat(blocks._file).st_blocks * 512 <= 300_000 + 2 * 4096
    assert len(images) == 10
