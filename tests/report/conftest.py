"""A run that is shared by the tests of its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dinowds.config import load_config
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.train.loop import train
from tests.report.pages import HOSTILE
from tests.support import TINY_RUN, write_cohort


def evaluation(model: str = HOSTILE) -> dict[str, Any]:
    """A line of evaluations.jsonl."""

    def score(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    return {
        "kind": "knn",
        "date": "2026-01-01 12:00:00",
        "checkpoint": "checkpoints/step-00000020.pt",
        "step": 20,
        "train": {"name": "patches", "samples": 60},
        "test": {"name": "others", "samples": 30, "slides": 3},
        "labels": ["a", HOSTILE],
        "leakage": "no slide in common",
        "results": [
            {
                "model": name,
                "settings": {"k": 20, "temperature": 0.07},
                "accuracy": score(0.5 + bonus),
                "balanced_accuracy": score(0.4 + bonus),
                "auroc": score(0.6 + bonus),
                "confusion": [[10, 5], [3, 12 + number]],
            }
            for number, (name, bonus) in enumerate(((model, 0.2), ("untrained", 0.0)))
        ],
        "features": {"rank_me": 12.0},
    }


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps with four checkpoints, on data whose cohort has a harmful name. Read only."""
    folder = tmp_path_factory.mktemp("run")
    cohort = write_cohort(folder / "<script>alert(1)<b>.tar", 90)
    build_dataset([cohort], folder / "dataset", ShardOptions(max_count=25))
    overrides = [*TINY_RUN, "train.keep_checkpoints=4"]
    train(folder / "dataset", folder / "a<b>run", load_config(None, overrides))
    (folder / "a<b>run" / "evaluations.jsonl").write_text(json.dumps(evaluation()) + "\n")
    return folder / "a<b>run"
