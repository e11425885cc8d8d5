"""What a run asks of an evaluation of its models while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dinowds.model.dino import DinoModel


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says, the same on all ranks."""

    figures: dict[str, float]
    """For metrics.jsonl."""
    is_best: bool = False
    """No earlier step's weights were better."""
    stop: str | None = None
    """Why the run is to end here; None to go on."""


class Evaluation(Protocol):
    """Of student and teacher. All ranks call it at the same steps; it leaves models and random numbers as they were."""

    def is_due(self, step: int, steps_per_epoch: int, is_last: bool) -> bool:
        """Whether to evaluate after `step` optimizer steps; `is_last`: the run ends with it."""
        ...

    def __call__(self, step: int, epoch: int, student: DinoModel, teacher: DinoModel) -> Verdict:
        """Evaluate after `step` optimizer steps, which are `epoch` whole epochs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What later verdicts depend on: plain numbers and strings, the same on all ranks."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; {} for a checkpoint without."""
        ...


class Figures:
    """An `Evaluation` by a function: figures of student and teacher every so many steps; it judges nothing."""

    def __init__(self, function: Callable[[int, DinoModel, DinoModel], dict[str, float]], every: int = 1) -> None:
        """`function`: (steps done, student, teacher) → figures. On several ranks, all of them call it."""
        self._function, self._every = function, every

    def is_due(self, step: int, steps_per_epoch: int, is_last: bool) -> bool:  # noqa: ARG002
        return step % self._every == 0

    def __call__(self, step: int, epoch: int, student: DinoModel, teacher: DinoModel) -> Verdict:  # noqa: ARG002
        return Verdict(self._function(step, student, teacher))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
