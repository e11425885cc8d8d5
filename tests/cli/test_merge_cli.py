"""`dinowds merge` as people call it."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import pytest

from dinowds.data.verify import verify_dataset
from tests.cli.conftest import Call
from tests.shard.finished.datasets import add_subset, make_finished

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds merge`."""
    return partial(call_dinowds, "merge")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two datasets, and their folder as the current one."""
    monkeypatch.chdir(tmp_path)
    lines = [{"source": "/in/a.tar", "member": "x.jpg", "reason": "empty file"}]
    return [
        make_finished(Path("datasets/a"), [("a", "s1"), ("a", "s2")], quarantine=lines),
        make_finished(Path("datasets/b"), [("b", "s1")]),
    ]


def test_merge__is_made_and_shown(call: Call, parts: list[Path]) -> None:
    add_subset(parts[0], "mine")
    code, out, err = call(*parts, "-o", "datasets/all")
    assert code == 0
    assert err.count("\n") == 1
    assert "its subsets are not carried over: mine" in err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in ("datasets/all", "datasets 2", "samples 18", "shards 3", "cohort a 12", "quarantined: empty file 1"):
        assert line in lines
    assert verify_dataset("datasets/all") == []


def test_merge__json_is_alone_on_stdout(call: Call, parts: list[Path]) -> None:
    code, out, err = call(*parts, "--out", "datasets/all", "--json")
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert (content["dataset"], content["samples"], content["cohorts"]) == ("datasets/all", 18, {"a": 12, "b": 6})


def test_merge__errors_are_one_line(call: Call, parts: list[Path]) -> None:
    assert call(*parts, "--out", "datasets/all")[0] == 0
    for arguments, words in (
        ([*parts, "--out", "datasets/all"], "already holds a dataset"),
        ([*parts, parts[0], "--out", "datasets/new"], "is given twice"),
        ([parts[0], "datasets/all", "--out", "datasets/new"], "leave out the one that is merged of the other"),
        ([parts[0], "datasets/none", "--out", "datasets/new"], "no such dataset"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err


@pytest.mark.usefixtures("parts")
def test_merge__examples_of_help_and_page_run(call: Call, call_dinowds: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    example = "dinowds merge datasets/a datasets/b --out datasets/all"
    assert example in " ".join(out.split())
    assert example in PAGE.read_text()
    assert call_dinowds(*shlex.split(example)[1:])[0] == 0
