"""What rooms share: one process for all commands that are forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.commands import Commands, commands


@pytest.fixture(scope="session")
def command() -> Iterator[Commands]:
    with commands() as command:
        yield command
