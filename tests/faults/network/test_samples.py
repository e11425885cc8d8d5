"""Thousands of requests to servers with faults drawn at random: each sample is the right one, or there is an error."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dinowds.data.dataset import Dataset, Sample
from dinowds.data.store.cache import CacheOptions
from dinowds.data.store.store import LocalStore, RemoteStore, Run
from dinowds.errors import DinowdsError, StorageError
from dinowds.remote.files import RemoteFiles, RetryOptions
from tests.faults.form import amount, tally
from tests.faults.network.conftest import Served
from tests.faults.network.proxy import faulty_proxy
from tests.servers import Fault, S3Server, http_server

PASSING: tuple[Fault, ...] = ("500", "503", "429", "close", "reset", "stall", "hang", "cut", "short")
LASTING: tuple[Fault, ...] = ("403", "404", "whole", "other", "gzip", "loop", "file")
PATIENT = RetryOptions(tries=12, first_wait_s=0.001, longest_wait_s=0.005, timeout_s=0.15)
TINY_CACHE = 20_000
"""Bytes: a few chunks, so that nearly every read is a request."""


def truth(dataset: Dataset) -> dict[int, bytes]:
    store = LocalStore(dataset)
    found = {sample.id: store.read(sample) for sample in dataset}
    store.close()
    return found


def run_of(dataset: Dataset, sample: Sample, drawn: random.Random) -> Run | None:
    """A chunk of some samples with `sample` in it; None for the sample alone."""
    if drawn.random() < 0.3:
        return None
    others = [dataset[row] for row in range(max(0, sample.id - drawn.randrange(4)), sample.id + 1)]
    first = next(other for other in others if other.shard == sample.shard)
    return Run(sample.shard, first.offset, sample.offset + sample.size)


def read_many(dataset: Dataset, store: RemoteStore, right: dict[int, bytes], seed: int) -> list[DinowdsError]:
    """Read samples at random, each right or an error; the errors."""
    drawn, errors = random.Random(seed), []
    for number in range(amount(60, 3000)):
        sample = dataset[drawn.randrange(len(right))]
        try:
            payload = store.read(sample, run_of(dataset, sample, drawn))
        except DinowdsError as error:
            errors.append(error)
        else:
            assert payload == right[sample.id], (seed, number, sample)
    tally("samples read through network faults", amount(60, 3000) - len(errors))
    return errors


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("faults", "may_fail"), [(PASSING, False), ((*PASSING, *LASTING), True)])
def test_http__never_a_wrong_sample(
    served: Served, tmp_path: Path, faults: tuple[Fault, ...], may_fail: bool, verify: bool
) -> None:
    """What passes is tried again until it is right; what does not is an error, of that sample alone."""
    seed, right = 9 + verify, truth(Dataset.open(served.dataset))
    with http_server(served.dataset) as server:
        dataset = Dataset.open(server.url)
        server.faults, server.every, server.drawn = faults, 4, random.Random(seed)
        store = RemoteStore(dataset, verify, CacheOptions(tmp_path, TINY_CACHE), RemoteFiles(PATIENT))
        errors = [str(error) for error in read_many(dataset, store, right, seed)]
        store.close()
        assert server.faults_made > amount(10, 500), server
        assert bool(errors) == may_fail, errors
    for error in errors:
        assert len(error.splitlines()) == 1, error
        assert "127.0.0.1" in error, error
    tally("network faults injected", server.faults_made)
    tally("requests to faulty servers", server.requests)


def test_s3__never_a_wrong_sample(served: Served, tmp_path: Path, s3: S3Server, upload: Callable[..., None]) -> None:
    """A proxy before the server resets, cuts and stalls connections."""
    upload(served.dataset, s3.url)
    right = truth(Dataset.open(served.dataset))
    dataset = Dataset.open(s3.url)
    with (
        faulty_proxy(s3.environment["AWS_ENDPOINT_URL"], seed=3, every=4) as proxy,
        pytest.MonkeyPatch.context() as env,
    ):
        env.setenv("AWS_ENDPOINT_URL", proxy.url)
        files = RemoteFiles(RetryOptions(tries=14, first_wait_s=0.001, longest_wait_s=0.01, timeout_s=1.0))
        store = RemoteStore(dataset, True, CacheOptions(tmp_path, TINY_CACHE), files)
        assert not read_many(dataset, store, right, 3)
        store.close()
    assert proxy.faults_made > amount(3, 100)
    tally("network faults injected", proxy.faults_made)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("loop", "TooManyRedirects"), ("file", "RedirectClientError"), ("gzip", "bytes came"), ("404", "no such file")],
)
def test_http__lasting_fault_is_one_line(served: Served, fault: Fault, said: str) -> None:
    with http_server(served.dataset, (fault,), every=1) as server, pytest.raises(StorageError) as caught:
        RemoteFiles(PATIENT).read(f"{server.url}/manifest.json", 0, 10)
    assert len(str(caught.value).splitlines()) == 1
    assert said in str(caught.value)
    assert "root:" not in str(caught.value)
    assert server.requests <= 12 * 12  # a loop is followed a few times each


def test_redirect__to_another_host_gets_no_credentials(served: Served) -> None:
    with http_server(served.root) as other, http_server(served.root, ("elsewhere",), every=1) as first:
        first.elsewhere = other.url
        url = first.url.replace("//", "//user:pa55word@") + "/cohort.tar"
        assert RemoteFiles(PATIENT).read(url, 0, 100) == (served.root / "cohort.tar").read_bytes()[:100]
    assert "Authorization" in first.headers[0]
    assert other.headers
    assert not any("authorization" in name.lower() for headers in other.headers for name in headers)
