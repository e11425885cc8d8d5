"""Schedules against arrays built the long way round."""

from __future__ import annotations

import numpy as np
import pytest

from dinowds.config import PatchConfig
from dinowds.train.schedule import cosine, linear_warmup, values_at, warmup_cosine


def array_by_definition(base: float, final: float, steps: int, warmup: int) -> list[float]:
    start = np.linspace(0, base, warmup)
    i = np.arange(steps - warmup)
    return [*start, *(final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / len(i))))]


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 1), (10, 2), (57, 13)])
def test_warmup_cosine__equals_the_array(steps: int, warmup: int) -> None:
    expected = array_by_definition(0.3, 0.001, steps, warmup)
    assert [warmup_cosine(i, 0.3, 0.001, steps, warmup) for i in range(steps)] == pytest.approx(expected, abs=1e-12)


def test_cosine__starts_at_base_and_comes_near_final() -> None:
    assert cosine(0, 0.04, 0.4, 1000) == pytest.approx(0.04)
    assert cosine(999, 0.04, 0.4, 1000) == pytest.approx(0.4, abs=1e-5)


def test_linear_warmup__per_epoch_both_ends_included() -> None:
    assert [linear_warmup(e, 0.04, 0.07, 4) for e in range(6)] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert linear_warmup(0, 0.04, 0.07, 0) == 0.07
    assert linear_warmup(0, 0.04, 0.07, 1) == 0.04


def test_values_at__reference_numbers() -> None:
    config = PatchConfig()
    config.train.batch_size = 1024
    start, peak, last = (values_at(config, 100, step) for step in (0, 299, 4999))
    assert (start.lr, start.weight_decay, start.momentum) == pytest.approx((0.0, 0.04, 0.996))
    assert peak.lr == pytest.approx(0.0005 * 1024 / 256)
    assert last.lr == pytest.approx(1e-6, abs=1e-8)
    assert last.weight_decay == pytest.approx(0.4, abs=1e-5)
    assert last.momentum == pytest.approx(1.0, abs=1e-6)
    assert [values_at(config, 100, step).freeze_last_layer for step in (0, 99, 100)] == [True, True, False]
    assert start.teacher_temperature == 0.04


def test_values_at__momentum_ends_where_it_is_told_to() -> None:
    config = PatchConfig()
    config.teacher.momentum_teacher, config.teacher.final_momentum_teacher = 0.9, 0.98
    assert [values_at(config, 100, step).momentum for step in (0, 2500, 4999)] == pytest.approx([0.9, 0.94, 0.98])


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_values_at__scales_the_peak_with_the_batch(scaling: str, factor: float) -> None:
    config = PatchConfig()
    config.train.batch_size, config.optim.lr_scaling = 1024, scaling
    assert values_at(config, 100, 299).lr == pytest.approx(0.0005 * factor)
    config.train.batch_size = 256
    assert values_at(config, 100, 299).lr == pytest.approx(0.0005)
