"""The source of the stream: this rank's samples in the order of the plan, with a substitute for what cannot be read."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from dinowds.data.dataset import Dataset, Sample
from dinowds.data.decode import decode_image
from dinowds.data.order.plan import Plan
from dinowds.data.order.pool import open_samples
from dinowds.data.store.cache import CacheOptions
from dinowds.data.store.runs import Runs, run_of
from dinowds.data.store.store import Run, Store, open_store
from dinowds.data.subsets.selection import Ids
from dinowds.errors import ConfigError, DatasetError, SampleError
from dinowds.remote.files import is_remote
from dinowds.world import World

READ_AHEAD = 2
"""Batches of each loader process whose chunks are asked for before they are needed."""
_PLANNED_STEPS = 8  # planned at once: numpy's calls cost more than the few numbers of one batch
_MAX_SUBSTITUTES = 100

T = TypeVar("T")
RawSample = dict[str, Any]
"""webdataset's sample dict (`__key__`, `__url__`, payload under its extension, `cls`), and of ours: `__sample__` (id
that the plan drew), `__id__` (of what is here: another one where that was replaced), `__step__` (counted over all
epochs), `__visit__` and `__group__` (see plan.Draws), `__ext__`, `__bad__` (what this sample stands in for)."""


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read or decoded and was replaced."""

    epoch: int
    key: str
    url: str
    reason: str
    replaced_by: str


class _Drawn(NamedTuple):
    sample: Sample
    visit: int
    group: int
    run: Run


def check_cache(dataset: Dataset, plan: Plan, num_hosts: int, max_bytes: int) -> None:
    """Refuse a cache into which the open chunks of a host do not fit: they would be fetched again and again.

    Args:
        num_hosts: that share each batch equally.

    Raises:
        ConfigError: a dataset with remote shards needs more than `max_bytes`.
    """
    manifest = dataset.manifest
    if not any(is_remote(dataset.shard_url(shard)) for shard in range(len(manifest.shards))):
        return
    needed = open_samples(plan, num_hosts) * manifest.num_bytes / manifest.num_samples
    if needed > max_bytes:
        where = "this host" if num_hosts == 1 else f"each of {num_hosts} hosts"
        raise ConfigError(
            f"data.cache_gib is {max_bytes / 2**30:.3g}, but the chunks that are open at once take "
            f"{needed / 2**30:.3g} GiB on {where}; raise it to "
            f"{math.ceil(needed * 1.2 / 2**30 * 100) / 100:g} or more, or lower data.window_chunks"
        )


class PlanSource(IterableDataset[RawSample]):
    """First stage of the stream: this rank's samples of the global batches start_step … end_step − 1, in order.

    With several loader processes, process k of K yields the whole batches start_step + k, start_step + k + K, …: the
    order in which DataLoader takes them. The state of the stream is the step alone: nothing before it is touched.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        world: World,
        start_step: int,
        end_step: int | None = None,
        *,
        verify_digests: bool = True,
        read_ahead: int = READ_AHEAD,
        cache: CacheOptions | None = None,
    ) -> None:
        """
        Args:
            end_step: None for a stream without end.
            read_ahead: batches of each process whose chunks are asked for ahead.

        Raises:
            ConfigError: the world's ranks cannot share a batch equally.
        """
        super().__init__()
        self.rank_batch = plan.order.rank_batch(world.size)
        """Samples of a global batch that belong to this rank."""
        self.dataset, self.plan, self.world = dataset, plan, world
        self.start_step, self.end_step = start_step, end_step
        self.store: Store = open_store(dataset, verify_digests, cache or CacheOptions())
        self._runs = Runs(dataset, plan)
        self._read_ahead = read_ahead

    def __iter__(self) -> Iterator[RawSample]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        end = 2**62 if self.end_step is None else self.end_step
        for step, batch in self._ahead(range(self.start_step + first, end, stride)):
            for drawn in batch:
                yield self._read(drawn, step)

    def _ahead(self, steps: range) -> Iterator[tuple[int, list[_Drawn]]]:
        """Steps with their samples, whose chunks are asked of the store a few steps before they are read.

        The first step is asked for alone, so that nothing delays it.
        """
        planned = self._planned(steps)
        waiting: deque[tuple[int, list[_Drawn]]] = deque()
        ahead = 0
        while True:
            for step, batch in planned:
                self.store.expect(dict.fromkeys(drawn.run for drawn in batch))
                waiting.append((step, batch))
                if len(waiting) > ahead:
                    break
            if not waiting:
                return
            yield waiting.popleft()
            ahead = self._read_ahead

    def _planned(self, steps: range) -> Iterator[tuple[int, list[_Drawn]]]:
        start = self.world.rank * self.rank_batch
        done, count = 0, 1
        while block := steps[done : done + count]:
            draws = self.plan.draws(block, start, start + self.rank_batch)
            for step, *columns in zip(block, *draws, strict=True):
                yield step, self._look_up(*columns)
            done, count = done + count, _PLANNED_STEPS

    def _look_up(self, ids: Ids, visits: Ids, groups: Ids, firsts: Ids, counts: Ids) -> list[_Drawn]:
        samples = self.dataset.samples(ids)
        runs = map(self._runs.of, samples, groups.tolist(), firsts.tolist(), counts.tolist())
        return list(map(_Drawn, samples, visits.tolist(), groups.tolist(), runs))

    def _read(self, drawn: _Drawn, step: int) -> RawSample:
        place = {"__sample__": drawn.sample.id, "__visit__": drawn.visit, "__group__": drawn.group, "__step__": step}
        return self._fill({**place, "__bad__": []}, drawn.sample, drawn.run)

    def replace(self, raw: RawSample, reason: str) -> RawSample:
        """The sample that the plan puts in the place of `raw`, which is reported in its `__bad__`.

        Raises:
            DatasetError: one substitute after another is bad too.
        """
        bad: list[BadSample] = raw["__bad__"]
        if len(bad) >= _MAX_SUBSTITUTES:
            raise DatasetError(f"{raw['__url__']}: {raw['__key__']}: {len(bad)} substitutes were bad too; {reason}")
        place = {name: raw[name] for name in ("__sample__", "__visit__", "__group__", "__step__")}
        row = self.dataset[
            self.plan.substitute(raw["__sample__"], raw["__group__"], raw["__visit__"], attempt=len(bad))
        ]
        epoch = raw["__step__"] // self.plan.steps_per_epoch
        report = BadSample(epoch, raw["__key__"], raw["__url__"], reason, row.key)
        return self._fill({**place, "__bad__": [*bad, report]}, row, run_of(row))

    def first_good(self, raw: RawSample, read: Callable[[bytes], T]) -> tuple[RawSample, T]:
        """`raw`, or the first of its substitutes whose payload `read` takes without SampleError, and what it gives.

        Raises:
            DatasetError: one substitute after another is bad too.
        """
        while True:
            try:
                return raw, read(raw[raw["__ext__"]])
            except SampleError as error:
                raw = self.replace(raw, str(error))

    def _fill(self, place: RawSample, row: Sample, run: Run) -> RawSample:
        url = self.dataset.manifest.shards[row.shard].url
        raw = {"__key__": row.key, "__id__": row.id, "__url__": url, "__ext__": row.ext, **place}
        try:
            raw[row.ext] = self.store.read(row, run)
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
            good, image = self._source.first_good(raw, decode_image)
            del good[good["__ext__"]]
            yield {**good, "image": image}


def stream(source: PlanSource, *stages: Callable[[Iterable[Any]], Iterator[Any]]) -> wds.DataPipeline:
    """The pipeline of encoded samples, followed by any webdataset stages, such as `Decode`.

    A stage that forms batches must form them of `source.rank_batch` samples: then one item is one step of this rank.
    """
    return wds.DataPipeline(source, *stages)


def describe(bad: BadSample) -> dict[str, Any]:
    """A line of `bad_samples.jsonl`."""
    return dataclasses.asdict(bad)
