"""Which evaluation was the best, and when there is no hope of a better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dinowds.config import EarlyStoppingConfig

FIGURES = {"auc": "auroc", "acc": "accuracy", "balanced_acc": "balanced_accuracy"}
"""`tune.early_stopping.tracking` → the figure's name."""


@dataclass
class Best:
    """An evaluation is the best so far if the teacher's figure is at least as good as in the best one before it, and
    better than the student's.
    """

    config: EarlyStoppingConfig
    figure: float | None = None
    """The teacher's; None before the first."""
    step: int = 0
    since: int = 0
    """Evaluations after it."""

    def update(self, step: int, teacher: float, student: float) -> bool:
        """Take the figures of an evaluation; whether it is the best."""
        sign = 1 if self.config.min_max == "max" else -1
        is_best = sign * teacher > sign * student and (self.figure is None or sign * teacher >= sign * self.figure)
        if is_best:
            self.figure, self.step, self.since = teacher, step, 0
        else:
            self.since += 1
        return is_best

    def reason_to_stop(self, epoch: int) -> str | None:
        """After `epoch` whole epochs; None where the run is to go on."""
        config = self.config
        if not config.enable or self.since < config.patience or epoch < config.min_epoch:
            return None
        best = "none so far" if self.figure is None else f"{self.figure:.4f} at step {self.step}"
        return f"early stopping: {self.since} evaluations without a new best {FIGURES[config.tracking]} (best: {best})"

    def state_dict(self) -> dict[str, Any]:
        return {"figure": self.figure, "step": self.step, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.figure, self.step, self.since = state["figure"], state["step"], state["since"]
