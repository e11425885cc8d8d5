"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; commands under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two test processes share two cores

import pytest
from playwright.sync_api import Browser

from dinowds.data.dataset import Dataset
from tests.browser import CHROMIUM, NO_BROWSER, launched
from tests.servers import s3, s3_endpoint
from tests.support import make_dataset

__all__ = ["s3", "s3_endpoint"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests, also of the commands that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOWDS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests of a process: playwright's calls allow no second one."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 patches in 4 shards. Shared by all tests: read only."""
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def dataset(dataset_path: Path) -> Dataset:
    return Dataset.open(dataset_path)
