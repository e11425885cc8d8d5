"""Ways of reading the same images in shuffled batches, for `loader.py`.

A batch is, for all alike, one tensor uint8 [B, 256, 256, 3] when images are decoded, and B payloads when they are only
read. Every peer shuffles, and hands out a name or number with each image. Each imports its own library when it runs.
"""

from __future__ import annotations

import importlib.util
import io
import mmap
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

Pixels = npt.NDArray[np.uint8]

SHARDS = 16
SHUFFLE_BUFFER = 1000
"""Samples in webdataset's buffer, as its documentation has it."""


@dataclass(frozen=True)
class Task:
    """What a peer is to read: the images in the folder, decoded or not, in `workers` processes."""

    folder: str
    decode: bool
    workers: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Peer:
    """`prepare` writes its files from payloads; `batches` makes a loader and yields what it yields, one epoch."""

    title: str
    module: str
    package: str
    prepare: Callable[[Path, Sequence[bytes]], None]
    batches: Callable[[Task], Iterator[Sized]]
    has_own_decoder: bool = False
    """It decodes as its users do, and differs from its twin with simplejpeg only there."""

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def simplejpeg_rgb(payload: bytes) -> Pixels:
    """JPEG → uint8 [H, W, 3], RGB; nothing is checked."""
    return np.asarray(simplejpeg.decode_jpeg(payload, "RGB"), np.uint8)


def pillow(payload: bytes) -> Pixels:
    """The same with Pillow."""
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))


def one_thread(_worker: int = 0) -> None:
    torch.set_num_threads(1)


def _torch_options(task: Task) -> dict[str, Any]:
    return {"num_workers": task.workers, "worker_init_fn": one_thread if task.workers else None}


def _batch_options(task: Task) -> dict[str, Any]:
    """Where the loader forms the batches."""
    collate = default_collate if task.decode else _transposed
    return {"batch_size": task.batch_size, "drop_last": True, "collate_fn": collate, **_torch_options(task)}


# dinowds: shards and an index


def write_cohort(folder: Path, payloads: Sequence[bytes]) -> None:
    """One tar with all images, and the reference system's table of them: int64 [N, 4] class, name, start, end."""
    tar_path, entries = folder / "cohort.tar", []
    if tar_path.exists():
        return
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, payload in enumerate(payloads):
            member = tarfile.TarInfo(f"slide{index // 500:03d}/{index % 500 * 256}_{index // 25 * 256}.jpg")
            member.size = len(payload)
            start = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(payload))
            entries.append((0, index, start, start + len(payload)))
    np.save(folder / "entries.npy", np.array(entries, dtype=np.uint64))


def write_shards(folder: Path, payloads: Sequence[bytes]) -> None:
    from dinowds.shard.build import ShardOptions, build_dataset

    write_cohort(folder, payloads)
    if not (folder / "shards").exists():
        options = ShardOptions(name="patches", max_count=-(-len(payloads) // SHARDS))
        build_dataset([folder / "cohort.tar"], folder / "shards", options)


def dinowds_batches(task: Task, start_method: Literal["forkserver", "fork"] = "forkserver") -> Iterator[Sized]:
    from dinowds.data import Dataset, Loader, Order

    loader = Loader(
        Dataset.open(Path(task.folder) / "shards"),
        Order(task.batch_size, task.seed),
        epochs=1,
        num_workers=task.workers,
        decode=task.decode,
        start_method=start_method,
    )
    for batch in loader:
        yield batch.images if task.decode else batch.payloads


def dinowds_forked(task: Task) -> Iterator[Sized]:
    """As all others start their processes: at once, with what is imported already."""
    return dinowds_batches(task, "fork")


# webdataset: the same shards, a shuffle buffer


def _webdataset_batches(task: Task, tuned: bool) -> Iterator[Sized]:
    import webdataset as wds

    urls = sorted(str(path) for path in Path(task.folder, "shards", "shards").glob("*.tar"))
    stream = wds.WebDataset(urls, shardshuffle=len(urls), seed=task.seed).shuffle(SHUFFLE_BUFFER)
    collate: dict[str, Any] = {}
    if not task.decode:
        collate = {"collation_fn": _transposed}
    elif tuned:
        stream = stream.map_dict(jpg=simplejpeg_rgb)
        if task.workers:  # stacks in shared memory; alone, webdataset's own way is faster
            collate = {"collation_fn": default_collate}
    else:
        stream = stream.decode("rgb8")
    stream = stream.to_tuple("__key__", "jpg").batched(task.batch_size, partial=False, **collate)
    for _keys, images in wds.WebLoader(stream, batch_size=None, **_torch_options(task)):
        yield images


def _transposed(samples: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*samples, strict=True)]


def webdataset_usual(task: Task) -> Iterator[Sized]:
    return _webdataset_batches(task, tuned=False)


def webdataset_simplejpeg(task: Task) -> Iterator[Sized]:
    return _webdataset_batches(task, tuned=True)


# A map-style dataset over one memory-mapped tar, and torch's sampler


class TarMap(TorchDataset[tuple[Any, int]]):
    """Images of a cohort tar by number: (image or payload, class)."""

    def __init__(self, folder: Path, decode: Callable[[bytes], Any] | None) -> None:
        self._entries = np.load(folder / "entries.npy", mmap_mode="r", allow_pickle=False)
        with open(folder / "cohort.tar", "rb") as file:
            self._tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._decode = decode

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label, _, start, end = self._entries[index].tolist()
        payload = self._tar[start:end]
        return (self._decode(payload) if self._decode else payload), label


def _map_batches(task: Task, decode: Callable[[bytes], Any]) -> Iterator[Sized]:
    dataset = TarMap(Path(task.folder), decode if task.decode else None)
    generator = torch.Generator().manual_seed(task.seed)
    for images, _labels in DataLoader(dataset, shuffle=True, generator=generator, **_batch_options(task)):
        yield images


def map_usual(task: Task) -> Iterator[Sized]:
    return _map_batches(task, pillow)


def map_simplejpeg(task: Task) -> Iterator[Sized]:
    return _map_batches(task, simplejpeg_rgb)


# MosaicML streaming: its own shards


def write_mds(folder: Path, payloads: Sequence[bytes]) -> None:
    from streaming import MDSWriter

    limit = -(-sum(map(len, payloads)) // SHARDS)
    if (folder / "mds").exists():
        return
    with MDSWriter(out=str(folder / "mds"), columns={"key": "str", "image": "bytes"}, size_limit=limit) as writer:
        for index in np.random.default_rng(0).permutation(len(payloads)).tolist():
            writer.write({"key": f"{index:08d}", "image": payloads[index]})


def _streaming_batches(task: Task, decode: Callable[[bytes], Any]) -> Iterator[Sized]:
    import streaming

    class Images(streaming.StreamingDataset):
        def __getitem__(self, index: int) -> tuple[str, Any]:
            sample = super().__getitem__(index)
            return sample["key"], decode(sample["image"]) if task.decode else sample["image"]

    streaming.base.util.clean_stale_shared_memory()
    dataset = Images(
        local=str(Path(task.folder, "mds")), shuffle=True, shuffle_seed=task.seed, batch_size=task.batch_size
    )
    for _keys, images in streaming.StreamingDataLoader(dataset, **_batch_options(task)):
        yield images


def streaming_usual(task: Task) -> Iterator[Sized]:
    return _streaming_batches(task, pillow)


def streaming_simplejpeg(task: Task) -> Iterator[Sized]:
    return _streaming_batches(task, simplejpeg_rgb)


PEERS = {
    "dinowds": Peer("dinowds", "dinowds.data", "dinowds", write_shards, dinowds_batches),
    "dinowds-fork": Peer("dinowds, forked", "dinowds.data", "dinowds", write_shards, dinowds_forked),
    "webdataset": Peer(
        "webdataset, Pillow", "webdataset", "webdataset", write_shards, webdataset_usual, has_own_decoder=True
    ),
    "webdataset-simplejpeg": Peer(
        "webdataset, simplejpeg", "webdataset", "webdataset", write_shards, webdataset_simplejpeg
    ),
    "map": Peer("mmap + DataLoader, Pillow", "torch", "torch", write_cohort, map_usual, has_own_decoder=True),
    "map-simplejpeg": Peer("mmap + DataLoader, simplejpeg", "torch", "torch", write_cohort, map_simplejpeg),
    "streaming": Peer(
        "streaming, Pillow", "streaming", "mosaicml-streaming", write_mds, streaming_usual, has_own_decoder=True
    ),
    "streaming-simplejpeg": Peer(
        "streaming, simplejpeg", "streaming", "mosaicml-streaming", write_mds, streaming_simplejpeg
    ),
}
