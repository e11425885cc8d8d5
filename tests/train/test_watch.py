"""What the monitor finds: in series of figures, and in runs that were provoked to go wrong."""

from __future__ import annotations

import math

import pytest

from dinowds.config import load_config
from dinowds.train.watch import ADVICE, Finding, Watch
from tests.train.provoked import Settings, config_of, figures_of_run

CONFIG = load_config(None, ["train.batch_size=256", "optim.lr=1e-3"])
PROTOTYPES = (64, 1024, 65536)


def healthy(num_prototypes: int, share: float = 0.8) -> dict[str, float]:
    """Of a run whose loss is `share` of ln K."""
    loss = share * math.log(num_prototypes)
    return {
        "loss": loss,
        "loss_share": share,
        "teacher_entropy": loss * 0.9,
        "kl": loss * 0.1,
        "output_perplexity": num_prototypes * 0.8,
        "prototypes_in_use": 12,
        "student_std": 0.4,
        "teacher_std": 0.5,
        "centre_norm": 0.05 * math.sqrt(num_prototypes),
        "teacher_distance": 0.04,
        "gradient_norm/all": 0.7,
        "gradient_norm/head.mlp": 0.2,
        "gradient_norm/head.last_layer": 0.3,
        "lr": 1e-3,
        "momentum": 0.99,
        "teacher_temperature": 0.04,
        "bad_steps": 0,
    }


def flat(num_prototypes: int) -> dict[str, float]:
    ln_k = math.log(num_prototypes)
    return healthy(num_prototypes) | {"loss": ln_k, "loss_share": 1.0, "teacher_entropy": ln_k - 1e-3, "kl": 1e-3}


def one_prototype(num_prototypes: int) -> dict[str, float]:
    return healthy(num_prototypes, 0.01) | {"output_perplexity": 1.01, "prototypes_in_use": 1}


def watch_series(watch: Watch, *parts: tuple[int, dict[str, float]], every: int = 10) -> list[tuple[int, str]]:
    """(step, finding) of a series: each part goes on until its step."""
    found, step = [], 0
    for until, figures in parts:
        while step < until:
            step += every
            found += [(step, finding.name) for finding in watch.look(step, figures)]
    return found


@pytest.mark.parametrize("num_prototypes", PROTOTYPES)
def test_watch__healthy_series_raises_nothing(num_prototypes: int) -> None:
    start = healthy(num_prototypes, 1.0) | {"gradient_norm/all": 50.0, "gradient_norm/head.mlp": 100.0}
    parts = [(100, start), (1000, healthy(num_prototypes)), (5000, healthy(num_prototypes, 0.3))]
    assert watch_series(Watch(CONFIG, num_prototypes), *parts) == []


@pytest.mark.parametrize("num_prototypes", PROTOTYPES)
def test_watch__first_steps_of_any_run_raise_nothing(num_prototypes: int) -> None:
    """Loss at ln K, weights that have not moved, a frozen last layer, outputs that are not centred yet."""
    frozen = {"gradient_norm/head.last_layer": 0.0, "lr": 0.0}
    first = flat(num_prototypes) | frozen | {"teacher_distance": 0.0, "output_perplexity": 1.0, "prototypes_in_use": 1}
    watch = Watch(CONFIG, num_prototypes)
    assert [watch.look(step, figures) for step in (1, 10) for figures in [first]] == [[], []]
    assert watch_series(watch, (40, first), (2000, healthy(num_prototypes))) == []


@pytest.mark.parametrize("num_prototypes", PROTOTYPES)
@pytest.mark.parametrize("every", [1, 10, 50])
def test_watch__stuck_at_ln_k_is_told_once(num_prototypes: int, every: int) -> None:
    found = watch_series(Watch(CONFIG, num_prototypes), (3000, flat(num_prototypes)), every=every)
    assert [name for _, name in found] == ["stuck_at_ln_k"]
    assert 200 <= found[0][0] <= 200 + 2 * every


@pytest.mark.parametrize("num_prototypes", PROTOTYPES)
@pytest.mark.parametrize("figure", ["loss", "teacher_entropy"])
def test_watch__as_near_to_ln_k_as_runs_that_learn_is_not_stuck(num_prototypes: int, figure: str) -> None:
    """0.03 nats away with one of the two."""
    figures = flat(num_prototypes) | {figure: math.log(num_prototypes) - 0.03}
    assert watch_series(Watch(CONFIG, num_prototypes), (3000, figures)) == []


def test_watch__waits_for_the_learning_rate_of_a_long_warmup() -> None:
    """10,000 steps of warmup: 2,000 of them are worth 200 at the full rate."""
    watch = Watch(CONFIG, 65536)
    found = [
        step for step in range(10, 3000, 10) if watch.look(step, flat(65536) | {"lr": 1e-3 * min(1, step / 10000)})
    ]
    assert len(found) == 1
    assert found[0] == pytest.approx(2000, rel=0.02)


def test_watch__back_at_ln_k_after_it_had_learnt_is_a_collapse() -> None:
    parts = [(200, flat(1024)), (400, healthy(1024)), (600, flat(1024))]
    assert watch_series(Watch(CONFIG, 1024), *parts) == [(460, "uniform_collapse")]


def test_watch__a_dip_at_the_start_is_not_learning() -> None:
    parts = [(90, healthy(1024)), (600, flat(1024))]
    assert [name for _, name in watch_series(Watch(CONFIG, 1024), *parts)] == ["stuck_at_ln_k"]


def test_watch__a_temperature_that_cannot_sharpen_is_a_collapse() -> None:
    figures = flat(1024) | {"teacher_temperature": 0.1}
    assert watch_series(Watch(CONFIG, 1024), (600, figures)) == [(60, "uniform_collapse")]


@pytest.mark.parametrize("num_prototypes", PROTOTYPES)
def test_watch__one_prototype(num_prototypes: int) -> None:
    parts = [(200, healthy(num_prototypes)), (600, one_prototype(num_prototypes))]
    assert watch_series(Watch(CONFIG, num_prototypes), *parts) == [(260, "one_prototype")]


@pytest.mark.parametrize("change", [{"output_perplexity": 1.6}, {"prototypes_in_use": 3}])
def test_watch__few_prototypes_are_more_than_one(change: dict[str, float]) -> None:
    assert watch_series(Watch(CONFIG, 1024), (600, one_prototype(1024) | change)) == []


@pytest.mark.parametrize(
    "change", [{"teacher_distance": 0.0}, {"gradient_norm/all": 1e-9, "kl": 0.5}], ids=["unmoved", "no gradient"]
)
def test_watch__dead_student(change: dict[str, float]) -> None:
    parts = [(200, healthy(1024)), (400, healthy(1024) | change)]
    assert watch_series(Watch(CONFIG, 1024), *parts) == [(260, "dead_student")]


@pytest.mark.parametrize(
    "change",
    [{"teacher_distance": 0.0, "momentum": 0.0}, {"gradient_norm/all": 1e-9, "kl": 1e-6}],
    ids=["teacher is the student", "nothing left to learn"],
)
def test_watch__alive_student(change: dict[str, float]) -> None:
    assert watch_series(Watch(CONFIG, 1024), (400, healthy(1024) | change)) == []


@pytest.mark.parametrize(
    "change",
    [{"loss_share": 1.2}, {"centre_norm": 40.0}, {"gradient_norm/head.last_layer": 2000.0}],
    ids=["loss", "centre", "gradient"],
)
def test_watch__diverging_head(change: dict[str, float]) -> None:
    parts = [(200, healthy(1024)), (400, healthy(1024) | change)]
    assert watch_series(Watch(CONFIG, 1024), *parts) == [(230, "diverging_head")]


def test_watch__a_single_spike_of_the_loss_is_no_news() -> None:
    parts = [(200, healthy(1024)), (210, healthy(1024, 2.0)), (500, healthy(1024))]
    assert watch_series(Watch(CONFIG, 1024), *parts) == []


def test_watch__a_loss_that_swings_diverges() -> None:
    watch, steps = Watch(CONFIG, 1024), range(200, 400, 10)
    swinging = [healthy(1024, 3.0 if step % 40 == 0 else 0.1) for step in steps]
    found = [watch.look(step, figures) for step, figures in zip(steps, swinging, strict=True)]
    assert [(step, finding.name) for step, new in zip(steps, found, strict=True) for finding in new] == [
        (280, "diverging_head")
    ]


def test_watch__non_finite_steps_recurring() -> None:
    watch = Watch(CONFIG, 1024)
    found = []
    for step in range(10, 500, 10):
        bad = 5 + max(0, step - 300) // 20  # a few at the start, then one in every 20 steps
        found += [(step, finding.name) for finding in watch.look(step, healthy(1024) | {"bad_steps": bad})]
    assert found == [(360, "non_finite_steps")]


def test_watch__a_loss_scale_that_finds_its_value_is_no_news() -> None:
    watch = Watch(CONFIG, 1024)
    bad = [min(step, 6) + (step > 2100) for step in range(1, 4000)]  # six steps, and one after 2,000 good ones
    figures = [healthy(1024) | {"bad_steps": number} for number in bad]
    assert [watch.look(step, figures[step - 1]) for step in range(1, 4000) if figures] == [[]] * 3999


def test_watch__told_again_only_after_it_went_away() -> None:
    sick, well = one_prototype(1024), healthy(1024)
    flickering = [(10 * step, sick if step % 4 else well) for step in range(30, 100)]
    watch = Watch(CONFIG, 1024)
    assert watch_series(watch, (200, well), (300, sick)) == [(260, "one_prototype")]
    assert [watch.look(step, figures) for step, figures in flickering] == [[]] * 70
    assert watch_series(watch, (300, well), (600, sick)) == [(360, "one_prototype")]


def test_watch__missing_and_nan_figures_find_nothing() -> None:
    nan = dict.fromkeys(healthy(1024), math.nan)
    assert watch_series(Watch(CONFIG, 1024), (500, nan), (1000, {})) == []


def test_finding__is_one_line_with_figure_causes_and_options() -> None:
    watch = Watch(CONFIG, 1024)
    findings = [finding for step in range(10, 400, 10) for finding in watch.look(step, flat(1024))]
    text = str(findings[0])
    assert "\n" not in text
    assert text.startswith("stuck at ln k: loss 6.931 stays at ln 1,024 = 6.931, with KL 0.0010")
    assert "Usual causes: features of all images are nearly equal" in text
    assert "Try: student.use_bn_in_head=true; student.out_dim=auto; " in text


def test_finding__leaves_out_what_is_set_already() -> None:
    watch = Watch(load_config(None, ["student.use_bn_in_head=true"]), 1024)
    findings = [finding for step in range(10, 1000, 10) for finding in watch.look(step, flat(1024))]
    assert not any("use_bn_in_head" in option for option in findings[0].options)


def test_advice__names_keys_that_exist() -> None:
    for advice in ADVICE.values():
        for option in advice.options:
            if "=" in option:
                load_config(None, [option])


def findings_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    watch = Watch(config_of(settings), settings.num_prototypes)
    return [finding for step, figures in figures_of_run(settings, monkeypatch) for finding in watch.look(step, figures)]


def test_provoked__healthy_run_learns_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    watch, shares = Watch(config_of(settings), settings.num_prototypes), []
    for step, figures in figures_of_run(settings, monkeypatch):
        assert watch.look(step, figures) == []
        shares.append(figures["loss_share"])
    assert min(shares[-10:]) < 0.95


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(steps=120, temperature=0.005, centred=False, batch_norm=False), "one_prototype"),
        (Settings(steps=240, centred=False), "one_prototype"),
        (Settings(steps=140, temperature=10.0), "uniform_collapse"),
        (Settings(steps=80, lr=0.0), "dead_student"),
        (Settings(steps=160, lr=1.0, warmup=0, clip=0.0), "diverging_head"),
        (Settings(steps=360, num_prototypes=1024, batch_norm=False, lr=5e-4, num_images=64), "stuck_at_ln_k"),
    ],
    ids=["no centre, sharp", "no centre", "hot", "no rate", "huge rate", "stuck"],
)
def test_provoked__bad_settings_are_named(settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in [finding.name for finding in findings_of(settings, monkeypatch)]
