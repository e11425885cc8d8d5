"""`dinowds withdraw` as people call it."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.verify import verify_dataset
from tests.cli.conftest import Call
from tests.shard.finished.datasets import add_subset, make_finished, tree

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds withdraw`."""
    return partial(call_dinowds, "withdraw")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of 18 samples of three slides, and a list of one of them beside it."""
    monkeypatch.chdir(tmp_path)
    Path("withdrawn.txt").write_text("# consent withdrawn\na/s1\nunknown\n")
    return make_finished(Path("datasets/patches"), [("a", "s1"), ("a", "s2"), ("b", "s1")])


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_withdraw__is_done_and_shown(call: Call, folder: Path) -> None:
    add_subset(folder, "one", where="cohort == 'a' and slide == 's1'")
    code, out, err = call(folder, "--slides", "withdrawn.txt", "--dry-run")
    assert code == 0
    assert "datasets/patches (nothing written)" in lines_of(out)
    assert len(Dataset.open(folder)) == 18
    code, out, err = call(folder, "--slides", "withdrawn.txt")
    assert code == 0
    assert err.splitlines() == [
        "dinowds: withdrawn.txt: 1 of 2 entries are no slide of the dataset: 'unknown'",
        "dinowds: subset 'one' has no sample any more and is removed",
    ]
    for line in ("samples 6", "slides 1", "cohort a 6", "withdrawn samples still in shards 6"):
        assert line in lines_of(out)
    code, out, err = call(folder, "--rewrite")
    assert (code, err) == (0, "")
    assert "withdrawn samples still in shards 0" in lines_of(out)
    assert len(Dataset.open(folder)) == 12
    assert verify_dataset(folder) == []


def test_withdraw__json_is_alone_on_stdout(call: Call, folder: Path) -> None:
    code, out, _ = call(folder, "--slides", "withdrawn.txt", "--rewrite", "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["dataset"], content["dry_run"], content["samples"]) == (str(folder), False, 6)
    assert (content["in_shards"], len(content["notices"])) == (0, 1)


def test_withdraw__errors_are_one_line_and_change_nothing(call: Call, folder: Path) -> None:
    before = tree(folder)
    Path("none.txt").write_text("unknown\n")
    for arguments, words in (
        ([folder], "--slides FILE is missing"),
        ([folder, "--slides", "none.txt"], "no entry is a slide of the dataset ('unknown')"),
        ([folder, "--slides", "missing.txt"], "expected a list, one entry a line"),
        (["s3://bucket/data", "--slides", "none.txt"], "copy the dataset to a disk"),
        ([f"{folder}:some", "--slides", "none.txt"], "is a subset"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    assert tree(folder) == before


def test_withdraw__examples_of_help_and_page_run(call: Call, call_dinowds: Call, folder: Path) -> None:
    code, out, _ = call("--help")
    assert code == 0
    example = "dinowds withdraw datasets/patches --slides withdrawn.txt --rewrite"
    assert example in " ".join(out.split())
    assert example in PAGE.read_text()
    assert call_dinowds(*shlex.split(example)[1:])[0] == 0
    assert len(Dataset.open(folder)) == 12
