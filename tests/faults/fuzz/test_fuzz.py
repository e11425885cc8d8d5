"""Each target for some seconds, and all inputs that were once found to be too much."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.faults.form import amount, tally
from tests.faults.fuzz.run_target import fuzz
from tests.faults.fuzz.targets import TARGETS, load

FOUND = sorted((Path(__file__).parent / "findings").glob("*/*"))
"""Inputs, in folders named after their targets."""

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it exists for Linux on x86-64 alone"
)


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz__finds_nothing(tmp_path: Path, name: str) -> None:
    found = fuzz(name, amount(1, 600), tmp_path / "findings")
    assert found.returncode == 0, (
        f"{[(path.name, path.read_bytes()[:2000]) for path in found.findings]}\n{found.output}"
    )
    assert found.executions > 0
    tally(f"fuzz executions of {TARGETS[name][1]}", found.executions)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_fuzz__what_was_found_stays_mended(path: Path) -> None:
    load(path.parent.name).run(path.read_bytes())
    tally("fuzz findings that stay mended")


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz__seeds_are_no_findings(name: str) -> None:
    """So that the targets hold without atheris, too."""
    target = load(name)
    seeds = list(target.seeds())
    for seed in [b"", *seeds, *(seed[: len(seed) // 2] for seed in seeds)]:
        target.run(seed)
