"""`dinowds eval`: how well features tell classes apart, beside those of baselines; and figures without labels."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dinowds.errors import ConfigError
from dinowds.eval import knn, scores
from dinowds.eval.bootstrap import LEVEL, Draws, Interval, intervals
from dinowds.eval.probe import choose_solver, probe
from dinowds.eval.splits import Notice, Report, Split, Splits, make_splits, unlabelled_vectors
from dinowds.eval.stored import stored_splits
from dinowds.eval.subjects import ModelOptions, Subjects
from dinowds.train.devices import numerics
from dinowds.train.diagnostics import alpha_req, feature_std, rank_me


@dataclass(frozen=True)
class EvalOptions:
    """What every evaluation with labels is told."""

    models: ModelOptions | None = None
    """None where --train and --test are features on disk."""
    allow_leakage: bool = False
    resamples: int = 1000
    """Draws of the bootstrap; 0 for no intervals."""


@dataclass(frozen=True)
class Result:
    """Of one model with one setting."""

    model: str
    settings: dict[str, Any]
    figures: dict[str, Interval]
    """`accuracy`, `balanced_accuracy`, `auroc`: 0 to 1."""
    confusion: list[list[int]]
    """[C][C]: test samples of the row's label that are given the column's; of several seeds, by the first."""
    seeds: list[dict[str, Any]] = field(default_factory=list)
    """What each seed chose and reached, where there are several."""

    def to_json(self) -> dict[str, Any]:
        figures = {name: interval.to_json() for name, interval in self.figures.items()}
        seeds = {"seeds": self.seeds} if self.seeds else {}
        return {"model": self.model, "settings": self.settings, **figures, "confusion": self.confusion, **seeds}


@dataclass(frozen=True)
class Evaluation:
    """All that was found."""

    kind: Literal["knn", "linear"]
    date: str
    """ISO 8601."""
    checkpoint: str
    step: int | None
    """Of the checkpoint, where it says so."""
    train: dict[str, Any]
    test: dict[str, Any]
    labels: tuple[str, ...]
    leakage: str
    bootstrap: dict[str, Any]
    results: list[Result]
    features: dict[str, float]
    """Of the first model's test features: see `feature_figures`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "date": self.date,
            "checkpoint": self.checkpoint,
            "step": self.step,
            "train": self.train,
            "test": self.test,
            "labels": list(self.labels),
            "leakage": self.leakage,
            "bootstrap": self.bootstrap,
            "results": [result.to_json() for result in self.results],
            "features": finite(self.features),
        }


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _silent(*_: object) -> None: ...


def evaluate_knn(
    train: str,
    test: str,
    options: EvalOptions,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    notice: Notice = _silent,
    report: Report = _silent,
) -> Evaluation:
    """Tell samples of `test` by those of `train`: datasets, or folders of features where there are no models.

    By weighted nearest neighbours (`knn.knn_shares`) of each k, of features as they are and centred by the mean of the
    training features, as UNI does it (Chen et al. 2024).

    Raises:
        ConfigError: options, datasets or weights that do not fit; see `make_splits` and `stored_splits`.
    """
    ks = list(dict.fromkeys(ks))
    if not ks or min(ks) < 1:
        raise ConfigError(f"--k is {min(ks, default=0)}, expected at least 1")
    if not temperature > 0:
        raise ConfigError(f"--temperature is {temperature:g}, expected more than 0")

    def results(splits: Splits, draws: Draws) -> Iterator[Result]:
        if max(ks) > (num_train := len(splits.train)):
            notice(f"--k is {max(ks)}, but there are {num_train:,} training samples: all of them vote")
        for name in splits.train.vectors:
            for centred in (False, True):
                reference, vectors = (split.vectors[name] for split in (splits.train, splits.test))
                if centred:
                    mean = reference.mean(0)
                    reference, vectors = reference - mean, vectors - mean
                shares = knn.shares_by_k(reference, splits.train.classes, vectors, len(splits.labels), ks, temperature)
                for k, of_k in zip(ks, shares, strict=True):
                    settings = {"k": k, "temperature": temperature, "centred": centred}
                    yield _result(name, settings, [of_k], splits, draws)

    return _evaluate("knn", train, test, options, results, notice, report)


def evaluate_linear(
    train: str,
    test: str,
    options: EvalOptions,
    solver: str = "auto",
    seeds: int = 3,
    notice: Notice = _silent,
    report: Report = _silent,
) -> Evaluation:
    """As `evaluate_knn`, by logistic regression (`probe.probe`); `seeds` of its choices of the regularisation.

    Raises:
        ConfigError: as `evaluate_knn`, and where the solver is missing.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}, expected at least 1")
    choose_solver(solver, 0)  # what is missing is missed now

    def results(splits: Splits, draws: Draws) -> Iterator[Result]:
        for name, vectors in splits.train.vectors.items():
            chosen = choose_solver(solver, vectors.numel())
            found = probe(
                vectors, splits.train.classes, splits.test.vectors[name], splits.train.clusters, chosen, range(seeds)
            )
            if not all(probed.is_converged for probed in found):
                notice(f"{name}: the probe has not quite converged; its figures may be a little low")
            each = [
                {"seed": seed, "C": probed.strength, **finite(scores.figures(probed.log_odds, splits.test.classes))}
                for seed, probed in enumerate(found)
            ]
            middle = sorted(probed.strength for probed in found)[len(found) // 2]
            settings = {"C": middle, "solver": chosen, "seeds": seeds}
            yield _result(name, settings, [probed.log_odds for probed in found], splits, draws, each)

    return _evaluate("linear", train, test, options, results, notice, report)


@dataclass(frozen=True)
class FeatureFigures:
    """What features tell without labels."""

    checkpoint: str
    step: int | None
    dataset: dict[str, Any]
    models: dict[str, dict[str, float]]
    """Model → `feature_figures`; the trained ones, and those of `baselines`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "features",
            "checkpoint": self.checkpoint,
            "step": self.step,
            "dataset": self.dataset,
            "results": [{"model": name, **finite(figures)} for name, figures in self.models.items()],
        }


def evaluate_features(
    data: str,
    options: ModelOptions,
    most: int = 25600,
    notice: Notice = _silent,
    report: Report = _silent,
) -> FeatureFigures:
    """`feature_figures` of all models on at most `most` samples of DATASET or DATASET:SUBSET."""
    subjects = Subjects.open(options)
    name, vectors = unlabelled_vectors(data, subjects, most, 0, notice, report)
    with numerics(subjects.device, tf32=False, deterministic=False):
        figures = {model: feature_figures(found) for model, found in vectors.items()}
    dim, count = (vectors[subjects.trained[0]].shape[axis] for axis in (1, 0))
    if count < 10 * dim:
        notice(
            f"RankMe and alpha-ReQ want ten times as many samples as a feature has values, {dim}; there are {count:,}: "
            "compare them with figures of as many samples alone"
        )
    return FeatureFigures(
        options.checkpoint, subjects.weights.step, {"name": name, "samples": count, "dim": dim}, figures
    )


def feature_figures(features: Tensor) -> dict[str, float]:
    """`rank_me`, `alpha_req`, `std`: see `train.diagnostics`. `features`: float32 [N, D]."""
    return {"rank_me": rank_me(features), "alpha_req": alpha_req(features), "std": feature_std(features)}


Results = Callable[[Splits, Draws], Iterator[Result]]


def _evaluate(
    kind: Literal["knn", "linear"],
    train: str,
    test: str,
    options: EvalOptions,
    results: Results,
    notice: Notice,
    report: Report,
) -> Evaluation:
    if options.resamples < 0:
        raise ConfigError(f"--resamples is {options.resamples}, expected 0 or more")
    if options.models is None:
        splits = stored_splits(train, test, options.allow_leakage, notice)
    else:
        subjects = Subjects.open(options.models)
        splits = make_splits(train, test, subjects, options.allow_leakage, notice, report)
    draws = Draws(splits.test.clusters, options.resamples)
    with numerics(splits.device, tf32=False, deterministic=False), torch.no_grad():
        found = list(results(splits, draws))
        features = feature_figures(next(iter(splits.test.vectors.values())))
    return Evaluation(
        kind=kind,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        checkpoint=splits.checkpoint,
        step=splits.step,
        train=_about(splits.train, splits.labels),
        test=_about(splits.test, splits.labels),
        labels=splits.labels,
        leakage=splits.leakage,
        bootstrap={
            "of": _unit(draws.num_clusters, splits.test.num_slides),
            "clusters": draws.num_clusters,
            "resamples": options.resamples,
            "level": LEVEL,
        },
        results=found,
        features=features,
    )


def _unit(num_clusters: int, num_slides: int) -> str:
    """What is drawn: a sample whose slide is unknown is drawn by itself."""
    if not num_slides:
        return "samples"
    return "slides" if num_clusters == num_slides else "slides and samples"


def _about(split: Split, labels: Sequence[str]) -> dict[str, Any]:
    counts = split.classes.bincount(minlength=len(labels)).tolist()
    return {
        "name": split.name,
        "samples": len(split),
        "slides": split.num_slides,
        "labels": dict(zip(labels, counts, strict=True)),
    }


def _result(
    model: str,
    settings: dict[str, Any],
    runs: Sequence[Tensor],
    splits: Splits,
    draws: Draws,
    seeds: list[dict[str, Any]] | None = None,
) -> Result:
    labels = splits.test.classes
    found = scores.confusion(runs[0].argmax(1), labels, len(splits.labels))
    return Result(model, settings, intervals(runs, labels, draws), found.tolist(), seeds or [])
