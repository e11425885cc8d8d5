"""The evaluations of a run, kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinowds.files import read_regular
from dinowds.train.folder import CHECKPOINTS_NAME, CONFIG_NAME
from dinowds.train.monitor import append_lines

EVALUATIONS_NAME = "evaluations.jsonl"
"""One line for each evaluation, as `Evaluation.to_json`."""


def run_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint is of: it is the folder, its `checkpoints`, or a file in there. Else None."""
    path = Path(checkpoint).absolute()
    for place in (path, path.parent, path.parent.parent):
        is_inside = place == path or place / CHECKPOINTS_NAME in (path, path.parent)
        if is_inside and (place / CONFIG_NAME).is_file() and (place / CHECKPOINTS_NAME).is_dir():
            return place
    return None


def keep_evaluation(checkpoint: str | Path, content: Mapping[str, Any]) -> Path | None:
    """Append an evaluation to those of the checkpoint's run, if it is of one. Returns the file. Raises OutputError."""
    run = run_of(checkpoint)
    if run is None:
        return None
    append_lines(run / EVALUATIONS_NAME, [content])
    return run / EVALUATIONS_NAME


def read_evaluations(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Those of a run folder, oldest first, and the number of lines that cannot be read."""
    path = run / EVALUATIONS_NAME
    lines = read_regular(path).decode("utf-8", "replace").splitlines() if path.exists() else []
    found = [content for line in lines if isinstance(content := _parsed(line), dict)]
    return found, len(lines) - len(found)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
