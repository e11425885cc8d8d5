from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinowds.eval.history import EVALUATIONS_NAME, keep_evaluation, read_evaluations, run_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_run_of__a_folder_its_checkpoints_and_files_in_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of(run) == run_of(run / "checkpoints") == run_of(run / "checkpoints" / "step-00000004.pt") == run
    monkeypatch.chdir(run / "checkpoints")
    assert run_of("best.pt") == run


def test_run_of__others_are_of_no_run(run: Path, tmp_path: Path) -> None:
    assert run_of(run / "weights.pt") is None
    assert run_of(tmp_path) is None
    (run / "config.yaml").unlink()
    assert run_of(run) is None


def test_keep_evaluation__a_line_each(run: Path, tmp_path: Path) -> None:
    assert keep_evaluation(tmp_path / "weights.pt", {"kind": "knn"}) is None
    for kind in ("knn", "linear"):
        assert keep_evaluation(run / "checkpoints" / "best.pt", {"kind": kind}) == run / EVALUATIONS_NAME
    lines = (run / EVALUATIONS_NAME).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"kind": "knn"}, {"kind": "linear"}]


def test_read_evaluations__and_what_is_damaged(run: Path) -> None:
    assert read_evaluations(run) == ([], 0)
    for number in range(2):
        keep_evaluation(run, {"number": number})
    with (run / EVALUATIONS_NAME).open("a") as file:
        file.write('[1]\n{"number": 2')
    assert read_evaluations(run) == ([{"number": 0}, {"number": 1}], 2)
