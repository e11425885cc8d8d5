"""Calling the command within this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from dinowds.cli.main import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call_dinowds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """(arguments) → exit code, stdout, stderr of `dinowds`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dinowds", *map(str, arguments)])
        try:
            run()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)
