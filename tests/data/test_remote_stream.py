"""A dataset behind HTTP: the same batches, each byte once per host, nothing but what a resumed run needs."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinowds.data.dataset import Dataset
from dinowds.data.loader import Loader, Samples
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.source import PlanSource
from dinowds.data.store.cache import CacheOptions
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.world import World
from tests.servers import HttpServer, http_server

NUM, SIDE = 640, 80  # a BMP of 80 px has 19,254 bytes, as a patch of 256 px in JPEG: payloads of equal size
ORDER = Order(batch_size=16, seed=1, chunk_size=8, window_chunks=6, partitions=2)
WHOLE_CHUNKS = Order(batch_size=16, seed=1, chunk_size=8, window_chunks=40, partitions=2)
"""No chunk lies across the edge of a window."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    random = np.random.default_rng(0)
    with tarfile.open(folder / "cohort.tar", "w") as tar:
        for i in range(NUM):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(content, "BMP")
            member = tarfile.TarInfo(f"slide{i // 40}/{i}_0.bmp")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    build_dataset([folder / "cohort.tar"], folder / "dataset", ShardOptions(max_count=80))
    return folder / "dataset"


@pytest.fixture
def server(folder: Path) -> Iterator[HttpServer]:
    with http_server(folder) as state:
        yield state


def open_as_host(server: HttpServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Open the dataset as a host does that has nothing yet."""
    monkeypatch.setenv("DINOWDS_CACHE", str(cache))
    return Dataset.open(server.url)


def keys_of(batches: Iterator[Samples], count: int | None = None) -> list[list[str]]:
    return [batch.keys for batch in itertools.islice(batches, count)]


def test_stream__same_batches_from_a_folder_and_from_a_faulty_server(folder: Path, tmp_path: Path) -> None:
    local = Loader(Dataset.open(folder), ORDER, epochs=1)
    with http_server(folder, faults=("500", "cut", "close", "short")) as server:
        dataset = Dataset.open(server.url)
        remote = Loader(dataset, ORDER, epochs=1, cache=CacheOptions(tmp_path / "cache"))
        for one, other in zip(local, remote, strict=True):
            assert one.keys == other.keys
            assert isinstance(one.images, torch.Tensor)
            assert isinstance(other.images, torch.Tensor)
            assert torch.equal(one.images, other.images)
            assert not other.bad
    assert server.faults_made > 10


def test_epoch__fetches_each_byte_once(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_as_host(server, tmp_path, monkeypatch)
    assert len(keys_of(iter(Loader(dataset, ORDER, epochs=1)))) == NUM // 16
    payload = sum(sample.size for sample in dataset)
    assert payload * (1 - 16 / NUM) < server.bytes_sent <= 1.05 * payload


def test_epoch__two_hosts_fetch_only_their_parts(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [0]
    keys: list[str] = []
    for rank in range(2):
        dataset = open_as_host(server, tmp_path / str(rank), monkeypatch)
        for part in keys_of(iter(Loader(dataset, ORDER, world=World(rank, 2), epochs=1))):
            keys += part
        sent.append(server.bytes_sent)
    assert len(set(keys)) == NUM
    payload = sum(sample.size for sample in dataset)
    assert sent[-1] <= 1.05 * payload
    assert abs(np.diff(sent) / payload - 0.5).max() < 0.05


def test_epoch__sparse_subset_fetches_only_its_samples(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_as_host(server, tmp_path, monkeypatch)
    before = server.bytes_sent
    order = Order(batch_size=16, chunk_size=8, weights={"cohort": 1})
    chosen = np.random.default_rng(0).random(NUM) < 0.3
    mask = np.packbits(chosen, bitorder="little")
    monkeypatch.setattr(Dataset, "cohort_masks", lambda _: {"cohort": mask})
    loader = Loader(dataset, order, epochs=1)
    found = {key for keys in keys_of(iter(loader)) for key in keys}
    ids = np.flatnonzero(chosen)
    assert found <= {dataset[int(sample)].key for sample in ids}
    assert len(found) == len(ids) // 16 * 16
    assert server.bytes_sent - before <= 1.05 * sum(dataset[int(sample)].size for sample in ids)


@pytest.mark.parametrize("remote", [False, True])
def test_resume__reads_as_much_before_its_first_batch_as_a_cold_start(
    folder: Path, server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    counted = []
    for start in (0, NUM // 16 * 9 // 10):
        cache = tmp_path / str(start)
        dataset = open_as_host(server, cache, monkeypatch) if remote else Dataset.open(folder)
        source = PlanSource(dataset, make_plan(dataset, WHOLE_CHUNKS), World(), start)
        raws = iter(source)
        assert len({next(raws)["__key__"] for _ in range(16)}) == 16
        counted.append(source.store.bytes_read)
        source.store.close()
    if remote:  # whole chunks, all of 8 samples; of some, a batch has two
        chunks_of = [_chunks_of_batch(folder, step) for step in (0, NUM // 16 * 9 // 10)]
        assert counted[0] * chunks_of[1] == counted[1] * chunks_of[0]
    else:
        assert counted[0] == counted[1] == 16 * 19_254


def _chunks_of_batch(folder: Path, step: int) -> int:
    dataset = Dataset.open(folder)
    return len(set(make_plan(dataset, WHOLE_CHUNKS).draws([step]).chunk_first.ravel().tolist()))
