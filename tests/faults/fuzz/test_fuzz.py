"""Each target for some seconds, and all inputs that were once found to be too much."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.form import IS_FULL, amount, tally
from tests.faults.fuzz import under_asan
from tests.faults.fuzz.run_target import Fuzzed, fuzz
from tests.faults.fuzz.targets import TARGETS, load

FOUND = sorted((Path(__file__).parent / "findings").glob("*/*"))
"""Inputs, in folders named after their targets."""

LONG = ("tar", "headers", "decode", "keys", "manifest", "index", "config", "unpickle")
"""Ten minutes in the full form, as many strangers' bytes reach them; the others two, and none in the short one."""

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it exists for Linux on x86-64 alone"
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fuzzed]:
    """Of a target; in the short form of all at once, as importing takes longer than a second of fuzzing."""
    folder = tmp_path_factory.mktemp("fuzz")
    known: dict[str, Fuzzed] = {}

    def of(name: str) -> Fuzzed:
        if name not in known:
            seconds = amount(1, 600 if name in LONG else 120)
            known.update(fuzz([name] if IS_FULL else LONG, seconds, folder / "findings"))
        return known[name]

    return of


@needs_atheris
@pytest.mark.parametrize("name", TARGETS if IS_FULL else LONG)
def test_fuzz__finds_nothing(fuzzed: Callable[[str], Fuzzed], name: str) -> None:
    found = fuzzed(name)
    assert found.returncode == 0, (
        f"{[(path.name, path.read_bytes()[:2000]) for path in found.findings]}\n{found.output}"
    )
    assert found.executions > 0
    tally(f"fuzz executions of {TARGETS[name][1]}", found.executions)


@pytest.mark.skipif(under_asan.available() is None, reason="needs gcc and its address sanitizer")
@pytest.mark.parametrize("name", under_asan.NAMES if IS_FULL else ["headers"])
def test_fuzz__in_c_stays_within_its_memory(name: str) -> None:
    result = under_asan.run(name, amount(1, 120))
    assert result.returncode == 0, result.stdout + result.stderr
    tally("fuzz executions of the C library under the address sanitizer", int(result.stdout))


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
