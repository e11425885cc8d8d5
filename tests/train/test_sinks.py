"""Weights & Biases and MLflow, as modules that keep what they are told."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dinowds.config import load_config
from dinowds.errors import ConfigError
from dinowds.train.sinks import check_sinks, open_sinks

BOTH = ("wandb.enable=true", "mlflow.enable=true")
PLAIN = load_config(None, [])
WANDB = load_config(None, ["wandb.enable=true", "wandb.project=tissue"])
MLFLOW = load_config(None, ["mlflow.enable=true", "mlflow.experiment=tissue"])


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> Any:
        self.started.append(arguments)
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def _finish(self) -> None:
        self.finished += 1


class FakeMlflow(ModuleType):
    """A server that all clients share."""

    class MlflowException(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.uris: list[str] = []
        self.experiments: dict[str, str | None] = {}
        self.runs: dict[str, list[Any]] = {}
        self.parameters: dict[str, str] = {}
        self.ended: list[str] = []
        self.entities = SimpleNamespace(Metric=SimpleNamespace, Param=lambda key, value: (key, value))
        self.entities.Metric = lambda name, value, _time, step: (name, value, step)

    def MlflowClient(self, tracking_uri: str) -> FakeMlflow:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = artifact_location
        return name

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        run_id = f"{experiment_id}-{run_name}-{len(self.runs)}"
        self.runs[run_id] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise self.MlflowException("no such run")
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        assert (run_id in self.runs, status) == (True, "RUNNING")

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run_id] += metrics
        self.parameters |= dict(params)

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")})
    return fake


def run(folder: Path, config: Any, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    sinks = open_sinks(folder, config, 0)
    for step in steps:
        for sink in sinks:
            sink.write(step, {"loss": 1 / step})
    for sink in sinks:
        sink.close()


def test_open_sinks__tensorboard_alone_imports_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert [sink.name for sink in open_sinks(tmp_path, PLAIN, 0)] == ["TensorBoard"]


def test_tensorboard__holds_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", PLAIN, 10, 20)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
    ]


def test_wandb__offline_in_the_run_folder_and_one_run_however_often_it_goes_on(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    run(tmp_path / "cohort", WANDB, 10, 20)
    run(tmp_path / "cohort", WANDB, 30)
    run(tmp_path / "other", WANDB)
    first, again, other = wandb.started
    assert (first["mode"], first["dir"], first["project"]) == ("offline", str(tmp_path / "cohort"), "tissue")
    assert first["name"] == "cohort"
    assert first["id"] == again["id"] != other["id"]
    assert first["config"]["optim"]["lr"] == WANDB.optim.lr
    assert wandb.logged == [(10, {"loss": 0.1}), (20, {"loss": 0.05}), (30, {"loss": 1 / 30})]
    assert wandb.finished == 3
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_wandb__online_goes_on_with_the_run_of_the_server(tmp_path: Path, wandb: FakeWandb) -> None:
    config = load_config(None, ["wandb.enable=true", "wandb.mode=online"])
    run(tmp_path / "cohort", config)
    assert (wandb.started[0]["mode"], wandb.started[0]["resume"]) == ("online", "allow")


def test_mlflow__files_in_the_run_folder_and_one_run_however_often_it_goes_on(
    tmp_path: Path, mlflow: FakeMlflow
) -> None:
    folder = tmp_path / "cohort"
    run(folder, MLFLOW, 10, 20)
    run(folder, MLFLOW, 30)
    assert mlflow.uris == [f"sqlite:///{folder}/mlflow/mlflow.db"] * 2
    assert mlflow.experiments == {"tissue": (folder / "mlflow").as_uri()}
    assert mlflow.runs == {"tissue-cohort-0": [("loss", 0.1, 10), ("loss", 0.05, 20), ("loss", 1 / 30, 30)]}
    assert mlflow.parameters["optim.lr"] == str(MLFLOW.optim.lr)
    assert mlflow.parameters["crops.global.size"] == "224"
    assert mlflow.ended == ["tissue-cohort-0"] * 2


def test_mlflow__server_by_key_then_environment(
    tmp_path: Path, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", "http://lab:5000")
    run(tmp_path / "a", MLFLOW)
    run(tmp_path / "b", load_config(None, ["mlflow.enable=true", "mlflow.uri=http://other:5000"]))
    assert mlflow.uris == ["http://lab:5000", "http://other:5000"]
    assert mlflow.experiments == {"tissue": None, "dinowds": None}
    assert not (tmp_path / "a" / "mlflow").exists()


def test_mlflow__a_run_that_the_server_does_not_have_begins_anew(tmp_path: Path, mlflow: FakeMlflow) -> None:
    run(tmp_path / "cohort", MLFLOW, 10)
    mlflow.runs.clear()
    run(tmp_path / "cohort", MLFLOW, 20)
    assert list(mlflow.runs.values()) == [[("loss", 0.05, 20)]]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_check_sinks__missing_package_is_one_line_with_the_command(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = load_config(None, [f"{package}.enable=true"])
    with pytest.raises(ConfigError, match=rf"^{package}\.enable is true, .* pip install 'dinowds\[{package}\]'$"):
        check_sinks(config)


def test_check_sinks__a_folder_named_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves one where a script was started."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="the package wandb is missing"):
        check_sinks(WANDB)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


@pytest.mark.usefixtures("mlflow")
def test_check_sinks__password_in_the_configuration_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"mlflow\.uri holds a password") as caught:
        check_sinks(load_config(None, ["mlflow.enable=true", "mlflow.uri=https://me:secret@lab"]))
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("mlflow")
def test_open_sinks__one_that_cannot_begin_is_told_and_left_out(tmp_path: Path, wandb: FakeWandb) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    wandb.init = refuse  # type: ignore[method-assign]
    told: list[str] = []
    sinks = open_sinks(tmp_path, load_config(None, BOTH), 0, told.append)
    assert [sink.name for sink in sinks] == ["TensorBoard", "MLflow"]
    assert told == ["W&B failed and gets no more figures of this run (api_key not configured (no-tty))"]


@pytest.mark.usefixtures("wandb", "mlflow")
def test_open_sinks__both(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, load_config(None, BOTH), 0)
    assert [sink.name for sink in sinks] == ["TensorBoard", "W&B", "MLflow"]
