"""A run goes on exactly where it stopped, whatever stopped it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from dinowds.config import load_config
from dinowds.data.dataset import Dataset
from dinowds.errors import CheckpointError, ConfigError, OutputError, StoppedBySignal, TrainingError
from dinowds.model.dino import DinoModel
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from dinowds.train.evaluation import Figures
from dinowds.train.loop import train
from dinowds.train.monitor import EpochSummary, Progress
from tests.support import TINY_RUN, make_dataset, wait_until_gone

DROPPING = (*TINY_RUN, "student.drop_path_rate=0.3", "train.max_batch_per_device=4")
CONFIG = load_config(None, TINY_RUN)
WITH_PATHS_DROPPED = load_config(None, DROPPING)


class Listener:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, progress: Progress) -> None: ...

    def epoch(self, summary: EpochSummary) -> None: ...


def losses(run: Path) -> dict[int, Any]:
    """None where it was not finite."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines}


def assert_same_state(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            assert_same_state(value, second[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def final_state(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "step-00000020.pt")


@pytest.fixture(scope="module")
def undisturbed(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(dataset_path, out, WITH_PATHS_DROPPED)
    return out


def test_train__killed_at_step_11_ends_with_the_same_bits(
    undisturbed: Path, dataset_path: Path, tmp_path: Path
) -> None:
    """11 steps and SIGKILL, then the same command: weights, optimizer, centre and metrics of a run without a stop."""
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from dinowds.config import load_config
        from dinowds.train.evaluation import Figures
        from dinowds.train.loop import train
        def kill(step, student, teacher):
            return os.kill(os.getpid(), signal.SIGKILL) if step == 11 else {}
        if __name__ == "__main__":
            data, out, *overrides = sys.argv[1:]
            train(Path(data), Path(out), load_config(None, overrides), evaluation=lambda: Figures(kill))
    """)
    (tmp_path / "script.py").write_text(script)
    arguments: list[str | Path] = [dataset_path, tmp_path / "run", *DROPPING, "speed.num_workers=1"]
    killed = subprocess.run([sys.executable, tmp_path / "script.py", *arguments], check=False, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    wait_until_gone(str(tmp_path))
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000008.pt"
    assert max(losses(tmp_path / "run")) > 8
    listener = Listener()
    train(dataset_path, tmp_path / "run", WITH_PATHS_DROPPED, listener)
    assert any("going on after step 8" in text for text in listener.messages)
    assert losses(tmp_path / "run") == losses(undisturbed)
    ours, theirs = final_state(tmp_path / "run"), final_state(undisturbed)
    for state in (ours, theirs):
        state["config"]["speed"].pop("num_workers")
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_train__signal_saves_and_the_same_call_goes_on(
    undisturbed: Path, dataset_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def send(step: int, _student: DinoModel, _teacher: DinoModel) -> dict[str, float]:
        if step == 6:
            os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    with pytest.raises(StoppedBySignal, match=rf"stopped by {number.name} after step 7 of 20"):  # an epoch's last
        train(dataset_path, tmp_path / "run", WITH_PATHS_DROPPED, evaluation=lambda: Figures(send))
    assert signal.getsignal(number) == before
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000007.pt"
    train(dataset_path, tmp_path / "run", WITH_PATHS_DROPPED)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert_same_state(final_state(tmp_path / "run"), final_state(undisturbed))


def test_train__damaged_newest_checkpoint_is_passed_over(dataset_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = load_config(None, [*DROPPING, "optim.max_steps=9"])
    train(dataset_path, tmp_path / "run", config)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == "step-00000009.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    listener = Listener()
    train(dataset_path, tmp_path / "run", WITH_PATHS_DROPPED, listener)
    assert "step-00000009.pt: damaged checkpoint" in listener.messages[0]
    assert "going on after step 8" in " ".join(listener.messages)
    assert newest.with_name(newest.name + ".damaged").exists()
    assert_same_state(final_state(tmp_path / "run")["teacher"], final_state(undisturbed)["teacher"])


def test_train__all_checkpoints_damaged(dataset_path: Path, tmp_path: Path) -> None:
    train(dataset_path, tmp_path / "run", load_config(None, [*TINY_RUN, "optim.max_steps=1"]))
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints can be read"):
        train(dataset_path, tmp_path / "run", CONFIG)


def test_train__finished_run_has_nothing_left_to_do(undisturbed: Path, dataset_path: Path) -> None:
    listener = Listener()
    before = sorted((p, p.stat().st_mtime_ns) for p in (undisturbed / "checkpoints").iterdir())
    older = undisturbed / "checkpoints" / "step-00000008.pt"  # as after a kill between the last one and its removal
    shutil.copy(undisturbed / "checkpoints" / "step-00000012.pt", older)
    outcome = train(dataset_path, undisturbed, WITH_PATHS_DROPPED, listener)
    assert outcome.checkpoint.name == "step-00000020.pt"
    assert "nothing left to do: 20 of 20 steps are done" in listener.messages
    assert sorted((p, p.stat().st_mtime_ns) for p in (undisturbed / "checkpoints").iterdir()) == before


def test_train__run_folder_holds_what_a_run_tells(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "train.log", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [path.name for path in list_checkpoints(undisturbed / "checkpoints")] == [
        f"step-{step:08d}.pt" for step in (20, 16, 12)
    ]  # the last three
    state = final_state(undisturbed)
    assert (state["step"], state["epoch"]) == (20, 2)
    assert state["dino_loss"]["center"].shape == (1, 128)


@pytest.mark.parametrize("change", ["optim.lr=1e-3", "train.seed=1", "student.out_dim=64"])
def test_train__other_configuration_on_a_run_is_refused(undisturbed: Path, dataset_path: Path, change: str) -> None:
    key = change.partition("=")[0]
    config = load_config(None, [*DROPPING, change])
    with pytest.raises(ConfigError, match=rf"started with other values \({key}: .* → .*\)"):
        train(dataset_path, undisturbed, config)


def test_train__other_dataset_on_a_run_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, num_patches=40)
    with pytest.raises(CheckpointError, match="another dataset"):
        train(other, undisturbed, WITH_PATHS_DROPPED)


def test_train__foreign_folder_is_left_alone(dataset_path: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(OutputError, match="not empty and not a run's folder"):
        train(dataset_path, tmp_path, CONFIG)


def test_train__second_run_in_the_same_folder_is_refused(dataset_path: Path, tmp_path: Path) -> None:
    def again(step: int, _student: DinoModel, _teacher: DinoModel) -> dict[str, float]:
        if step == 1:
            with pytest.raises(OutputError, match="another run is at work"):
                train(dataset_path, tmp_path / "run", CONFIG)
        return {}

    config = load_config(None, [*TINY_RUN, "optim.max_steps=2"])
    train(dataset_path, tmp_path / "run", config, evaluation=lambda: Figures(again))


def test_save__prunes_older_ones_only(tmp_path: Path) -> None:
    for step in (4, 8, 12, 30):
        save_checkpoint(tmp_path, {"format_version": 1, "step": step}, keep=10)
    save_checkpoint(tmp_path, {"format_version": 1, "step": 16}, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000030.pt", "step-00000016.pt"]


def test_train__bad_samples_are_counted_over_restarts_and_end_the_run(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "damaged")
    dataset = Dataset.open(tmp_path / "damaged")
    for sample in range(0, 90, 9):
        row = dataset[sample]
        with open(dataset.shard_url(row.shard), "r+b") as shard:
            shard.seek(row.offset)
            shard.write(bytes(row.size))
    few = [*TINY_RUN, "data.max_bad_samples=12"]
    train(tmp_path / "damaged", tmp_path / "run", load_config(None, [*few, "optim.max_steps=5"]))
    first = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert 0 < len(first) <= 12
    with pytest.raises(TrainingError, match=r"bad_samples\.jsonl: 1[3-9] samples could not be read, .* is 12"):
        train(tmp_path / "damaged", tmp_path / "run", load_config(None, few))
    entry = json.loads(first[0])
    assert {"step", "epoch", "key", "url", "reason", "replaced_by"} == entry.keys()
    assert (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()[: len(first)] == first
