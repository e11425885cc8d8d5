"""Reading `metrics.jsonl`, however long."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinowds.report import metrics as module
from dinowds.report.curves import curve_sections
from dinowds.report.metrics import POINTS, read_metrics
from dinowds.report.page import script_json
from dinowds.report.runfolder import read_run


def _write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_read_metrics__values_and_gaps(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 2, "lr": None, "nothing": None},
        {"step": 2, "loss": 1.5, "knn": 0.25},
        {"step": 2, "knn/other": 3},
        {"step": 4, "loss": None, "lr": 0.5, "text": "no number", "flag": True},
    ]
    found = read_metrics(_write(tmp_path / "m.jsonl", lines))
    assert {name: list(zip(c.steps.tolist(), c.values.tolist(), strict=True)) for name, c in found.curves.items()} == {
        "loss": [(1, 2.0), (2, 1.5)], "lr": [(4, 0.5)], "knn": [(2, 0.25)], "knn/other": [(2, 3.0)],
    }  # fmt: skip
    assert (found.num_lines, found.last_step, found.num_damaged, found.is_cut) == (4, 4, 0, False)
    curve = found.curves["loss"]
    assert (curve.least(), curve.most(), curve.last, curve.count) == ((1.5, 2), (2.0, 1), 1.5, 2)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"loss": 1}', '{"step": true}', '{"step": 1.5}', "\x00", '{"step": -1}']
)
def test_read_metrics__a_damaged_line_spoils_no_other(tmp_path: Path, damage: str) -> None:
    lines = [{"step": 1, "loss": 3.0}, damage, {"step": 2, "loss": 2.0}]
    found = read_metrics(_write(tmp_path / "m.jsonl", lines))
    assert found.curves["loss"].values.tolist() == [3.0, 2.0]
    assert found.num_damaged == (1 if damage else 0)


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}'])
def test_read_metrics__a_last_line_without_its_end_is_left_out(tmp_path: Path, end: str) -> None:
    path = _write(tmp_path / "m.jsonl", [{"step": 1, "loss": 3.0}])
    path.write_text(path.read_text() + end)
    found = read_metrics(path)
    assert (found.is_cut, found.num_lines, found.num_damaged) == (True, 1, 0)


def test_read_metrics__no_file_has_no_figures(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "m.jsonl").curves == {}
    assert read_metrics(_write(tmp_path / "m.jsonl", [])).num_lines == 0


def test_read_metrics__pieces_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "m.jsonl", [{"step": step, "loss": step % 7, "lr": 0.1} for step in range(1, 300)])
    seen: list[int] = []
    whole = read_metrics(path)
    monkeypatch.setattr(module, "_PIECE", 100)
    parts = read_metrics(path, look=lambda rows: seen.extend(rows["step"].to_pylist()))
    assert seen == list(range(1, 300))
    np.testing.assert_array_equal(parts.curves["loss"].values, whole.curves["loss"].values)


def test_curves__of_a_long_run_are_small_and_keep_every_peak(tmp_path: Path) -> None:
    lines = [
        f'{{"step": {step}, "loss": {5 + (step == 54_321) * 4 + step % 9 / 100}, "kl": {step % 11 / 7}}}'
        for step in range(1, 60_001)
    ]
    _write(tmp_path / "metrics.jsonl", lines)
    run = read_run(tmp_path)
    curve = run.metrics.curves["loss"]
    assert len(curve.steps) <= POINTS
    peak, at = curve.most()
    assert (round(peak), at) == (9, 54_321)
    assert curve.count == run.metrics.last_step == 60_000
    plots = [block for section in curve_sections([run]) for block in section.blocks]
    assert len(script_json([asdict(plot) for plot in plots])) < 2 * 2 * POINTS * 16  # two curves and a share of them
