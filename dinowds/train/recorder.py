"""From what a step returns to what is written and shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dinowds.config import RunConfig
from dinowds.crops.batches import Batch
from dinowds.data.source import describe
from dinowds.errors import TrainingError
from dinowds.model.dino import architecture_of
from dinowds.train.diagnostics import loss_figures, peak_flops, step_flops
from dinowds.train.monitor import (
    BAD_SAMPLES_NAME,
    BAD_STEPS_NAME,
    Capacity,
    EpochMeans,
    Journal,
    Observer,
    Progress,
    Stopwatch,
    append_lines,
)
from dinowds.train.schedule import StepValues
from dinowds.train.watch import Watch
from dinowds.world import World


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
        num_bad_steps: int,
        num_prototypes: int,
        capacity: Capacity,
        last_checkpoint: Callable[[], Path | None],
    ) -> None:
        """`journal`: None on ranks other than 0. `num_bad`: samples replaced before this start. `num_bad_steps`: steps
        not applied before it. `last_checkpoint`: the newest one when it is whole on disk, called on all ranks at once.
        """
        self.stopping = False
        """Some rank was asked to stop; all ranks know it after the same step."""
        self.num_bad = num_bad
        """Samples replaced so far, on all ranks."""
        self.num_bad_steps = num_bad_steps
        """Steps not applied so far."""
        self._out, self._config, self._journal, self._observer = out, config, journal, observer
        self._steps_per_epoch, self._end_step = steps_per_epoch, end_step
        self._num_prototypes, self._last_checkpoint = num_prototypes, last_checkpoint
        self._stopwatch, self._means = Stopwatch(capacity), EpochMeans()
        self._watch = Watch(config, num_prototypes)
        self._late: _Late | None = None
        self._newest: dict[str, float] = {}
        self._bad_in_a_row = 0

    def is_logged(self, step: int) -> bool:
        """Whether the `step`-th step, from 1, gets a line of metrics.jsonl."""
        return step % self._config.train.log_every == 0 or step in (1, self._end_step)

    def record(self, step: int, metrics: Mapping[str, Tensor], values: StepValues, batch: Batch, waited: float) -> None:
        """Take the metrics of the step just launched, the `step`-th from 1; read those of the one before.

        `waited`: seconds from asking for the batch until it was there; they count if the device had run out of work.

        Raises:
            TrainingError: too many steps in a row that could not be applied, or too many bad samples; on all ranks
                after the same step.
        """
        device_was_idle = self._late is None or self._late.numbers.have_arrived()
        self._stopwatch.add(waited if device_was_idle else 0.0, self._config.train.batch_size)
        before, self._late = self._late, _Late(step, _Numbers(metrics), values, batch.keys)
        append_lines(self._out / BAD_SAMPLES_NAME, [{"step": step, **describe(bad)} for bad in batch.bad])
        if before:
            self._read(before)
        self._report(step)

    def flush(self) -> None:
        """Read what is still under way, so that a checkpoint counts all bad samples."""
        if self._late:
            self._read(self._late)
            self._late = None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A line of figures; on ranks other than 0, nothing."""
        if figures and self._journal:
            self._newest |= figures
            self._means.add(figures)
            self._journal.write(step, figures)
            self._report(step)

    def _read(self, late: _Late) -> None:
        figures = late.numbers.read()
        self.stopping |= figures.pop("stop") > 0
        self._count_bad_samples(round(figures.pop("bad_samples")))
        self._guard(late, figures.pop("bad_step") > 0, figures)
        if self.is_logged(late.step):
            line = self._line(late.step, figures, late.values)
            self.write(late.step, line)
            self._judge(late.step, line)

    def end_epoch(self, step: int) -> None:
        """Tell of the epoch that ends with the `step`-th step."""
        epoch = step // self._steps_per_epoch
        self._observer.epoch(self._means.read(step, epoch, self._config.optim.epochs))

    def _judge(self, step: int, line: Mapping[str, float]) -> None:
        """Say what goes wrong, or end the run. On all ranks alike: they have the same figures."""
        monitor = self._config.monitor
        for finding in self._watch.look(step, line):
            if monitor.stop:
                raise TrainingError(f"step {step}: {finding} (monitor.stop)")
            if monitor.warn:
                self._observer.message(f"warning: step {step}: {finding}")

    def _count_bad_samples(self, more: int) -> None:
        self.num_bad += more
        if self.num_bad > (budget := self._config.data.max_bad_samples):
            raise TrainingError(
                f"{self._out / BAD_SAMPLES_NAME}: {self.num_bad} samples could not be read, data.max_bad_samples is "
                f"{budget}; check the dataset with 'dinowds inspect --verify', or raise it"
            )

    def _guard(self, late: _Late, is_bad: bool, figures: Mapping[str, float]) -> None:
        """Tell of steps that were not applied, and end the run after too many of them in a row."""
        overflowed = figures.get("loss_scale", 1.0) > 1 and math.isfinite(figures["loss"])  # a smaller scale mends it
        if not is_bad or overflowed:
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        self.num_bad_steps += 1
        path, limit = self._out / BAD_STEPS_NAME, self._config.train.max_bad_steps
        append_lines(path, [{"step": late.step, "loss": str(figures["loss"]), "keys": late.keys}])
        if self._bad_in_a_row == 1:
            self._observer.message(
                f"step {late.step} was not applied: its loss is {figures['loss']:g}, its gradients are not all finite; "
                f"its samples are in {path}"
            )
        if self._bad_in_a_row >= limit:
            checkpoint = self._last_checkpoint()
            kept = f"the last checkpoint, {checkpoint}, is good" if checkpoint else "there is no checkpoint yet"
            raise TrainingError(
                f"{limit} steps in a row (train.max_bad_steps), the last of them step {late.step}, had a loss or "
                f"gradients that are not finite, and were not applied; {kept}; their samples are in {path}; try a "
                "lower optim.lr or optim.clip_grad, or speed.precision=fp32, in another --out with student.init_from"
            )

    def _line(self, step: int, figures: Mapping[str, float], values: StepValues) -> dict[str, float]:
        return {
            **figures,
            **loss_figures(figures["loss"], figures["teacher_entropy"], self._num_prototypes),
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "momentum": values.momentum,
            "teacher_temperature": values.teacher_temperature,
            "epoch": (step - 1) / self._steps_per_epoch,
            **self._stopwatch.read(),
            "bad_samples": self.num_bad,
            "bad_steps": self.num_bad_steps,
        }

    def _report(self, step: int) -> None:
        epoch = (step - 1) // self._steps_per_epoch + 1
        epochs = self._config.optim.epochs
        self._observer.progress(Progress(step, self._end_step, epoch, epochs, self._newest))


def capacity_of(config: RunConfig, num_prototypes: int, world: World, device: torch.device) -> Capacity:
    """Of all ranks' devices, taken to be alike."""
    speed = config.speed
    peak = None
    if device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(device), speed.precision, speed.tf32)
    return Capacity(
        device, step_flops(architecture_of(config), config, num_prototypes), peak * world.size if peak else None
    )


class _Numbers:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self._names, self._values, self._arrived = list(numbers), torch.stack(list(numbers.values())), None
        if self._values.device.type == "cuda":
            self._values = torch.empty(self._values.shape, pin_memory=True).copy_(self._values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def have_arrived(self) -> bool:
        """Whether the device is done with their step. Asked after the wait for the next batch."""
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def read(self) -> dict[str, float]:
        """Waits for the step that they are of, and for none after it."""
        if self._arrived:
            self._arrived.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


class _Late:
    """A step whose numbers are not read yet."""

    def __init__(self, step: int, numbers: _Numbers, values: StepValues, keys: list[str]) -> None:
        self.step, self.numbers, self.values, self.keys = step, numbers, values, keys
