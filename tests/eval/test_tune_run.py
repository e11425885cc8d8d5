"""A run that is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dinowds.model.dino import DinoModel
from dinowds.train.evaluation import Figures, Verdict
from dinowds.train.loop import no_evaluation, train
from tests.eval.support import config_for, make_labelled, tune_of


def test_train__with_an_evaluation_gives_the_same_weights(tmp_path: Path) -> None:
    data = make_labelled(tmp_path / "data", dict.fromkeys(["s0", "s1", "s2", "s3"]), seed=50_000)
    query = make_labelled(tmp_path / "query", {"q0": "gland", "q1": "fat"}, seed=60_000)
    test = make_labelled(tmp_path / "test", {"t0": "gland", "t1": "fat"}, seed=70_000)
    # 2 steps an epoch
    config = config_for(query, test, "tune.tune_every=2", "tune.tune_every_steps=3", "optim.max_steps=5")
    tune, _ = tune_of(config, data)
    ways = {"a": no_evaluation, "b": lambda: tune}
    plain, evaluated = (train(data, tmp_path / name, config, None, make) for name, make in ways.items())
    for model, other in ((plain.student, evaluated.student), (plain.teacher, evaluated.teacher)):
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert steps_with(tmp_path / "b", "knn/teacher/auroc") == [3, 4, 5]
    assert steps_with(tmp_path / "a", "knn/teacher/auroc") == []


class EndsAfter(Figures):
    """Ends a run as early stopping does."""

    def __init__(self, step: int) -> None:
        super().__init__(lambda *_: {})
        self._last = step

    def __call__(self, step: int, epoch: int, student: DinoModel, teacher: DinoModel) -> Verdict:  # noqa: ARG002
        return Verdict({}, stop="early stopping: nothing better" if step == self._last else None)


def test_train__ended_early_goes_on_with_other_values_of_tune_alone(tmp_path: Path) -> None:
    data = make_labelled(tmp_path / "data", dict.fromkeys(["s0", "s1", "s2", "s3"]), seed=50_000)

    def steps(last: int, *overrides: str) -> int:
        config = config_for(data, data, "tune.early_stopping.enable=true", "optim.max_steps=5", *overrides)
        return train(data, tmp_path / "run", config, None, lambda: EndsAfter(last)).step

    assert steps(2) == 2
    assert steps(5) == 2
    assert steps(4, "tune.early_stopping.patience=30") == 4


def steps_with(run: Path, figure: str) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if figure in line]
