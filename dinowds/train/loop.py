"""A training run, from a dataset and a configuration to checkpoints. Only wires the parts together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dinowds.config import RunConfig, to_dict
from dinowds.data.dataset import Dataset
from dinowds.data.loader import start_fork_server
from dinowds.data.order.exposure import check_cap
from dinowds.data.order.make import make_plan, order_of
from dinowds.data.order.plan import Order, Plan
from dinowds.data.source import check_cache
from dinowds.errors import CheckpointError, ConfigError, OutputError, StoppedBySignal
from dinowds.files import output_errors
from dinowds.model.architecture import describe_architecture
from dinowds.model.dino import DinoModel, architecture_of, auto_prototypes
from dinowds.remote.files import shown
from dinowds.train import dist
from dinowds.train.alike import facts_of
from dinowds.train.checkpoint import (
    FORMAT_VERSION,
    State,
    Writer,
    checkpoint_path,
    find_latest,
    list_checkpoints,
    load_checkpoint,
    remove_older,
)
from dinowds.train.devices import (
    autocast_dtype,
    choose_device,
    choose_num_workers,
    memory_explained,
    micro_batch_size,
    numerics,
    resolve_precision,
)
from dinowds.train.evaluation import Evaluation, Verdict
from dinowds.train.feed import Fed, cache_options, feed
from dinowds.train.folder import CHECKPOINTS_NAME, own_folder
from dinowds.train.initial import begin_from
from dinowds.train.kinds import check_kind, resolve_kind, view_maker
from dinowds.train.learner import Learner, build_learner, learner_state, load_learner_state, models_on
from dinowds.train.monitor import Journal, LogObserver, Observer, SilentObserver
from dinowds.train.recorder import Recorder, capacity_of
from dinowds.train.schedule import values_at
from dinowds.train.signals import StopRequest, stop_signals
from dinowds.train.sinks import check_sinks, open_sinks
from dinowds.train.step import StepSettings, train_step
from dinowds.world import World


def no_evaluation() -> None:
    """For a run that nothing judges."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves when it has done all its steps, or was ended early by an evaluation."""

    step: int
    checkpoint: Path
    teacher: DinoModel
    student: DinoModel


def train(
    data: Path | str,
    out: Path,
    config: RunConfig,
    observer: Observer | None = None,
    evaluation: Callable[[], Evaluation | None] = no_evaluation,
) -> Outcome:
    """Pretrain in run folder `out`; goes on where an earlier call with the same arguments stopped.

    `data` is DATASET or DATASET:SUBSET, a folder or a URL; of images for a `PatchConfig`, of regions for a
    `RegionConfig`.
    Which rank this is comes from the environment (`World.from_environment`). On SIGINT, SIGTERM or SIGUSR1 the step in
    hand is finished and saved.

    Args:
        evaluation: makes what judges the models meanwhile; called on every rank when all have met.

    Raises:
        StoppedBySignal: stopped early, everything saved.
        DinowdsError: bad input, in one line.
    """
    world = World.from_environment()
    with ExitStack() as stack:
        # First, so that a rank whose host has not all that it needs ends them all.
        joined = dist.process_group(world, partial(choose_device, world), partial(facts_of, config))
        device = stack.enter_context(joined)
        check_sinks(config)
        stack.enter_context(numerics(device, config.speed.tf32, config.train.deterministic))
        dataset = Dataset.open(data)
        dist.check_same_dataset(world, dataset)
        run = _prepare(dataset, out, config, world, device, evaluation())
        dist.on_rank_0(lambda: check_cap(run.dataset, run.plan))
        dist.on_rank_0(lambda: run.maker.check(run.dataset))
        dist.on_rank_0(lambda: stack.enter_context(own_folder(out, run.config)))
        stack.enter_context(closing(run.writer))  # what is being written is whole before the folder is another's
        if world.rank == 0:
            run.observer = LogObserver(out, observer or SilentObserver())
        stop = stack.enter_context(stop_signals())
        with memory_explained(run.config), run.telling_what_is_saved():
            run.start()
            return run.execute(stop)


def _prepare(
    dataset: Dataset, out: Path, config: RunConfig, world: World, device: torch.device, evaluation: Evaluation | None
) -> _Run:
    """Decide what can be decided without writing anything."""
    check_kind(dataset, config)
    plan = make_plan(dataset, order_of(config))
    if choose_num_workers(config.speed.num_workers, world, device):
        start_fork_server()  # it imports while the models are built
    check_cache(dataset, plan, world.num_hosts, cache_options(config).max_bytes)
    config = resolve_kind(resolve(config, plan.order, len(dataset), device), dataset, device, cache_options(config))
    return _Run(dataset, plan, out, config, world, device, evaluation)


def resolve(config: RunConfig, order: Order, num_samples: int, device: torch.device) -> RunConfig:
    """Put the values that are chosen here in the place of null and auto, so that `config.yaml` says what was done."""
    out_dim = auto_prototypes(num_samples) if config.student.out_dim == "auto" else config.student.out_dim
    return replace(
        config,
        student=replace(config.student, out_dim=out_dim),
        data=replace(config.data, partitions=order.partitions, window_chunks=order.window_chunks),
        speed=replace(config.speed, precision=resolve_precision(config.speed.precision, device)),
    )


class _Run:
    observer: Observer = SilentObserver()
    learner: Learner

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        out: Path,
        config: RunConfig,
        world: World,
        device: torch.device,
        evaluation: Evaluation | None,
    ) -> None:
        """Decides everything that follows from the arguments; nothing is written and no rank is asked."""
        self.dataset, self.plan, self.out, self.config = dataset, plan, out, config
        self.world, self.device, self.evaluation = world, device, evaluation
        self.step, self.num_bad, self.num_bad_steps = 0, 0, 0
        self.ended: str | None = None
        """Why an evaluation ended the run before its last step."""
        self.maker = view_maker(config, device)
        self.steps_per_epoch = plan.steps_per_epoch
        self.num_steps = config.optim.epochs * self.steps_per_epoch
        self.end_step = min(self.num_steps, config.optim.max_steps or self.num_steps)
        self.settings = _step_settings(config, world, device)
        self.writer = Writer(out / CHECKPOINTS_NAME, config.train.keep_checkpoints)

    @contextmanager
    def telling_what_is_saved(self) -> Iterator[None]:
        """A run folder that cannot be written ends the run: its error names the checkpoint that there is."""
        try:
            yield
        except OutputError as error:
            self.writer.close()  # one that is under way may become whole
            newest = next(iter(list_checkpoints(self.out / CHECKPOINTS_NAME)), None)
            saved = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
            raise OutputError(f"{error}; {saved}") from None

    def start(self) -> None:
        """Build the models and load the newest checkpoint, if there is one. Rank 0 chooses it for all ranks."""
        path = dist.on_rank_0(lambda: find_latest(self.out / CHECKPOINTS_NAME, self.observer.message))
        student, teacher = models_on(self.config, self.device)
        if path is None and self.config.student.init_from is not None:
            self._begin(student, teacher)
        self.learner = build_learner(self.config, student, teacher, self.device)
        if path is not None:
            self._go_on(path)

    def _begin(self, student: DinoModel, teacher: DinoModel) -> None:
        """Take the weights that the configuration names. Rank 0 reads them for all ranks."""
        maker = self.maker
        dist.on_rank_0(lambda: begin_from(student, self.config, maker.mean, maker.std, self.observer.message))
        dist.broadcast(student.state_dict().values())
        teacher.load_state_dict(student.state_dict())

    def _go_on(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state["dataset"] != self.dataset.fingerprint:
            raise CheckpointError(f"{path}: was trained on another dataset or subset than {shown(self.dataset.url)}")
        try:
            load_learner_state(self.learner, state)
            self.step, self.num_bad = int(state["step"]), int(state["bad_samples"])
            self.num_bad_steps = int(state.get("bad_steps", 0))  # older checkpoints lack them
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit this model ({type(error).__name__})") from None
        if state["config"]["tune"] == to_dict(self.config)["tune"]:  # else it is judged anew
            self.ended = state.get("ended")
        if self.evaluation:
            self.evaluation.load_state_dict(state.get("evaluation") or {})
        self.observer.message(f"going on after step {self.step} ({path})")

    def execute(self, stop: StopRequest) -> Outcome:
        """All steps that are left."""
        if self.ended or self.step >= self.end_step:
            ended = self.ended and f"{self.ended}; with other values of tune.early_stopping it would go on"
            self.observer.message(ended or f"nothing left to do: {self.step} of {self.end_step} steps are done")
            dist.on_rank_0(self._remove_older)  # which it may have been killed before
            return self._outcome()
        self.observer.message(self._summary())
        with ExitStack() as stack:
            recorder = self._recorder(stack)
            fed = stack.enter_context(closing(self._feed()))
            self._steps(fed, stop, recorder)
            dist.on_rank_0(self.writer.wait)
        if self.ended is None and self.step < self.end_step:
            raise StoppedBySignal(
                f"stopped by {stop.name or 'a signal to another rank'} after step {self.step} of {self.end_step}; "
                f"saved {self._outcome().checkpoint}; run the same command again to go on"
            )
        self.observer.message(f"{self.ended or 'done'}: {self.step} steps, {self._outcome().checkpoint}")
        return self._outcome()

    def _remove_older(self) -> None:
        with output_errors(self.out / CHECKPOINTS_NAME):
            remove_older(self._outcome().checkpoint, self.config.train.keep_checkpoints)

    def _recorder(self, stack: ExitStack) -> Recorder:
        """On all ranks, when rank 0 has taken back what a killed run wrote after its last checkpoint."""
        journals: list[Journal] = []

        def open_journal() -> None:
            sinks = open_sinks(self.out, self.config, self.step, self.observer.message)
            journals.append(stack.enter_context(closing(Journal(self.out, self.step, sinks, self.observer.message))))

        dist.on_rank_0(open_journal)
        num_prototypes = len(self.learner.centre)
        return Recorder(
            self.out,
            self.config,
            self.steps_per_epoch,
            self.end_step,
            journals[0] if journals else None,
            self.observer,
            self.num_bad,
            self.num_bad_steps,
            num_prototypes,
            capacity_of(self.config, num_prototypes, self.world, self.device),
            self._last_checkpoint,
        )

    def _last_checkpoint(self) -> Path | None:
        """The newest one when it is whole on disk, the same on all ranks."""

        def newest() -> Path | None:
            self.writer.wait()
            return next(iter(list_checkpoints(self.out / CHECKPOINTS_NAME)), None)

        return dist.on_rank_0(newest)

    def _summary(self) -> str:
        settings = self.settings
        millions = sum(parameter.numel() for parameter in self.learner.student.backbone.parameters()) / 1e6
        processes = f"{self.world.size} processes, " if self.world.size > 1 else ""
        return (
            f"training {self.maker.describe()} ({millions:.1f} M) on {self.device.type} in "
            f"{self.config.speed.precision}: "
            f"{processes}{len(self.dataset):,} samples, {self.steps_per_epoch:,} steps an epoch, steps "
            f"{self.step:,} to {self.end_step:,}, batch {settings.global_batch} in parts of {settings.micro_batch}"
        )

    def _outcome(self) -> Outcome:
        path = checkpoint_path(self.out / CHECKPOINTS_NAME, self.step)
        return Outcome(self.step, path, self.learner.teacher, self.learner.student)

    def _feed(self) -> Generator[Fed, None, None]:
        return feed(self.dataset, self.plan, self.config, self.maker, self.world, self.device, self.step, self.end_step)

    def _steps(self, fed: Generator[Fed, None, None], stop: StopRequest, recorder: Recorder) -> None:
        for item in fed:
            values = values_at(self.config, self.steps_per_epoch, self.step)
            metrics = train_step(
                self.learner,
                self.settings,
                item.views,
                self.step,
                values,
                len(item.batch.bad),
                bool(stop.name),
                recorder.is_logged(self.step + 1),
            )
            self.step += 1
            recorder.record(self.step, metrics, values, item.batch, item.waited)
            verdict = self._evaluate(recorder)
            self.ended = verdict.stop
            is_over = self.step == self.end_step or verdict.stop is not None
            is_due = is_over or verdict.is_best or self._due()
            ends_epoch = self.step % self.steps_per_epoch == 0
            if is_due or ends_epoch or recorder.stopping:
                recorder.flush()  # which may tell that some rank was asked to stop
            if is_due or recorder.stopping:
                self.num_bad, self.num_bad_steps = recorder.num_bad, recorder.num_bad_steps
                state = self._state()
                dist.on_rank_0(partial(self.writer.save, state, verdict.is_best))
            if ends_epoch:
                recorder.end_epoch(self.step)
            if is_over or recorder.stopping:
                return

    def _evaluate(self, recorder: Recorder) -> Verdict:
        is_last = self.step == self.end_step
        if not self.evaluation or not self.evaluation.is_due(self.step, self.steps_per_epoch, is_last):
            return Verdict({})
        epoch = self.step // self.steps_per_epoch
        verdict = self.evaluation(self.step, epoch, self.learner.student, self.learner.teacher)
        recorder.write(self.step, verdict.figures)
        return verdict

    def _due(self) -> bool:
        epochs, inside = divmod(self.step, self.steps_per_epoch)
        every = self.config.train.save_every_steps
        return (inside == 0 and epochs % self.config.train.save_every == 0) or (every > 0 and self.step % every == 0)

    def _state(self) -> State:
        return {
            "format_version": FORMAT_VERSION,
            **learner_state(self.learner),
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "bad_samples": self.num_bad,
            "bad_steps": self.num_bad_steps,
            "evaluation": self.evaluation.state_dict() if self.evaluation else None,
            "ended": self.ended,
            "config": to_dict(self.config),
            "dataset": self.dataset.fingerprint,
            "data": self.dataset.location,
            "about": self._about(),
        }

    def _about(self) -> dict[str, Any]:
        """What whoever uses the weights has to know."""
        dataset, manifest = self.dataset, self.dataset.manifest
        return {
            "architecture": describe_architecture(architecture_of(self.config)),
            "mean": self.maker.mean and list(self.maker.mean),
            "std": self.maker.std and list(self.maker.std),
            "dataset": {
                "name": manifest.name,
                "samples": len(dataset),
                "cohorts": dataset.cohorts,
                "metadata": manifest.metadata,
            },
        }


def _step_settings(config: RunConfig, world: World, device: torch.device) -> StepSettings:
    batch_size = config.train.batch_size
    if batch_size % world.size:
        raise ConfigError(f"train.batch_size is {batch_size}, expected a multiple of the {world.size} processes")
    return StepSettings(
        device=device,
        autocast_dtype=autocast_dtype(config.speed.precision),
        micro_batch=micro_batch_size(batch_size // world.size, config.train.max_batch_per_device),
        global_batch=batch_size,
        clip_grad=config.optim.clip_grad,
        seed=config.train.seed,
        rank=world.rank,
        clip=config.optim.clip,
        centering=config.loss.centering,
        koleo_weight=config.loss.koleo_weight,
    )
