"""Where samples come from: what is asked for ahead, what stands in for damaged ones, and the cache that is needed."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset, Sample
from dinowds.data.loader import Loader
from dinowds.data.manifest import Manifest
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.source import PlanSource, check_cache
from dinowds.data.store.store import Run, Store
from dinowds.errors import ConfigError
from dinowds.world import World
from tests.index_only import write_index

ORDER = Order(batch_size=12, seed=3, chunk_size=4, window_chunks=3, partitions=4)
WEIGHTED = dataclasses.replace(ORDER, weights={"alpha": 1.0, "beta": 3.0})


class Recorder:
    """A store that notes in which order it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[str, list[Run]]] = []

    def expect(self, runs: Iterable[Run]) -> None:
        self.calls.append(("expect", list(runs)))
        self._store.expect(self.calls[-1][1])

    def read(self, sample: Sample, run: Run | None = None) -> bytes:
        assert run is not None
        self.calls.append(("read", [run]))
        return self._store.read(sample, run)

    @property
    def bytes_read(self) -> int:
        return self._store.bytes_read

    def close(self) -> None:
        self._store.close()


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 5])
def test_expect__first_batch_alone_then_so_many_ahead(dataset: Dataset, read_ahead: int) -> None:
    steps = 9
    source = PlanSource(dataset, make_plan(dataset, ORDER), World(), 2, 2 + steps, read_ahead=read_ahead)
    source.store = recorder = Recorder(source.store)
    assert len(list(source)) == steps * 12
    runs = {kind: [calls[1] for calls in recorder.calls if calls[0] == kind] for kind in ("expect", "read")}
    read = [run for (run,) in runs["read"]]
    assert runs["expect"] == [list(dict.fromkeys(read[12 * step : 12 * step + 12])) for step in range(steps)]
    order = [(kind, len(list(calls))) for kind, calls in groupby(recorder.calls, key=lambda call: call[0])]
    assert order[:2] == [("expect", 1), ("read", 12)]
    expected = reads = 0
    for kind, count in order:
        if kind == "expect":
            expected += count
        else:
            assert expected == min(steps, 1 if reads == 0 else reads // 12 + 1 + read_ahead)
            reads += count


@pytest.fixture
def damaged(dataset_path: Path, tmp_path: Path) -> tuple[Dataset, int]:
    """A copy of the dataset in which a payload of the cohort beta is overwritten, and that sample's id."""
    dataset = Dataset.open(shutil.copytree(dataset_path, tmp_path / "damaged"))
    victim = dataset.columns(["cohort"])["cohort"].to_pylist().index("beta")
    row = dataset[victim]
    with open(dataset.shard_url(row.shard), "r+b") as shard:
        shard.seek(row.offset + row.size // 2)
        shard.write(bytes(32))
    return dataset, victim


@pytest.mark.parametrize("decode", [True, False])
def test_damaged_sample__of_a_weighted_run_is_replaced_by_one_of_its_cohort(
    damaged: tuple[Dataset, int], decode: bool
) -> None:
    dataset, victim = damaged
    table = dataset.columns(["key", "cohort"])
    cohorts = dict(zip(*(table[name].to_pylist() for name in ("key", "cohort")), strict=True))
    plan = make_plan(dataset, WEIGHTED)
    epochs, stand_ins = [], []
    for batch in Loader(dataset, WEIGHTED, epochs=4, decode=decode):
        planned = plan.ids(batch.step)
        places = np.flatnonzero(planned == victim).tolist()
        assert batch.keys == [dataset[sample].key for sample in batch.ids.tolist()]
        assert np.flatnonzero(batch.ids.numpy() != planned).tolist() == places
        found = [bad.replaced_by for bad in batch.bad if bad.replaced_by != dataset[victim].key]
        assert found == [batch.keys[place] for place in places]
        epochs += [batch.step // plan.steps_per_epoch] * len(places)
        stand_ins += found
        for bad in batch.bad:
            assert (bad.epoch, bad.key) == (batch.step // plan.steps_per_epoch, dataset[victim].key)
            assert "digest" in bad.reason
    assert len(epochs) == len(stand_ins) >= 6  # drawn twice an epoch: the visit is not the epoch
    assert set(epochs) == {0, 1, 2, 3}
    assert {cohorts[key] for key in stand_ins} == {"beta"}
    assert len(set(stand_ins)) > 1  # another one each time


def test_damaged_sample__is_passed_on_by_loader_processes(damaged: tuple[Dataset, int]) -> None:
    dataset, _ = damaged
    alone, in_process = (
        [bad for batch in Loader(dataset, WEIGHTED, epochs=2, num_workers=workers) for bad in batch.bad]
        for workers in (0, 1)
    )
    assert alone == in_process
    assert len(alone) >= 3


PATCH_BYTES = 16_384
GIB = 2**30


def described(folder: Path, num_samples: int, remote: bool) -> Dataset:
    """A dataset of which only the index is there, half of it of each of two cohorts, of shards local or remote."""
    halves = [(name, f"{name}{i}", num_samples // 200) for name in "ab" for i in range(100)]
    dataset = Dataset.open(write_index(folder, halves, num_samples // 10))
    manifest = dataset.manifest
    shards = tuple(
        dataclasses.replace(
            shard,
            url=f"s3://bucket/{shard.url}" if remote else shard.url,
            num_bytes=shard.num_samples * PATCH_BYTES,
        )
        for shard in manifest.shards
    )
    changed: Manifest = dataclasses.replace(manifest, shards=shards)
    return Dataset(dataset.url, changed)


def needed_bytes(dataset: Dataset, order: Order, hosts: int) -> float:
    """From the refusal of a cache of a byte."""
    with pytest.raises(ConfigError) as caught:
        check_cache(dataset, make_plan(dataset, order), hosts, 1)
    found = re.fullmatch(
        r"data\.cache_gib is [\d.e-]+, but the chunks that are open at once take ([\d.e-]+) GiB on "
        rf"(?:this host|each of {hosts} hosts); raise it to ([\d.]+) or more, or lower data\.window_chunks",
        str(caught.value),
    )
    assert found, str(caught.value)
    offered = float(found[2])
    check_cache(dataset, make_plan(dataset, order), hosts, int(offered * GIB))
    assert offered >= float(found[1])
    return float(found[1]) * GIB


def test_cache__holds_the_open_windows(tmp_path: Path) -> None:
    dataset = described(tmp_path / "d", 40_000, remote=True)
    order = Order(24, 0, 8, window_chunks=250, partitions=2)  # 20,000 samples of each: 10 windows of 2,000
    whole = 2 * 2000 * PATCH_BYTES
    for hosts, share in ((1, 1), (2, 0.5), (3, 1), (4, 0.5), (6, 0.5)):
        assert needed_bytes(dataset, order, hosts) == pytest.approx(share * whole, rel=0.01)
    plan = make_plan(dataset, order)
    check_cache(dataset, plan, 2, int(0.502 * whole))
    with pytest.raises(ConfigError, match=r"data\.cache_gib is 0\.0306, but .* 0\.061 GiB on each of 3 hosts; raise"):
        check_cache(dataset, plan, 3, int(0.502 * whole))  # the one in the middle reads both partitions


def test_cache__of_a_capped_run_holds_a_block_too(tmp_path: Path) -> None:
    dataset = described(tmp_path / "d", 40_000, remote=True)
    order = Order(24, 0, 8, window_chunks=250, partitions=2, max_per_slide=5)
    most = (4000 + 127 * 24) * PATCH_BYTES
    assert needed_bytes(dataset, order, 1) == pytest.approx(most, rel=0.01)
    assert needed_bytes(dataset, order, 2) == pytest.approx(most / 2, rel=0.01)


def test_cache__never_needs_more_than_everything(tmp_path: Path) -> None:
    dataset = described(tmp_path / "d", 2000, remote=True)
    for cap in (None, 5):
        order = Order(20, 0, 8, max_per_slide=cap)
        assert needed_bytes(dataset, order, 1) == pytest.approx(2000 * PATCH_BYTES, rel=0.01)


def test_cache__of_weighted_cohorts(tmp_path: Path) -> None:
    dataset = described(tmp_path / "d", 40_000, remote=True)
    order = Order(24, 0, 8, window_chunks=200, partitions=8, weights={"b": 3, "a": 1})
    # 20,000 samples of each: of a, 6 windows of 3,333 over all partitions; of b, 2 of 10,000.
    most = (20_000 / 6 + 20_000 / 2) * PATCH_BYTES
    assert needed_bytes(dataset, order, 1) == pytest.approx(most, rel=0.01)
    assert needed_bytes(dataset, order, 4) == pytest.approx(most * 3 / 8, rel=0.01)  # a batch's edges are not exact
    only_a = dataclasses.replace(order, weights={"a": 1, "b": 0})
    assert needed_bytes(dataset, only_a, 1) == pytest.approx(20_000 / 2 * PATCH_BYTES, rel=0.01)
    small = dataclasses.replace(order, window_chunks=3000)  # one window each, which every host draws from
    assert needed_bytes(dataset, small, 4) == pytest.approx(40_000 * PATCH_BYTES, rel=0.01)


def test_cache__is_not_used_for_local_shards(tmp_path: Path) -> None:
    dataset = described(tmp_path / "d", 2000, remote=False)
    check_cache(dataset, make_plan(dataset, Order(20)), 1, 0)
