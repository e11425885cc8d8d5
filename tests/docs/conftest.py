"""The world of the pages, made once."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from tests.docs.world import build_world, copy_world
from tests.servers import S3Server


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("world")
    build_world(folder)
    return folder


@pytest.fixture
def own_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is the current folder."""
    folder = tmp_path / "world"
    folder.mkdir()
    copy_world(world, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def lab(s3: S3Server) -> str:
    """An empty bucket of this name."""
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/lab", method="PUT")).close()
    return "s3://lab"
