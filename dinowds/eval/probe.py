"""Logistic regression on features that stay as they are: the linear probe."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dinowds.errors import ConfigError

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Values of C that are tried: the inverse strength of the regularisation."""
SOLVERS = ("auto", "sklearn", "torch")
Solver = Literal["sklearn", "torch"]

_LARGE = 1 << 26
"""Values of training features from which on `torch` is chosen: 175,000 samples of 384 features."""
_HELD_OUT, _MOST = 0.2, 0.5
"""Of a class's samples: the share to choose C by, and the most of it."""
_ITERATIONS = 1000
_GRADIENT = 1e-5
"""The largest gradient of the mean loss at which a solution is good enough."""
_CHANGE = 1e-9
"""Of the loss, from which on float32 products tell steps apart no more."""


def choose_solver(asked: str, num_values: int) -> Solver:
    """`auto` is scikit-learn for small sets, where it is installed, else torch. Both find the same solution.

    Raises:
        ConfigError: there is no such solver, or scikit-learn is asked for and missing.
    """
    if asked not in SOLVERS:
        raise ConfigError(f"solver is {asked!r}, expected one of {', '.join(SOLVERS)}")
    has_sklearn = importlib.util.find_spec("sklearn") is not None
    if asked == "sklearn" and not has_sklearn:
        raise ConfigError("--solver is sklearn, but scikit-learn is missing: pip install 'dinowds[eval]'")
    if asked == "torch" or (asked == "auto" and not (has_sklearn and num_values < _LARGE)):
        return "torch"
    return "sklearn"


class Fit(Protocol):
    """Minimises the mean cross-entropy + ‖W‖² / (2 · C · N); the bias is free. Of two classes W is one vector, as of
    scikit-learn. `start`: what an earlier call gave, to go on from.

    Args:
        features: float32 [N, D].
        classes: int64 [N], each of 0 … C − 1 at least once.
    """

    def __call__(self, features: Tensor, classes: Tensor, strength: float, start: Linear | None) -> Linear: ...


@dataclass(frozen=True)
class Linear:
    """A solution: logits = features · weightᵀ + bias."""

    weight: Tensor
    """float64 [C, D] (of two classes, [1, D])."""
    bias: Tensor
    is_converged: bool

    def log_shares(self, features: Tensor) -> Tensor:
        """Log-probabilities of classes, float64 [M, C]."""
        return _log_shares(torch.addmm(self.bias, features.double(), self.weight.T))

    def log_odds(self, features: Tensor) -> Tensor:
        """log p / (1 − p) of each class, float64 [M, C]: in the order of the probabilities, of which many are 1 to the
        last digit where a shift of the data makes logits large.
        """
        shares = self.log_shares(features)
        own = torch.eye(shares.shape[1], dtype=torch.bool, device=shares.device)
        others = shares[:, None].masked_fill(own, -torch.inf).logsumexp(2)
        return shares - others


def _log_shares(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        logits = F.pad(logits, (1, 0))
    return logits.log_softmax(1)


def fit_sklearn(features: Tensor, classes: Tensor, strength: float, start: Linear | None) -> Linear:
    """On the CPU, in float64. See `Fit`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=strength, max_iter=_ITERATIONS, tol=_GRADIENT, warm_start=True)
    if start is not None:
        model.coef_, model.intercept_ = start.weight.cpu().numpy(), start.bias.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.double().cpu().numpy(), classes.cpu().numpy())
    weight, bias = (torch.from_numpy(part).to(features.device) for part in (model.coef_, model.intercept_))
    return Linear(weight, bias, int(model.n_iter_.max()) < _ITERATIONS)


def fit_torch(features: Tensor, classes: Tensor, strength: float, start: Linear | None) -> Linear:
    """On the device of the features; L-BFGS over all samples at once. Products with features are float32, all else is
    float64, without which the line search sees no difference near the end. See `Fit`.
    """
    num_classes, dim = int(classes.max()) + 1, features.shape[1]
    rows = 1 if num_classes == 2 else num_classes
    weight = features.new_zeros(rows, dim, dtype=torch.float64) if start is None else start.weight.clone()
    bias = features.new_zeros(rows, dtype=torch.float64) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        history_size=10,
        tolerance_grad=_GRADIENT,
        tolerance_change=_CHANGE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight.to(features.dtype)).double() + bias
        value = F.nll_loss(_log_shares(logits), classes) + weight.square().sum() / (2 * strength * len(features))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
        loss()
    largest = max(float(part.grad.abs().max()) for part in (weight, bias) if part.grad is not None)
    curvature = max(1.0, 1 / (strength * len(features)))  # a gradient moves the solution by its share of this
    return Linear(weight.detach(), bias.detach(), largest <= 10 * _GRADIENT * curvature)


FITS: dict[Solver, Fit] = {"sklearn": fit_sklearn, "torch": fit_torch}


def hold_out(classes: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Training samples to choose C by, bool [N]: whole groups, about a fifth of each class and at most half of it, so
    that each class stays among the others too. Groups are taken in random order. Where none can be taken of a class,
    such as of one that is one group, its samples are taken by themselves; none of a class of one sample.

    Args:
        groups: [N], 0 …: the slide of each sample.
    """
    taken = _take(classes, groups, seed)
    missed = np.flatnonzero(~np.isin(classes, classes[taken]))
    if len(missed):
        codes = np.unique(classes[missed], return_inverse=True)[1]
        taken[missed] = _take(codes, np.arange(len(missed)), seed)
    return taken


def _take(classes: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    totals = np.bincount(classes)
    counts = np.zeros_like(totals)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    taken = np.zeros(len(classes), bool)
    for number in np.random.default_rng(seed).permutation(len(members)).tolist():
        own = np.bincount(classes[members[number]], minlength=len(totals))
        is_wanted = ((own > 0) & (counts < _HELD_OUT * totals)).any()
        if is_wanted and (counts + own <= _MOST * totals).all():
            counts += own
            taken[members[number]] = True
    return taken


@dataclass(frozen=True)
class Probed:
    """What one seed gives."""

    log_odds: Tensor
    """Of the classes of test samples, float64 [M, C]; see `Linear.log_odds`."""
    strength: float
    """C."""
    is_converged: bool


def probe(
    train_features: Tensor,
    train_classes: Tensor,
    test_features: Tensor,
    groups: NDArray[np.int64],
    solver: Solver,
    seeds: Sequence[int],
    strengths: Sequence[float] = STRENGTHS,
) -> list[Probed]:
    """Logistic regression on features that are standardised by the training samples' mean and deviation.

    Each seed holds out other training samples (`hold_out`), takes of `strengths` the C at which the cross-entropy of
    these is least, and fits all training samples with it. Test samples decide nothing.

    Args:
        train_features: float32 [N, D].
        train_classes: int64 [N], each of 0 … C − 1 at least once.
        test_features: float32 [M, D].
        groups: int64 [N]: slides of the training samples.

    Returns:
        One for each seed.
    """
    train, test = standardise(train_features, test_features)
    fit, classes = FITS[solver], train_classes.cpu().numpy()
    fitted: dict[float, Linear] = {}
    found = []
    for seed in seeds:
        held_out = torch.from_numpy(hold_out(classes, groups, seed)).to(train.device)
        strength = _choose(fit, train, train_classes, held_out, strengths)
        if strength not in fitted:
            fitted[strength] = fit(train, train_classes, strength, None)
        solution = fitted[strength]
        found.append(Probed(solution.log_odds(test), strength, solution.is_converged))
    return found


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D], [M, D], by the mean and deviation of `train`; a feature that never changes there becomes 0."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _choose(fit: Fit, features: Tensor, classes: Tensor, held_out: Tensor, strengths: Sequence[float]) -> float:
    """The value of C with the least cross-entropy of the samples that are held out; 1 where none is."""
    if len(strengths) == 1:
        return strengths[0]
    if not held_out.any():
        return 1.0
    losses: dict[float, float] = {}
    solution = None
    for strength in sorted(strengths):
        solution = fit(features[~held_out], classes[~held_out], strength, solution)
        losses[strength] = float(F.nll_loss(solution.log_shares(features[held_out]), classes[held_out]))
    return min(losses, key=lambda strength: losses[strength])
