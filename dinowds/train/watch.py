"""Names what goes wrong with a run, from its figures at log points. Decides alone; others say it, or stop the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dinowds.config import RunConfig, flatten, to_dict
from dinowds.train.loss import STUDENT_TEMPERATURE
from dinowds.train.schedule import peak_lr

Figures = Mapping[str, float]

FLAT = 0.02
"""Nats below ln K: an output this near to uniform tells images apart by less than a student can learn from. Runs that
learn stay 0.03 or more away while they find their way; runs that are stuck come within 0.001 to 0.018."""
LEARNT_SHARE = 0.95
"""Of ln K: a loss below it was learning, if it was not the start."""
ONE_PERPLEXITY, ONE_IN_USE = 1.5, 2
"""Fewer than two prototypes in the mean output, and that are some output's largest. Runs that learn use 5 and more."""
NO_MOVE = 1e-6
"""Distance of teacher and student that rounding alone would give; the longest warmup exceeds it in a few steps."""
NO_GRADIENT = 1e-7
"""Norm of all gradients below which AdamW's ε of 1e-8 takes over."""
NO_KL = 0.01
"""Of ln K: with a KL below it a gradient of zero is right, for there is nothing left to learn."""
WORSE_THAN_CHANCE = 1.1
"""Of ln K: a student that knows nothing has 1; one that does not move had at most 1.03."""
CENTRE_RMS = 1.0
"""Root mean square of the centre over prototypes. Logits are cosines times a prototype's norm, which begins at 1; runs
that learn have 0.01 to 0.1."""
HEAD_GRADIENT = 1000.0
"""Norm of a part of the head's: 1 / τ_s bounds that of a logit to 14; the first steps had at most 130."""

EARLY_STEPS = 100
"""Five times as long as the centre (momentum 0.9) needs to follow the outputs; until then figures tell of the start."""
PATIENCE = 50
"""Steps that something has to last, at three log points in a row, before it is told."""
RECENT, RECURRING = 10, 3
"""Among this many of the last log points, this many show that something recurs: a run that diverges swings."""
FULL_RATE_STEPS = 200.0
"""Steps at the full learning rate that a loss may stay at ln K; those of the warmup count by their rate's share."""
POINTS = 3
"""Log points in a row: before something is told, and without it before it is told again."""


@dataclass(frozen=True)
class Finding:
    """Something that goes wrong."""

    name: str
    """Key of `ADVICE`."""
    what: str
    """With the figure."""
    causes: tuple[str, ...]
    """The usual ones, most frequent first."""
    options: tuple[str, ...]
    """To change, with their keys."""

    def __str__(self) -> str:
        return f"{self.what}. Usual causes: {'; '.join(self.causes)}. Try: {'; '.join(self.options)}."


class Advice(NamedTuple):
    causes: tuple[str, ...]
    options: tuple[str, ...]
    """Those that are `key=value` are left out where the configuration says so already."""


ADVICE: Mapping[str, Advice] = {
    "uniform_collapse": Advice(
        (
            "the teacher's temperature is too high to sharpen its output",
            "a learning rate that destroyed what was learnt",
        ),
        ("a lower teacher.teacher_temp, such as 0.04", "more teacher.warmup_teacher_temp_epochs", "a lower optim.lr"),
    ),
    "stuck_at_ln_k": Advice(
        (
            "features of all images are nearly equal at the start, and centring takes off what they share",
            "more prototypes than so few samples can tell apart",
            "a batch too small for the centre",
        ),
        (
            "student.use_bn_in_head=true",
            "student.out_dim=auto",
            "a lower teacher.warmup_teacher_temp",
            "a larger train.batch_size",
            "weights to begin with in student.init_from",
        ),
    ),
    "one_prototype": Advice(
        (
            "the teacher's temperature is too low for its centre to keep up",
            "a teacher that follows the student too fast",
            "a learning rate that is too high",
        ),
        (
            "loss.centering=sinkhorn_knopp",
            "a higher teacher.warmup_teacher_temp and teacher.teacher_temp, 0.04 to 0.07",
            "a higher teacher.momentum_teacher",
            "a lower optim.lr",
            "a larger train.batch_size",
        ),
    ),
    "dead_student": Advice(
        ("a learning rate of zero, or too small for the weights' precision", "gradients that vanish"),
        ("a higher optim.lr", "fewer optim.warmup_epochs", "speed.precision=bf16", "a higher optim.clip_grad, or 0"),
    ),
    "diverging_head": Advice(
        ("a learning rate that is too high", "gradients that are not clipped", "a warmup that is too short"),
        (
            "a lower optim.lr",
            "optim.clip_grad=1.0",
            "optim.clip=global",
            "more optim.warmup_epochs",
            "student.norm_last_layer=true",
            "more optim.freeze_last_layer_epochs",
        ),
    ),
    "non_finite_steps": Advice(
        ("a learning rate that is too high", "values beyond the range of fp16", "damaged samples"),
        ("a lower optim.lr", "speed.precision=bf16", "optim.clip=global", "'dinowds inspect --verify' on the data"),
    ),
}


class Watch:
    """Looks at the figures of each log point. Finds nothing in what the first steps of every run look like."""

    def __init__(self, config: RunConfig, num_prototypes: int) -> None:
        self._config, self._num_prototypes = config, num_prototypes
        self._ln_k = math.log(num_prototypes)
        self._peak_lr = peak_lr(config.optim.lr, config.optim.lr_scaling, config.train.batch_size)
        self._clock = _Moment(0, 0.0)
        self._has_learnt = False
        self._recent: deque[Figures] = deque(maxlen=RECENT)
        self._watched: list[tuple[str, _Spell, Callable[[Figures], str | None]]] = [
            ("uniform_collapse", _Spell(PATIENCE), self._uniform),
            ("stuck_at_ln_k", _Spell(PATIENCE, FULL_RATE_STEPS), self._stuck),
            ("one_prototype", _Spell(PATIENCE), self._one_prototype),
            ("dead_student", _Spell(PATIENCE), self._dead),
            ("diverging_head", _Spell(0, points=1), self._diverging),
            ("non_finite_steps", _Spell(0, points=1), self._non_finite),
        ]

    def look(self, step: int, figures: Figures) -> list[Finding]:
        """What is newly found after `step` steps; each thing once, and again only if it went away and came back.

        Args:
            figures: those of `diagnostics`, of the step's values and `bad_steps` (steps not applied so far). What is
                missing or NaN finds nothing.
        """
        rate = figures.get("lr", 0.0) / self._peak_lr if self._peak_lr > 0 else 0.0
        self._clock = self._clock.later(step, rate)
        self._has_learnt |= step > EARLY_STEPS and _figure(figures, "loss_share") < LEARNT_SHARE
        self._recent.append(figures)
        findings = []
        for name, spell, sentence in self._watched:
            what = sentence(figures)
            if spell.is_news(what is not None, self._clock) and what is not None:
                findings.append(self._finding(name, what))
        return findings

    def _finding(self, name: str, what: str) -> Finding:
        values = flatten(to_dict(self._config))
        advice = ADVICE[name]
        options = [option for option in advice.options if not _is_set(option, values)]
        return Finding(name, f"{name.replace('_', ' ')}: {what}", advice.causes, tuple(options))

    def _is_flat(self, figures: Figures) -> bool:
        """The teacher's output is uniform, and the student's too."""
        entropy, loss = _figure(figures, "teacher_entropy"), _figure(figures, "loss")
        return self._ln_k - entropy <= FLAT and abs(loss - self._ln_k) <= FLAT

    def _cannot_sharpen(self, figures: Figures) -> bool:
        return _figure(figures, "teacher_temperature") >= STUDENT_TEMPERATURE

    def _uniform(self, figures: Figures) -> str | None:
        if not self._is_flat(figures) or not (self._has_learnt or self._cannot_sharpen(figures)):
            return None
        return (
            f"the teacher's output is the same for all prototypes; its entropy {figures['teacher_entropy']:.3f} is ln "
            f"{self._num_prototypes:,} = {self._ln_k:.3f} and KL is {_figure(figures, 'kl'):.4f}, at a temperature of "
            f"{_figure(figures, 'teacher_temperature'):g}"
        )

    def _stuck(self, figures: Figures) -> str | None:
        if not self._is_flat(figures) or self._has_learnt or self._cannot_sharpen(figures):
            return None
        return (
            f"loss {figures['loss']:.3f} stays at ln {self._num_prototypes:,} = {self._ln_k:.3f}, with KL "
            f"{_figure(figures, 'kl'):.4f} and features' std {_figure(figures, 'teacher_std'):.2f} of 1; "
            "nothing is learnt"
        )

    def _one_prototype(self, figures: Figures) -> str | None:
        perplexity, in_use = _figure(figures, "output_perplexity"), _figure(figures, "prototypes_in_use")
        if not (perplexity <= ONE_PERPLEXITY and in_use <= ONE_IN_USE):
            return None
        return (
            f"the teacher gives all images the same prototype; {in_use:.0f} of {self._num_prototypes:,} in use, "
            f"perplexity of the mean output {perplexity:.2f}, loss {_figure(figures, 'loss'):.3f}"
        )

    def _dead(self, figures: Figures) -> str | None:
        distance, momentum = _figure(figures, "teacher_distance"), _figure(figures, "momentum")
        if distance <= NO_MOVE and momentum > 0:
            return f"its weights do not change; distance to the teacher {distance:.1e} of their norm"
        gradient, kl = _figure(figures, "gradient_norm/all"), _figure(figures, "kl")
        if gradient <= NO_GRADIENT and kl > NO_KL * self._ln_k:
            return f"its gradients vanish; their norm is {gradient:.1e} at KL {kl:.3f}"
        return None

    def _diverging(self, _: Figures) -> str | None:
        """The first of its three signs."""
        if self._clock.step < PATIENCE:
            return None
        if share := self._recurring(lambda figures: _figure(figures, "loss_share"), WORSE_THAN_CHANCE):
            return f"the loss was up to {share:.2f} · ln {self._num_prototypes:,}; a student that knows nothing has 1"
        if rms := self._recurring(self._centre_rms, CENTRE_RMS):
            return f"the centre is {rms:.2f} a prototype, which no cosine is: the prototypes' norms grow"
        if norm := self._recurring(_head_gradient, HEAD_GRADIENT):
            return f"the head's gradient has a norm of {norm:.3g}"
        return None

    def _recurring(self, figure: Callable[[Figures], float], limit: float) -> float | None:
        """The largest of the last log points, if `figure` recurs at `limit` or above."""
        above = [value for value in map(figure, self._recent) if value >= limit]
        return max(above) if len(above) >= RECURRING else None

    def _centre_rms(self, figures: Figures) -> float:
        return _figure(figures, "centre_norm") / math.sqrt(self._num_prototypes)

    def _non_finite(self, _: Figures) -> str | None:
        if self._clock.step <= EARLY_STEPS:  # a loss scale of fp16 finds its value
            return None
        totals = [_figure(figures, "bad_steps") for figures in self._recent]
        times = sum(after > before for before, after in pairwise(totals))
        if times < RECURRING:
            return None
        return f"{totals[-1] - totals[0]:.0f} of the last steps had a loss or gradient that is not finite"


class _Moment(NamedTuple):
    step: int
    full_rate_steps: float
    """Steps, each counted by its learning rate's share of the highest."""

    def later(self, step: int, rate: float) -> _Moment:
        return _Moment(step, self.full_rate_steps + (step - self.step) * rate)


class _Spell:
    """How long something lasts, and whether it was told."""

    def __init__(self, steps: int, full_rate_steps: float = 0.0, points: int = POINTS) -> None:
        self._least, self._least_points = _Moment(steps, full_rate_steps), points
        self._since: _Moment | None = None
        self._points, self._quiet_points = 0, 0
        self._told = False

    def is_news(self, holds: bool, now: _Moment) -> bool:
        """Whether it is to be told now. Called at every log point."""
        if not holds:
            self._since, self._points = None, 0
            self._quiet_points += 1
            self._told &= self._quiet_points < POINTS
            return False
        self._since = self._since or now
        self._points, self._quiet_points = self._points + 1, 0
        lasted = (now.step - self._since.step, now.full_rate_steps - self._since.full_rate_steps)
        is_long = all(had >= least for had, least in zip(lasted, self._least, strict=True))
        news = not self._told and is_long and self._points >= self._least_points
        self._told |= news
        return news


def _figure(figures: Figures, name: str) -> float:
    """NaN where there is none, which no comparison is true of."""
    return figures.get(name, math.nan)


def _head_gradient(figures: Figures) -> float:
    return max(_figure(figures, f"gradient_norm/head.{part}") for part in ("last_layer", "mlp"))


def _is_set(option: str, values: Mapping[str, object]) -> bool:
    key, equals, value = option.partition("=")
    return bool(equals) and str(values.get(key)).lower() == value
