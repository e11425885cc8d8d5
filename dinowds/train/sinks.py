"""Where figures of a run go beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

W&B and MLflow are extras, imported only when they are enabled. Neither needs a network unless it is asked for one; keys
come from their own files and environment variables alone.
"""

from __future__ import annotations

import importlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dinowds.config import MlflowConfig, RunConfig, WandbConfig, flatten, to_dict
from dinowds.errors import ConfigError
from dinowds.files import write_atomic

WANDB_ID_NAME, MLFLOW_ID_NAME = "wandb-run-id", "mlflow-run-id"
"""Files of the run folder."""
MLFLOW_NAME = "mlflow"
"""Folder of the run folder, where MLflow's files are."""

_QUIET = {
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"},
}
"""Environment of packages that would otherwise tell their makers of errors and use; the user's own values stay."""
_MLFLOW_PARAMETERS = 100
"""The most that MLflow takes at once."""
_MLFLOW_LENGTH = 500
"""The longest value of a parameter that MLflow took at first; later versions take more."""


class Sink(Protocol):
    """Takes the figures of log points."""

    name: str
    """What messages call it."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Finite figures of `step`, the number of optimizer steps done. A step may come in several parts."""

    def close(self) -> None:
        """Everything written is safe after this."""


def check_sinks(config: RunConfig) -> None:
    """Raise ConfigError where a sink is enabled whose package is missing, or a password is in its configuration."""
    if config.wandb.enable:
        _import("wandb", "init")
    if config.mlflow.enable:
        _import("mlflow", "MlflowClient")
        if urlsplit(config.mlflow.uri or "").password:
            raise ConfigError(
                "mlflow.uri holds a password, which would be written to config.yaml; give it in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


def open_sinks(
    folder: Path, config: RunConfig, resumed_step: int, tell: Callable[[str], None] = lambda _: None
) -> list[Sink]:
    """Those that a run with this configuration writes to; they go on with what they have from before `resumed_step`.

    Args:
        tell: takes a line on one that cannot begin, as without its server, and is left out.

    Raises:
        ConfigError: as `check_sinks`.
    """
    check_sinks(config)
    ways: dict[str, Callable[[], Sink]] = {TensorBoard.name: lambda: TensorBoard(folder, resumed_step)}
    if config.wandb.enable:
        ways[Wandb.name] = lambda: Wandb(folder, config.wandb, to_dict(config))
    if config.mlflow.enable:
        ways[Mlflow.name] = lambda: Mlflow(folder, config.mlflow, to_dict(config))
    sinks = []
    for name, begin in ways.items():
        try:
            sinks.append(begin())
        except Exception as error:  # of a package or a server of others
            tell(describe_failure(name, error))
    return sinks


def describe_failure(name: str, error: Exception) -> str:
    """A line on a sink that is left out."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} failed and gets no more figures of this run ({reason})"


class TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """One W&B run for each run folder, however often it goes on."""

    name = "W&B"

    def __init__(self, folder: Path, options: WandbConfig, content: Mapping[str, Any]) -> None:
        wandb = _import("wandb", "init")
        self._run = wandb.init(
            project=options.project,
            name=folder.resolve().name,
            id=_remembered(folder / WANDB_ID_NAME) or _remember(folder / WANDB_ID_NAME, secrets.token_hex(4)),
            resume="allow" if options.mode == "online" else None,  # offline, its files are put together by the id
            mode=options.mode,
            dir=str(folder),
            config=dict(content),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """One MLflow run for each run folder, however often it goes on; the configuration's keys are its parameters."""

    name = "MLflow"

    def __init__(self, folder: Path, options: MlflowConfig, content: Mapping[str, Any]) -> None:
        mlflow = _import("mlflow", "MlflowClient")
        self._mlflow = mlflow
        remote = options.uri or os.environ.get("MLFLOW_TRACKING_URI")
        store = folder.resolve() / MLFLOW_NAME
        if not remote:
            store.mkdir(exist_ok=True)
        self._client = mlflow.MlflowClient(tracking_uri=remote or f"sqlite:///{store / 'mlflow.db'}")
        artifacts = None if remote else store.as_uri()  # else MLflow makes a folder where the command was started
        self._id = self._existing(folder / MLFLOW_ID_NAME) or self._create(
            folder, options.experiment, artifacts, content
        )
        self._client.update_run(self._id, status="RUNNING")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _existing(self, path: Path) -> str | None:
        """The run of an earlier call, if this server has it."""
        if (run_id := _remembered(path)) is None:
            return None
        try:
            self._client.get_run(run_id)
        except self._mlflow.MlflowException:
            return None
        return run_id

    def _create(self, folder: Path, experiment: str, artifacts: str | None, content: Mapping[str, Any]) -> str:
        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, artifacts)
        run_id = str(self._client.create_run(experiment_id, run_name=folder.resolve().name).info.run_id)
        parameters = [
            self._mlflow.entities.Param(key, str(value)[:_MLFLOW_LENGTH])
            for key, value in flatten(dict(content)).items()
        ]
        for start in range(0, len(parameters), _MLFLOW_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + _MLFLOW_PARAMETERS])
        return _remember(folder / MLFLOW_ID_NAME, run_id)


def _import(package: str, attribute: str) -> Any:
    """A package that an extra brings. A folder of its name, such as one that W&B writes, is not it."""
    for name, value in _QUIET[package].items():
        os.environ.setdefault(name, value)
    try:
        module = importlib.import_module(package)
    except ImportError:
        module = None
    if not hasattr(module, attribute):
        raise ConfigError(
            f"{package}.enable is true, but the package {package} is missing: pip install 'dinowds[{package}]'"
        )
    return module


def _remembered(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() or None if path.exists() else None


def _remember(path: Path, run_id: str) -> str:
    write_atomic(path, f"{run_id}\n".encode())
    return run_id
