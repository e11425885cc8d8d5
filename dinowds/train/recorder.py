"""From what a step returns to what is written and shown."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from dinowds.config import RunConfig
from dinowds.crops.batches import Batch
from dinowds.data.source import describe
from dinowds.errors import TrainingError
from dinowds.train.monitor import BAD_SAMPLES_NAME, Journal, Observer, Progress, Stopwatch, append_lines
from dinowds.train.schedule import StepValues
from dinowds.train.step import METRICS


class Recorder:
    """Reads metrics back one step late, so that no step waits for its own, and hands them on."""

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        steps_per_epoch: int,
        end_step: int,
        journal: Journal | None,
        observer: Observer,
        num_bad: int,
    ) -> None:
        """`journal`: None on ranks other than 0. `num_bad`: samples replaced before this start."""
        self.stopping = False
        """Some rank was asked to stop; all ranks know it after the same step."""
        self._out, self._config, self._journal, self._observer = out, config, journal, observer
        self._steps_per_epoch, self._end_step = steps_per_epoch, end_step
        self._stopwatch = Stopwatch()
        self._late: tuple[int, _LateNumbers, StepValues] | None = None
        self._newest: dict[str, float] = {}
        self.num_bad = num_bad
        """Samples replaced so far, on all ranks."""

    def record(self, step: int, metrics: Tensor, values: StepValues, batch: Batch, waited: float) -> None:
        """Take the metrics of the step just launched, the `step`-th from 1; read those of the one before.

        `waited`: seconds from asking for the batch until it was there; they count if the device had run out of work.

        Raises:
            TrainingError: a loss that is not finite, or too many bad samples; on all ranks after the same step.
        """
        device_was_idle = self._late is None or self._late[1].have_arrived()
        self._stopwatch.add(waited if device_was_idle else 0.0, self._config.train.batch_size)
        before, self._late = self._late, (step, _LateNumbers(metrics), values)
        append_lines(self._out / BAD_SAMPLES_NAME, [{"step": step, **describe(bad)} for bad in batch.bad])
        if before:
            self._read(*before)
        self._report(step)

    def flush(self) -> None:
        """Read what is still under way, so that a checkpoint is known to be of a finite step."""
        if self._late:
            self._read(*self._late)
            self._late = None

    def write(self, step: int, figures: dict[str, float]) -> None:
        if figures and self._journal:
            self._newest |= figures
            self._journal.write(step, figures)
            self._report(step)

    def _read(self, step: int, metrics: _LateNumbers, values: StepValues) -> None:
        numbers = dict(zip(METRICS, metrics.read(), strict=True))
        self.stopping |= numbers["stop"] > 0
        self.num_bad += round(numbers["bad_samples"])
        if self.num_bad > (budget := self._config.data.max_bad_samples):
            raise TrainingError(
                f"{self._out / BAD_SAMPLES_NAME}: {self.num_bad} samples could not be read, data.max_bad_samples is "
                f"{budget}; check the dataset with 'dinowds inspect --verify', or raise it"
            )
        if not math.isfinite(numbers["loss"]):
            raise TrainingError(
                f"loss is {numbers['loss']} at step {step}; start again in another --out with "
                "a lower optim.lr or optim.clip_grad, or with speed.precision=fp32"
            )
        if step % self._config.train.log_every == 0 or step in (1, self._end_step):
            line = {
                "loss": numbers["loss"],
                "teacher_entropy": numbers["teacher_entropy"],
                "kl": numbers["loss"] - numbers["teacher_entropy"],
                "lr": values.lr,
                "weight_decay": values.weight_decay,
                "momentum": values.momentum,
                "teacher_temperature": values.teacher_temperature,
                "epoch": (step - 1) / self._steps_per_epoch,
                **self._stopwatch.read(),
                "bad_samples": self.num_bad,
            }
            self.write(step, line)

    def _report(self, step: int) -> None:
        epoch = (step - 1) // self._steps_per_epoch + 1
        epochs = self._config.optim.epochs
        self._observer.progress(Progress(step, self._end_step, epoch, epochs, self._newest))


class _LateNumbers:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._arrived = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def have_arrived(self) -> bool:
        """Whether the device is done with their step. Asked after the wait for the next batch."""
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def read(self) -> list[float]:
        """Waits for the step that they are of, and for none after it."""
        if self._arrived:
            self._arrived.synchronize()
        return self._numbers.tolist()
