"""One rank's shards: decoded in loader processes, embedded by the device, written by a thread, all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.embed.encoder import Pending
from dinowds.embed.patches.folder import part_path, whole_part
from dinowds.embed.patches.job import Job
from dinowds.embed.patches.parts import Part, PartWriter
from dinowds.embed.patches.reader import FEATURE, TOKENS
from dinowds.embed.patches.stream import Block, load_blocks, shard_ids
from dinowds.errors import ConfigError, DatasetError
from dinowds.remote.files import shown
from dinowds.train.devices import choose_num_workers

_ROW_COLUMNS = ("key", "slide", "x", "y", "label", "cohort", "width", "height")
_FLOAT16_MAX = 65504.0

Report = Callable[[int, int], None]
"""(images done, images in all), of this rank."""
BadSamples = list[dict[str, str]]
"""Lines of bad_samples.jsonl: `url`, `key`, `reason`."""


def embed_shards(job: Job, out: Path, report: Report, check_stop: Callable[[], None]) -> tuple[int, float]:
    """Write the files of this rank's shards that are not there yet.

    Args:
        check_stop: called before each block; raises where the run is to stop.

    Returns:
        Images that were embedded, and how many a second (0 where there were none).

    Raises:
        DinowdsError: in one line; files that are whole stay.
    """
    todo, num_done = _left_to_do(job, out)
    num_todo = sum(job.counts[shard] for shard in todo)
    if not todo:
        return 0, 0.0
    began, embedded = time.perf_counter(), 0
    report(num_done, num_done + num_todo)
    with closing(_Files(job, out)) as files, ThreadPoolExecutor(1) as thread:
        written: Future[None] | None = None
        for embedded_block in _embedded(job, todo, check_stop):
            if written is not None:
                written.result()
            written = thread.submit(files.add, embedded_block)
            embedded += len(embedded_block.block.places)
            report(num_done + embedded, num_done + num_todo)
        if written is not None:
            written.result()
    return embedded, embedded / (time.perf_counter() - began)


def check_budget(bad: BadSamples, max_bad: int) -> None:
    """DatasetError where more samples than `max_bad` could not be read."""
    if len(bad) > max_bad:
        last = bad[max_bad]
        raise DatasetError(
            f"{last['url']}: {last['key']}: {last['reason']}; {len(bad)} samples could not be read, --max-bad is "
            f"{max_bad}: check the dataset with 'dinowds inspect --verify', or raise it"
        )


def _left_to_do(job: Job, out: Path) -> tuple[list[int], int]:
    """This rank's shards without a whole file, and the rows of its other ones."""
    mine = range(job.world.rank, len(job.counts), job.world.size)
    todo = [shard for shard in mine if whole_part(out, shard, job.counts[shard], job.digest) is None]
    return todo, sum(job.counts[shard] for shard in mine) - sum(job.counts[shard] for shard in todo)


class _Embedded(NamedTuple):
    block: Block
    rows: Any
    """Arrow table of `_ROW_COLUMNS`, [n]."""
    tokens: NDArray[np.float32]
    """[n, 1 + T, D], the class token first; NaN for bad samples."""


class _Started(NamedTuple):
    """A block that the device is at."""

    block: Block
    rows: Any
    groups: list[tuple[list[int], Pending]]
    """Images of one size: their rows in the block, and what comes of them."""


def _embedded(job: Job, shards: list[int], check_stop: Callable[[], None]) -> Iterator[_Embedded]:
    """Blocks with their tokens, each handed over when the device has the next one."""
    options, device = job.options, job.encoder.device
    num_workers = choose_num_workers(options.workers, job.world, device)
    is_gpu = device.type == "cuda"
    with closing(
        load_blocks(job.dataset, shards, options.batch_size, options.image_size, num_workers, is_gpu)
    ) as blocks:
        before: _Started | None = None
        for started in _started(job, blocks, check_stop):
            if before is not None:
                yield _finished(job, before)
            before = started
        if before is not None:
            yield _finished(job, before)


def _started(job: Job, blocks: Iterator[Block], check_stop: Callable[[], None]) -> Iterator[_Started]:
    of_shard: Any = None
    for block in blocks:
        check_stop()
        if block.places.start == 0:
            of_shard = _rows(job, block.shard)
        rows = of_shard.slice(block.places.start, len(block.places))
        good = [row for row, place in enumerate(block.places) if place not in block.bad]
        groups = []
        for members, images in _by_size(block.images):
            members = [good[member] for member in members]
            _check_size(job, block, rows, members[0], images)
            groups.append((members, job.encoder.start(images, with_patches=job.num_tokens > 0)))
        yield _Started(block, rows, groups)


def _rows(job: Job, shard: int) -> Any:
    rows = job.dataset.index.groups.read(shard, _ROW_COLUMNS)
    if job.dataset.subset is not None:
        rows = rows.take(pa.array(shard_ids(job.dataset, shard) - job.dataset.first_ids[shard]))
    return rows


def _by_size(images: Tensor | list[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Images of one size as uint8 [n, H, W, 3], and which they are."""
    if isinstance(images, Tensor):
        yield list(range(len(images))), images
        return
    groups: dict[torch.Size, list[int]] = {}
    for member, image in enumerate(images):
        groups.setdefault(image.shape, []).append(member)
    for members in groups.values():
        yield members, torch.stack([images[member] for member in members])


def _check_size(job: Job, block: Block, rows: Any, row: int, images: Tensor) -> None:
    """What the index says was checked before all; an index that is wrong must not reach the model."""
    expected = (rows["height"][row].as_py(), rows["width"][row].as_py())
    found = tuple(images.shape[1:3])
    if job.options.image_size is None and found != expected:
        raise DatasetError(
            f"{shown(job.dataset.shard_url(block.shard))}: {rows['key'][row]}: image of {found[1]}×{found[0]} px, the "
            f"index says {expected[1]}×{expected[0]}; make the dataset again"
        )


def _finished(job: Job, started: _Started) -> _Embedded:
    tokens = np.full((len(started.rows), 1 + job.num_tokens, job.encoder.dim), np.nan, np.float32)
    for members, pending in started.groups:
        tokens[members] = pending.get().numpy()
    return _Embedded(started.block, started.rows, tokens)


class _Files:
    """Writes blocks as they come, shard after shard."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job, self._out = job, out
        self._bad: BadSamples = []
        self._num_bad_before = 0
        self._writer: PartWriter | None = None

    def add(self, embedded: _Embedded) -> None:
        block, rows, tokens = embedded
        job, count = self._job, self._job.counts[block.shard]
        if self._writer is None:
            self._writer = PartWriter(part_path(self._out, block.shard), job.schema)
            self._num_bad_before = len(self._bad)
        self._note(block, rows)
        good = np.array([place not in block.bad for place in block.places], bool)
        values = as_dtype(tokens, good, rows["key"], job.options.dtype)
        vectors = {FEATURE: values[:, 0], TOKENS: values[:, 1:].reshape(len(rows), job.num_tokens * job.encoder.dim)}
        self._writer.add(rows, vectors)
        if block.places.stop == count:
            self._writer.finish(Part(job.digest, block.shard, self._bad[self._num_bad_before :], count))
            self._writer = None

    def close(self) -> None:
        """Leave nothing of a file that is not whole."""
        if self._writer is not None:
            self._writer.abandon()

    def _note(self, block: Block, rows: Any) -> None:
        url = shown(self._job.dataset.manifest.shards[block.shard].url)
        for place, reason in sorted(block.bad.items()):
            key = rows["key"][place - block.places.start].as_py()
            self._bad.append({"url": url, "key": key, "reason": reason})
        check_budget(self._bad, self._job.options.max_bad)


def as_dtype(tokens: NDArray[np.float32], good: NDArray[np.bool_], keys: Any, dtype: str) -> NDArray[Any]:
    """[n, 1 + T, D] in the type that is written.

    Args:
        good: bool [n]; the others are NaN.
        keys: [n], to name one.

    Raises:
        ConfigError: a value is not finite, or float16 cannot hold it.
    """
    largest = np.abs(tokens).max(axis=(1, 2), initial=0.0)
    limit = _FLOAT16_MAX if dtype == "float16" else np.finfo(np.float32).max
    if wrong := np.flatnonzero(good & ~(largest <= limit)).tolist():
        key, value = keys[wrong[0]], largest[wrong[0]]
        if np.isfinite(value):
            raise ConfigError(
                f"{key}: its feature has the value {value:.6g}, float16 holds at most 65504; give --dtype float32"
            )
        raise ConfigError(f"{key}: its feature has the value {value}; check the weights, or give --precision fp32")
    return tokens.astype(dtype)
