from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.kills.killing import Nursery, nursery


@pytest.fixture(scope="session")
def nurse() -> Iterator[Nursery]:
    with nursery() as made:
        yield made
