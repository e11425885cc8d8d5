from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.regions import make_region, make_regions


@pytest.fixture(scope="session")
def regions_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 regions of 6 × 6 cells of 8 features, a fifth of them missing. Shared by all tests: read only."""
    return make_regions(tmp_path_factory.mktemp("regions"), [make_region(seed) for seed in range(70)])
