"""`dinowds report` as people call it."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from dinowds.config import PatchConfig, to_yaml
from dinowds.report import page
from tests.cli.conftest import Call


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds report`."""
    return partial(call_dinowds, "report")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without checkpoints."""
    return write_run(tmp_path / "run")


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(PatchConfig()))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 11.0}\n{"step": 2, "loss": 10.5}\n')
    return folder


def test_report__of_a_run_lies_in_its_folder(call: Call, run: Path) -> None:
    code, out, err = call(run)
    assert (code, err) == (0, "")
    assert out.startswith(f"{run / 'report.html'} (4.")
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_report__json_alone_on_stdout(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call(run, "--out", tmp_path / "page.html", "--json")
    assert code == 0
    size = (tmp_path / "page.html").stat().st_size
    assert json.loads(out) == {"path": str(tmp_path / "page.html"), "kind": "run", "bytes": size}


def test_report__of_several_runs_needs_a_place(call: Call, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    code, _, err = call(run, other)
    assert (code, err) == (1, "dinowds: error: a report of several runs needs --out FILE.html\n")
    assert call(run, other, "--out", tmp_path / "both.html")[0] == 0
    assert "run · other" in (tmp_path / "both.html").read_text()


def test_report__what_is_there_is_not_replaced(call: Call, run: Path) -> None:
    (run / "report.html").write_text("mine")
    code, _, err = call(run)
    assert (code, err) == (
        1,
        f"dinowds: error: {run / 'report.html'}: exists already; give --overwrite to replace it, or another --out\n",
    )
    assert (run / "report.html").read_text() == "mine"
    assert call(run, "--overwrite")[0] == 0
    assert (run / "report.html").read_text() != "mine"


def test_report__of_a_dataset_lies_beside_it(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(dataset_path, tmp_path / "patches"))
    code, out, _ = call(dataset, "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(tmp_path / "patches-report.html")
    assert json.loads(out)["kind"] == "dataset"


def test_report__bad_input_is_one_line(call: Call, run: Path, dataset_path: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        ((tmp_path / "none",), "no such run folder or dataset"),
        ((run, dataset_path, "--out", tmp_path / "o.html"), "a report shows one dataset, or runs"),
        ((dataset_path, "--data", dataset_path), "--data is for the pictures of a run"),
        ((run, run, "--data", dataset_path), "--data is for the pictures of one run"),
        ((run, run, "--out", tmp_path / "o.html"), "a run is named twice"),
        ((run, "--out", tmp_path), "is a folder, expected a file"),
        ((run, "--out", tmp_path / "no" / "o.html"), "there is no folder"),
        ((tmp_path,), "manifest.json"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert expected in err
        assert err.count("\n") == 1
    assert not (tmp_path / "o.html").exists()


def test_report__without_the_extra_says_what_to_install(call: Call, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page._packages.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, err = call(run)
    page._packages.cache_clear()
    assert code == 1
    assert err.endswith("which is missing: pip install 'dinowds[report]'\n")
    assert not (run / "report.html").exists()
