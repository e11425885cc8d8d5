"""The doctor's checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinowds.doctor import Finding, _compiled, _output, _shared_memory, examine, judge_pair, worst
from tests.support import run_dinowds


def test_examine__this_machine_can_run_the_tests(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(tmp_path)}
    assert findings["torch + torchvision"].status == "ok"
    assert findings["write access"].status == "ok"
    assert {
        "dinowds",
        "torch",
        "devices",
        "precision",
        "crops",
        "cores",
        "shared memory",
        "free disk",
    } <= findings.keys()
    assert list(tmp_path.iterdir()) == []


def test_judge_pair__names_the_mismatched_build() -> None:
    finding = judge_pair(1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    assert finding.status == "problem"
    assert "different builds" in finding.found
    assert "pip install torch torchvision" in finding.advice
    assert judge_pair(0, "").status == "ok"
    assert "exit code -11" in judge_pair(-11, "").found


def test_shared_memory__too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shared_memory(tmp_path / "none").status == "ok"
    assert _shared_memory(tmp_path).status == "ok"
    monkeypatch.setattr("dinowds.doctor._MIN_SHARED_MEMORY", 1 << 60)
    finding = _shared_memory(tmp_path)
    assert finding.status == "problem"
    assert "--shm-size" in finding.advice


def test_output__missing_folder_is_a_problem(tmp_path: Path) -> None:
    (finding,) = _output(tmp_path / "none")
    assert finding.status == "problem"
    assert "No such file" in finding.found


def test_crops__names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(_compiled()) == [Finding(name, "ok", "compiled") for name in ("crops", "sharding")]
    monkeypatch.setattr("dinowds.crops.cpu.missing", lambda: "it is not built: run `pip install -e .`")
    finding, _ = _compiled()
    assert (finding.status, finding.found) == ("warning", "it is not built")
    assert finding.advice == "run `pip install -e .`"


def test_worst() -> None:
    ok, warning, problem = (Finding("x", status, "") for status in ("ok", "warning", "problem"))
    assert worst([ok]) == "ok"
    assert worst([ok, warning]) == "warning"
    assert worst([problem, warning, ok]) == "problem"


def test_command__json(tmp_path: Path) -> None:
    result = run_dinowds("doctor", tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    assert {entry["status"] for entry in json.loads(result.stdout)} <= {"ok", "warning"}


def test_command__problem_is_exit_code_1(tmp_path: Path) -> None:
    result = run_dinowds("doctor", tmp_path / "none")
    assert result.returncode == 1
    assert "problem" in result.stdout
