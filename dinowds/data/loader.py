"""The training stream: a webdataset pipeline whose source follows the plan, and the processes that run it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.plan import Chunks, EpochPlan, Order, steps_per_epoch
from dinowds.data.store import LocalStore
from dinowds.errors import DatasetError, DinowdsError, SampleError
from dinowds.processes import end_with_parent, shielded_from_signals
from dinowds.world import World

_MAX_SUBSTITUTES = 100
_SECONDS_AFTER_SIGTERM = 20.0  # for the main process to finish and save its step

RawSample = dict[str, Any]
"""webdataset's sample dict (`__key__`, `__url__`, payload under its extension, `cls`), and of ours: `__sample__` (id in
the plan), `__epoch__`, `__step__` (counted over all epochs), `__ext__`, `__bad__` (what this sample stands in for)."""


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read or decoded and was replaced."""

    epoch: int
    key: str
    url: str
    reason: str
    replaced_by: str


class PlanSource(IterableDataset[RawSample]):
    """First stage of the stream: this rank's samples of the global batches start_step … end_step − 1, in order.

    With several loader processes, process k of K yields the whole batches start_step + k, start_step + k + K, …: the
    order in which DataLoader takes them. The state of the stream is the step alone: nothing before it is touched.
    """

    def __init__(
        self, dataset: Dataset, order: Order, world: World, start_step: int, end_step: int, verify_digests: bool = True
    ) -> None:
        super().__init__()
        if order.batch_size % world.size:
            raise DatasetError(f"a batch of {order.batch_size} cannot be shared equally among {world.size} ranks")
        self.dataset, self.order, self.world = dataset, order, world
        self.start_step, self.end_step = start_step, end_step
        self.steps_per_epoch = steps_per_epoch(len(dataset), order.batch_size)
        self._chunks = Chunks(dataset.shard_counts, order.chunk_size)
        self._store = LocalStore(dataset, verify_digests)
        self._plan: EpochPlan | None = None

    @property
    def rank_batch(self) -> int:
        """Samples of a global batch that belong to this rank."""
        return self.order.batch_size // self.world.size

    def plan(self, epoch: int) -> EpochPlan:
        if self._plan is None or self._plan.epoch != epoch:
            self._plan = EpochPlan(self._chunks, self.order, epoch)
        return self._plan

    def __iter__(self) -> Iterator[RawSample]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        start = self.world.rank * self.rank_batch
        for step in range(self.start_step + first, self.end_step, stride):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            for sample in self.plan(epoch).batch(step_of_epoch, start, start + self.rank_batch):
                yield self.read(int(sample), epoch, step)

    def read(self, sample: int, epoch: int, step: int) -> RawSample:
        """One raw sample; one that cannot be read is replaced."""
        place: RawSample = {"__sample__": sample, "__epoch__": epoch, "__step__": step, "__bad__": []}
        return self._fill(place, sample)

    def replace(self, raw: RawSample, reason: str) -> RawSample:
        """The sample that the plan puts in the place of `raw`, which is reported in its `__bad__`.

        Raises:
            DatasetError: one substitute after another is bad too.
        """
        bad: list[BadSample] = raw["__bad__"]
        if len(bad) >= _MAX_SUBSTITUTES:
            raise DatasetError(f"{raw['__url__']}: {raw['__key__']}: {len(bad)} substitutes were bad too; {reason}")
        substitute = self.plan(raw["__epoch__"]).substitute(raw["__sample__"], attempt=len(bad))
        row = self.dataset[substitute]
        report = BadSample(raw["__epoch__"], raw["__key__"], raw["__url__"], reason, row.key)
        place = {name: raw[name] for name in ("__sample__", "__epoch__", "__step__")}
        return self._fill({**place, "__bad__": [*bad, report]}, substitute)

    def _fill(self, place: RawSample, sample: int) -> RawSample:
        row = self.dataset[sample]
        raw = {"__key__": row.key, "__url__": self.dataset.manifest.shards[row.shard].url, "__ext__": row.ext, **place}
        try:
            raw[row.ext] = self._store.read(row)
        except SampleError as error:
            return self.replace(raw, str(error))
        if row.label is not None:
            raw["cls"] = row.label
        return raw


class Decode:
    """Stage: adds `image`, uint8 [H, W, 3], and drops the encoded bytes. Undecodable samples are replaced."""

    def __init__(self, source: PlanSource) -> None:
        self._source = source

    def __call__(self, stream: Iterable[RawSample]) -> Iterator[RawSample]:
        for raw in stream:
            yield self._decoded(raw)

    def _decoded(self, raw: RawSample) -> RawSample:
        while True:
            try:
                image = decode_image(raw[raw["__ext__"]])
            except SampleError as error:
                raw = self._source.replace(raw, str(error))
            else:
                del raw[raw["__ext__"]]
                return {**raw, "image": image}


def stream(source: PlanSource, *stages: Callable[[Iterable[Any]], Iterator[Any]]) -> wds.DataPipeline:
    """The pipeline of decoded samples, followed by any webdataset stages.

    A stage that forms batches must form them of `source.rank_batch` samples: then one item is one step of this rank.
    """
    return wds.DataPipeline(source, Decode(source), *stages)


def load(
    pipeline: wds.DataPipeline, num_workers: int, prefetch_factor: int = 2, pin_memory: bool = False
) -> Generator[Any, None, None]:
    """Items of a pipeline of batches, made in `num_workers` processes (0: in this one), in the order of steps.

    Raises:
        DinowdsError: as raised in a loader process, message unchanged.
        DatasetError: a loader process died.
    """
    options: dict[str, Any] = {"batch_size": None, "pin_memory": pin_memory}
    if num_workers > 0:
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dinowds.data.loader"])
        options |= {
            "num_workers": num_workers,
            "prefetch_factor": prefetch_factor,
            "worker_init_fn": _init_worker,
            "multiprocessing_context": context,
        }
    with shielded_from_signals():
        items = iter(DataLoader(wds.DataPipeline(pipeline, _hand_over_errors), **options))
    try:
        for item in items:
            if isinstance(item, DinowdsError):
                raise item
            yield item
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "exited unexpectedly" not in reason and "is killed by signal" not in reason:
            raise
        raise DatasetError(
            f"a loader process died ({reason}); if memory ran out, lower speed.num_workers or speed.prefetch_factor, "
            "or give the job more memory and /dev/shm"
        ) from None


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
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_soon(_number: int, _frame: FrameType | None) -> None:
    timer = threading.Timer(_SECONDS_AFTER_SIGTERM, os._exit, (1,))
    timer.daemon = True
    timer.start()


def describe(bad: BadSample) -> dict[str, Any]:
    """A line of `bad_samples.jsonl`."""
    return dataclasses.asdict(bad)
