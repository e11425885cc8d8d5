"""What the tests of embedding share: read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embed.support import make_coded_dataset, write_weights


@pytest.fixture(scope="session")
def coded_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 coded images of two cohorts in 5 shards, shuffled."""
    return make_coded_dataset(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="session")
def weights_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")
