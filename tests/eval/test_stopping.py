from __future__ import annotations

import pytest

from dinowds.config import EarlyStoppingConfig
from dinowds.eval.stopping import Best


def updated(config: EarlyStoppingConfig, figures: list[tuple[float, float]]) -> tuple[Best, list[bool]]:
    """`figures`: of teacher and student at the steps 1, 2, …"""
    best = Best(config)
    return best, [best.update(step, *pair) for step, pair in enumerate(figures, 1)]


def test_best__is_at_least_the_best_so_far_and_above_the_student() -> None:
    figures = [(0.5, 0.5), (0.6, 0.5), (0.6, 0.4), (0.7, 0.8), (0.59, 0.1), (0.65, 0.64)]
    best, is_best = updated(EarlyStoppingConfig(), figures)
    assert is_best == [False, True, True, False, False, True]
    assert (best.figure, best.step, best.since) == (0.65, 6, 0)


def test_best__of_a_figure_that_is_to_be_small_is_the_mirror_image() -> None:
    figures = [(0.5, 0.4), (0.4, 0.5), (0.4, 0.41), (0.45, 0.9), (0.1, 0.05)]
    assert updated(EarlyStoppingConfig(min_max="min"), figures)[1] == [False, True, True, False, False]


def test_best__nan_is_never_best() -> None:
    assert updated(EarlyStoppingConfig(), [(float("nan"), 0.1), (0.5, float("nan"))])[1] == [False, False]


@pytest.mark.parametrize(
    ("since", "epoch", "enable", "stops"),
    [(3, 9, True, True), (2, 9, True, False), (3, 8, True, False), (9, 9, False, False)],
)
def test_best__stops_at_patience_after_min_epoch(since: int, epoch: int, enable: bool, stops: bool) -> None:
    config = EarlyStoppingConfig(enable=enable, patience=3, min_epoch=9)
    best, _ = updated(config, [(0.6, 0.5)] + [(0.5, 0.4)] * since)
    reason = best.reason_to_stop(epoch)
    assert (reason is not None) == stops
    if reason:
        assert reason == "early stopping: 3 evaluations without a new best auroc (best: 0.6000 at step 1)"


def test_best__goes_on_from_its_state() -> None:
    figures = [(0.6, 0.5), (0.5, 0.4), (0.61, 0.7), (0.59, 0.1), (0.62, 0.1)]
    for cut in range(len(figures)):
        best, is_best = updated(EarlyStoppingConfig(), figures[:cut])
        again = Best(EarlyStoppingConfig())
        again.load_state_dict(best.state_dict())
        is_best += [again.update(step, *pair) for step, pair in enumerate(figures[cut:], cut + 1)]
        assert is_best == [True, False, False, False, True]
        assert (again.figure, again.step, again.since) == (0.62, 5, 0)
