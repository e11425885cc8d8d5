from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dinowds.errors import ConfigError
from dinowds.eval import scores
from dinowds.eval.probe import FITS, Solver, choose_solver, hold_out, probe, standardise


def blobs(num: int, num_classes: int, seed: int, dim: int = 6, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds, of very different spread in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    middles = apart * torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    classes = torch.arange(num) % num_classes
    features = middles[classes] + torch.randn(num, dim, generator=generator)
    return features * torch.logspace(-2, 2, dim) + 5, classes


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_probe__is_scikit_learn_s_logistic_regression(solver: Solver, num_classes: int, strength: float) -> None:
    (train, classes), (test, _) = blobs(120, num_classes, 0), blobs(50, num_classes, 1)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(scaler.transform(train), classes)
    expected = torch.from_numpy(model.predict_proba(scaler.transform(test))).float()
    (found,) = probe(train, classes, test, np.arange(120), solver, [0], [strength])
    assert found.is_converged
    torch.testing.assert_close(found.log_odds.sigmoid().float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
def test_fit__going_on_from_another_solution_gives_the_same(solver: Solver) -> None:
    train, classes = blobs(120, 3, 0)
    train, _ = standardise(train, train)
    near = FITS[solver](train, classes, 0.01, None)
    found, expected = (FITS[solver](train, classes, 1.0, start) for start in (near, None))
    torch.testing.assert_close(found.weight, expected.weight, atol=5e-3, rtol=0)


def test_probe__chooses_on_training_samples_that_it_does_not_fit() -> None:
    """The C whose cross-entropy on the held-out slides is least, and then all training samples."""
    # in so many dimensions the largest C learns noise by heart
    (train, classes), (test, _) = (blobs(num, 3, seed, dim=60, apart=0.2) for num, seed in ((90, 0), (40, 1)))
    slides, strengths = np.arange(90) // 6, (0.001, 0.1, 10.0)
    (found,) = probe(train, classes, test, slides, "sklearn", [5], strengths)
    scaled = StandardScaler().fit_transform(train)
    held_out = hold_out(classes.numpy(), slides, 5)
    losses = {}
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(scaled[~held_out], classes[~held_out])
        losses[strength] = log_loss(classes[held_out], model.predict_proba(scaled[held_out]))
    assert found.strength == min(losses, key=lambda strength: losses[strength]) < 10
    (whole,) = probe(train, classes, test, slides, "sklearn", [0], [found.strength])
    torch.testing.assert_close(found.log_odds, whole.log_odds)


def test_standardise__a_feature_that_never_changes_is_nothing() -> None:
    train, test = torch.randn(30, 3), torch.randn(10, 3)
    train[:, 1] = 0.1
    first, second = standardise(train, test)
    assert (first[:, 1] == 0).all()
    assert (second[:, 1] == 0).all()
    torch.testing.assert_close(first[:, 0].std(correction=0), torch.tensor(1.0))


@pytest.mark.parametrize("seed", range(4))
def test_hold_out__whole_slides_and_each_class_stays(seed: int) -> None:
    slides = np.repeat(np.arange(20), 5)
    classes = np.repeat(np.array([0, 1, 2, 0, 1] * 4), 5)
    taken = hold_out(classes, slides, seed)
    assert all(len(set(taken[slides == slide].tolist())) == 1 for slide in range(20))
    for c in range(3):
        assert 0.2 <= taken[classes == c].mean() <= 0.5
    assert (taken != hold_out(classes, slides, seed + 1)).any()


def test_hold_out__samples_where_a_class_is_one_slide_and_none_of_single_ones() -> None:
    classes = np.repeat([0, 1], 10)
    taken = hold_out(classes, classes, 0)
    assert [taken[classes == c].sum() for c in (0, 1)] == [2, 2]
    assert not hold_out(np.arange(3), np.arange(3), 0).any()


def test_probe__of_one_sample_each_is_fit_with_c_1() -> None:
    features = torch.eye(3) * 4
    (found,) = probe(features, torch.arange(3), features, np.arange(3), "torch", [0])
    assert found.strength == 1.0
    assert found.log_odds.argmax(1).tolist() == [0, 1, 2]


def test_choose_solver__by_size_and_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_solver("auto", 1000) == "sklearn"
    assert choose_solver("auto", 1 << 30) == "torch"
    assert choose_solver("torch", 1000) == "torch"
    assert choose_solver("sklearn", 1 << 30) == "sklearn"
    with pytest.raises(ConfigError, match="solver is 'adam', expected one of auto, sklearn, torch"):
        choose_solver("adam", 1)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert choose_solver("auto", 1000) == "torch"
    with pytest.raises(ConfigError, match=r"scikit-learn is missing: pip install 'dinowds\[eval\]'"):
        choose_solver("sklearn", 1)


def test_probe__a_shift_of_the_data_makes_no_ties() -> None:
    """Probabilities of all shifted samples are 1 to the last digit; their order stays, whichever label is second."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 2
    features = torch.randn(200, 8, generator=generator) + 2 * classes[:, None]
    for labels in (classes, 1 - classes):
        (found,) = probe(features, labels, features + 40, np.arange(200), "torch", [0], [100.0])
        assert float(found.log_odds.sigmoid().float().max(1).values.min()) == 1.0
        decision = (found.log_odds[:, 1] - found.log_odds[:, 0]).numpy()
        assert scores.auroc(found.log_odds, labels) == pytest.approx(roc_auc_score(labels.numpy(), decision), abs=1e-9)
        assert scores.auroc(found.log_odds, labels) > 0.95


def test_hold_out__a_class_of_one_slide_among_others() -> None:
    classes = np.repeat([0, 1], [100, 20])
    groups = np.concatenate([np.repeat(np.arange(10), 10), np.full(20, 10)])
    taken = hold_out(classes, groups, 0)
    assert [int(taken[classes == c].sum()) for c in (0, 1)] == [20, 4]
