"""Steps that are not finite: nothing of them stays, and too many in a row end the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinowds.config import load_config
from dinowds.errors import TrainingError
from dinowds.train import step as step_module
from dinowds.train.checkpoint import load_checkpoint
from dinowds.train.devices import memory_explained
from dinowds.train.loop import train
from dinowds.train.loss import dino_loss
from dinowds.train.monitor import last_figure
from tests.support import TINY_RUN
from tests.train.test_resume import Listener, losses


class Spoiled:
    """`dino_loss`, but NaN in some of its calls, from 1."""

    def __init__(self, calls: range) -> None:
        self.calls, self.count = calls, 0

    def __call__(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        self.count += 1
        return dino_loss(student_logits, targets) * (float("nan") if self.count in self.calls else 1.0)


def test_train__goes_on_after_a_step_that_is_not_finite(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "dino_loss", Spoiled(range(6, 8)))
    listener, run = Listener(), tmp_path / "run"
    config = load_config(None, [*TINY_RUN, "optim.max_steps=10", "train.max_bad_steps=3"])
    train(dataset_path, run, config, listener)
    assert [text for text in listener.messages if "was not applied" in text] == [
        f"step 6 was not applied: its loss is nan, its gradients are not all finite; its samples are in "
        f"{run / 'bad_steps.jsonl'}"
    ]
    entries = [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["loss"], len(entry["keys"])) for entry in entries] == [(6, "nan", 12), (7, "nan", 12)]
    assert [step for step, loss in losses(run).items() if loss is None] == [6, 7]
    train(dataset_path, run, load_config(None, [*TINY_RUN, "optim.max_steps=11", "train.max_bad_steps=3"]))
    assert last_figure(run / "metrics.jsonl", "bad_steps") == 2  # over restarts


def test_train__too_many_of_them_in_a_row_end_the_run_with_its_last_good_checkpoint(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "dino_loss", Spoiled(range(6, 1000)))
    run = tmp_path / "run"
    config = load_config(None, [*TINY_RUN, "train.max_bad_steps=3"])
    with pytest.raises(
        TrainingError, match=r"3 steps in a row .* step 8, .*step-00000004\.pt, is good.*bad_steps\.jsonl"
    ):
        train(dataset_path, run, config)
    state = load_checkpoint(run / "checkpoints" / "step-00000004.pt")
    assert all(value.isfinite().all() for value in state["student"].values())
    monkeypatch.undo()
    assert train(dataset_path, run, config).step == 20
    assert len((run / "bad_steps.jsonl").read_text()) == 0  # of steps that were made again


def test_memory_explained__says_what_to_change() -> None:
    message = (
        r"memory is full \(CUDA out of memory. Tried to allocate 2 GiB\); lower train.max_batch_per_device \(now 64;"
    )
    with (
        pytest.raises(TrainingError, match=message),
        memory_explained(load_config(None, ["train.max_batch_per_device=64"])),
    ):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of 80 GiB."
        )


def test_train__in_float16_goes_on_with_its_loss_scale(dataset_path: Path, tmp_path: Path) -> None:
    overrides = [*TINY_RUN, "speed.precision=fp16", "optim.max_steps=8"]
    train(dataset_path, tmp_path / "whole", load_config(None, overrides))
    for steps in (4, 8):
        train(dataset_path, tmp_path / "parts", load_config(None, [*overrides, f"optim.max_steps={steps}"]))
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step-00000008.pt") for name in ("whole", "parts")
    )
    assert whole["loss_scale"].tolist() == parts["loss_scale"].tolist() == [2**16, 8]
    assert all(torch.equal(value, parts["student"][name]) for name, value in whole["student"].items())
