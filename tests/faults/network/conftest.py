"""What the tests of this room share. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dinowds.remote.files import RemoteFiles
from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import write_weights
from tests.support import make_dataset, write_cohort


@dataclass(frozen=True)
class Served:
    """A folder for a server: `dataset`, of 90 samples in 4 shards; `cohort.tar`. And weights, which lie elsewhere."""

    root: Path
    weights: Path

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("served")
    make_dataset(root)
    write_cohort(root / "cohort.tar", 30)
    return Served(root, write_weights(tmp_path_factory.mktemp("weights") / "w.pt"))


@pytest.fixture(scope="session")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another dataset of as many samples and shards."""
    root = tmp_path_factory.mktemp("old")
    sources = [write_cohort(root / "alpha.tar", 60, 5000), write_cohort(root / "beta.tar", 30, 6000)]
    build_dataset(sources, root / "dataset", ShardOptions(max_count=25))
    return root / "dataset"


@pytest.fixture
def upload() -> Callable[[Path, str], None]:
    """(folder, s3://… URL): copy its files there."""

    def put(folder: Path, url: str) -> None:
        files = RemoteFiles()
        for path in folder.rglob("*"):
            if path.is_file():
                files.upload(path, f"{url}/{path.relative_to(folder)}")

    return put
