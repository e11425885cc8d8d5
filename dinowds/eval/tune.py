"""Nearest neighbours while a run goes on: how well the features of teacher and student tell labelled samples apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinowds.config import PatchConfig, RegionConfig, RunConfig
from dinowds.data.dataset import Dataset
from dinowds.errors import ConfigError, DatasetError, StorageError, TrainingError
from dinowds.eval import knn, scores
from dinowds.eval.extract import Extractor, Features, Inputs, gather
from dinowds.eval.labelled import QUERY_KEY, TEST_KEY, Task, match_labels
from dinowds.eval.overlap import find_overlap
from dinowds.eval.stopping import FIGURES, Best
from dinowds.model.dino import DinoModel
from dinowds.remote.files import shown
from dinowds.train import dist
from dinowds.train.devices import numerics
from dinowds.train.diagnostics import rank_me
from dinowds.train.evaluation import Verdict
from dinowds.train.feed import cache_options
from dinowds.train.kinds import check_kind, resolve_kind
from dinowds.world import World

Notice = Callable[[str], None]
"""Gets one line that is worth reading."""

_ENABLE_KEY = "tune.early_stopping.enable"


def evaluation_of(config: RunConfig, data: Path | str, notice: Notice) -> Tune | None:
    """What `tune` of a configuration asks for; None where it names no datasets. Every rank calls it, before the run.

    Args:
        data: what is trained on, as for `train`.
        notice: called on rank 0 alone.

    Raises:
        ConfigError: a dataset cannot be opened, is of another kind or shape, lacks labels, or is trained on too.
    """
    query, test = config.tune.knn.query_dataset_path, config.tune.knn.test_dataset_path
    if query is None and test is None:
        if config.tune.early_stopping.enable:
            raise ConfigError(f"{_ENABLE_KEY} is true, but there is no {QUERY_KEY}; give it and {TEST_KEY}")
        return None
    if query is None or test is None:
        given, missing = (TEST_KEY, QUERY_KEY) if query is None else (QUERY_KEY, TEST_KEY)
        raise ConfigError(f"{given} is given, but {missing} is null; give both or none")
    training, world = Dataset.open(data), World.from_environment()
    check_kind(training, config)
    datasets = {key: _open(key, path, config) for key, path in ((QUERY_KEY, query), (TEST_KEY, test))}
    config = _with_shapes(config, training, datasets)
    task, notices = match_labels(datasets[QUERY_KEY], datasets[TEST_KEY])
    notices += _check_overlap(task, training, config.tune.knn.overlap)
    notice = notice if world.rank == 0 else _say_nothing
    for text in notices:
        notice(text)
    return Tune(config, task, world, notice)


def _say_nothing(_: str) -> None: ...


def _open(key: str, location: str, config: RunConfig) -> Dataset:
    try:
        dataset = Dataset.open(location)
    except (DatasetError, StorageError) as error:
        raise ConfigError(f"{key}: {error}") from None
    if (kind := dataset.manifest.kind) != config.kind:
        raise ConfigError(f"{key}: {shown(dataset.url)} holds {kind}s, expected {config.kind}s, as are trained on")
    return dataset


def _with_shapes(config: RunConfig, training: Dataset, datasets: dict[str, Dataset]) -> RunConfig:
    """With `student.input_dim` resolved. Raises ConfigError for samples that its models could not take."""
    if isinstance(config, PatchConfig):
        size, patch_size = config.tune.knn.image_size, config.student.patch_size
        if size is not None and size % patch_size:
            raise ConfigError(f"tune.knn.image_size is {size}, expected a multiple of student.patch_size, {patch_size}")
        return config
    assert isinstance(config, RegionConfig)
    expected = _num_features(config, training)
    for key, dataset in datasets.items():
        if (found := _num_features(config, dataset)) != expected:
            raise ConfigError(
                f"{key}: cells of {shown(dataset.url)} have {found} features, expected {expected}, as those of "
                f"{shown(training.url)}"
            )
    return replace(config, student=replace(config.student, input_dim=expected))


def _num_features(config: RegionConfig, dataset: Dataset) -> int | None:
    asks_none = replace(config, student=replace(config.student, input_dim=None))
    resolved = resolve_kind(asks_none, dataset, torch.device("cpu"), cache_options(config))
    assert isinstance(resolved, RegionConfig)
    return resolved.student.input_dim


def _check_overlap(task: Task, training: Dataset, how: str) -> list[str]:
    """Notices of test samples that a run or the neighbours know; ConfigError where `how` is refuse."""
    notices = []
    for other, name in ((training, "the training data"), (task.query.dataset, QUERY_KEY)):
        if common := find_overlap(task.test, other).describe():
            text = f"{TEST_KEY}: {common} are in {name} too"
            if how == "refuse":
                raise ConfigError(f"{text}; give others, or tune.knn.overlap=warn if this is meant")
            notices.append(f"{text}: the figures of its kNN say little about others")
    return notices


class Tune:
    """An `Evaluation` by k nearest neighbours.

    Figures, as `knn/teacher/…` and `knn/student/…`: `accuracy`, `balanced_accuracy` and `auroc` (see `scores`), 0 to 1;
    and `knn/teacher/rank_me` of the test samples. Every rank decodes and classifies its share.
    """

    def __init__(self, config: RunConfig, task: Task, world: World, notice: Notice) -> None:
        """`config`: with `student.input_dim` resolved."""
        self._config, self._task, self._world, self._notice = config, task, world, notice
        self._extract = Extractor(Inputs.of_run(config), world)
        self._best = Best(config.tune.early_stopping)

    def is_due(self, step: int, steps_per_epoch: int, is_last: bool) -> bool:
        tune = self._config.tune
        periods = (tune.tune_every * steps_per_epoch, tune.tune_every_steps)
        return is_last or any(period and step % period == 0 for period in periods)

    def __call__(self, step: int, epoch: int, student: DinoModel, teacher: DinoModel) -> Verdict:
        backbones = [teacher.backbone, student.backbone]
        with _undisturbed(backbones, self._config.train.compile):
            query, test = (self._extract(backbones, part) for part in (self._task.query, self._task.test))
        self._check(step, query, test)
        figures = self._figures(query, test)
        name = FIGURES[self._config.tune.early_stopping.tracking]
        is_best = self._best.update(step, figures[f"knn/teacher/{name}"], figures[f"knn/student/{name}"])
        return Verdict(figures, is_best, self._best.reason_to_stop(epoch))

    def state_dict(self) -> dict[str, Any]:
        return {"about": self._about(), "best": self._best.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A best figure of other samples or settings is not taken over."""
        if state.get("about") == self._about():
            self._best.load_state_dict(state["best"])
        elif state:
            self._notice("tune: earlier evaluations were of other samples or settings; the best of them does not count")

    def _about(self) -> str:
        asked, stopping = self._config.tune.knn, self._config.tune.early_stopping
        fingerprints = " ".join(part.dataset.fingerprint for part in (self._task.query, self._task.test))
        options = f"k={asked.nb_knn} T={asked.temperature:g} size={asked.image_size}"
        return f"{fingerprints} {options} {stopping.min_max} {stopping.tracking}"

    def _check(self, step: int, query: Features, test: Features) -> None:
        """The same on all ranks."""
        budget = self._config.data.max_bad_samples
        for key, features in ((QUERY_KEY, query), (TEST_KEY, test)):
            if text := features.missing(key, budget, "data.max_bad_samples"):
                self._notice(f"{text} and are left out at step {step}")
            if not all(vectors[features.is_good].isfinite().all() for vectors in features.vectors):
                raise TrainingError(f"{key}: the models give features at step {step} that are not finite")

    def _figures(self, query: Features, test: Features) -> dict[str, float]:
        """As rank 0 computes them, so that no rank decides otherwise than the others."""
        classes, labels = (
            part.classes.to(features.is_good.device)[features.is_good]
            for part, features in ((self._task.query, query), (self._task.test, test))
        )
        figures: dict[str, float] = {}
        for name, reference, vectors in zip(("teacher", "student"), query.vectors, test.vectors, strict=True):
            shares = self._shares(reference[query.is_good], classes, vectors[test.is_good])
            figures |= {f"knn/{name}/{figure}": value for figure, value in scores.figures(shares, labels).items()}
        figures["knn/teacher/rank_me"] = rank_me(test.vectors[0][test.is_good])
        return dist.on_rank_0(lambda: figures)

    def _shares(self, reference: Tensor, classes: Tensor, vectors: Tensor) -> Tensor:
        """`knn_shares`, of which each rank computes every `world.size`-th block: the same numbers in any world."""
        asked, world = self._config.tune.knn, self._world
        ranks = np.arange(len(vectors)) // knn.BLOCK % world.size
        orders = [np.flatnonzero(ranks == rank) for rank in range(world.size)]
        with numerics(vectors.device, tf32=False, deterministic=self._config.train.deterministic):
            own = knn.knn_shares(
                reference,
                classes,
                vectors[torch.from_numpy(orders[world.rank]).to(vectors.device)],
                len(self._task.names),
                asked.nb_knn,
                asked.temperature,
            )
        return gather(own, orders)


@contextmanager
def _undisturbed(modules: Sequence[nn.Module], is_compiled: bool) -> Iterator[None]:
    """Evaluation mode; afterwards modes and random numbers are as before."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    device = next(modules[0].parameters()).device
    with ExitStack() as stack:
        # DataLoader draws a seed for its processes from torch's generator.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if is_compiled:  # other shapes and modes would be compiled too, and steps be compiled anew for any shape
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for root in modules:
            root.eval()
        try:
            yield
        finally:
            for module, is_training in modes:
                module.training = is_training
