"""A training run, from a dataset and a configuration to checkpoints. Only wires the parts together."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinowds.config import RunConfig, to_dict
from dinowds.crops.batches import Batch
from dinowds.data.blocks import Blocks
from dinowds.data.dataset import Dataset
from dinowds.data.loader import load, start_fork_server
from dinowds.data.order.exposure import check_cap
from dinowds.data.order.make import make_plan, order_of
from dinowds.data.order.plan import Order, Plan
from dinowds.data.source import PlanSource, check_cache, stream
from dinowds.data.store.cache import CacheOptions
from dinowds.errors import CheckpointError, ConfigError, OutputError, StoppedBySignal, TrainingError
from dinowds.model.architecture import describe_architecture
from dinowds.model.dino import DinoModel, architecture_of, build_pair
from dinowds.remote.files import shown
from dinowds.train import dist
from dinowds.train.checkpoint import (
    FORMAT_VERSION,
    State,
    checkpoint_path,
    find_latest,
    load_checkpoint,
    save_checkpoint,
)
from dinowds.train.devices import choose_device, choose_num_workers, micro_batch_size, resolve_precision
from dinowds.train.folder import CHECKPOINTS_NAME, own_folder
from dinowds.train.initial import begin_from
from dinowds.train.kinds import check_kind, resolve_kind, view_maker
from dinowds.train.monitor import Journal, LogObserver, Observer, SilentObserver
from dinowds.train.optim import build_optimizer
from dinowds.train.recorder import Recorder
from dinowds.train.schedule import values_at
from dinowds.train.signals import StopRequest, stop_signals
from dinowds.train.step import Learner, StepSettings, train_step
from dinowds.world import World

Evaluate = Callable[[int, DinoModel, DinoModel], dict[str, float]]
"""(steps done, student, teacher) → figures for metrics.jsonl; {} for a step without any. For runs of one process."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves when it has done all its steps."""

    step: int
    checkpoint: Path
    teacher: DinoModel
    student: DinoModel


def train(
    data: Path | str, out: Path, config: RunConfig, observer: Observer | None = None, evaluate: Evaluate | None = None
) -> Outcome:
    """Pretrain in run folder `out`; goes on where an earlier call with the same arguments stopped.

    `data` is DATASET or DATASET:SUBSET, a folder or a URL; of images for a `PatchConfig`, of regions for a
    `RegionConfig`.
    Which rank this is comes from the environment (`World.from_environment`). On SIGINT, SIGTERM or SIGUSR1 the step in
    hand is finished and saved.

    Raises:
        StoppedBySignal: stopped early, everything saved.
        DinowdsError: bad input, in one line.
    """
    world = World.from_environment()
    if evaluate and world.size > 1:
        raise ConfigError("an evaluation during training needs one process: the others would wait for it")
    dataset = Dataset.open(data)
    check_kind(dataset, config)
    device = choose_device(world)
    plan = make_plan(dataset, order_of(config))
    if choose_num_workers(config.speed.num_workers, world, device):
        start_fork_server()  # it imports while the models are built
    check_cache(dataset, plan, world.num_hosts, cache_options(config).max_bytes)
    config = resolve_kind(resolve(config, plan.order, device), dataset, device, cache_options(config))
    run = _Run(dataset, plan, out, config, world, device)
    with ExitStack() as stack:
        stack.enter_context(dist.process_group(world, device))
        dist.on_rank_0(lambda: check_cap(dataset, plan))
        dist.on_rank_0(lambda: run.maker.check(dataset))
        dist.on_rank_0(lambda: stack.enter_context(own_folder(out, config)))
        if world.rank == 0:
            run.observer = LogObserver(out, observer or SilentObserver())
        stop = stack.enter_context(stop_signals())
        run.start()
        return run.execute(stop, evaluate)


def cache_options(config: RunConfig) -> CacheOptions:
    """Where chunks of remote shards are kept, and how many."""
    folder = config.data.cache_dir
    return CacheOptions(Path(folder) if folder else None, int(config.data.cache_gib * 2**30))


def resolve(config: RunConfig, order: Order, device: torch.device) -> RunConfig:
    """Put the values that are chosen here in the place of null and auto, so that `config.yaml` says what was done."""
    return replace(
        config,
        data=replace(config.data, partitions=order.partitions, window_chunks=order.window_chunks),
        speed=replace(config.speed, precision=resolve_precision(config.speed.precision, device)),
    )


class _Run:
    observer: Observer = SilentObserver()
    learner: Learner

    def __init__(
        self, dataset: Dataset, plan: Plan, out: Path, config: RunConfig, world: World, device: torch.device
    ) -> None:
        """Decides everything that follows from the arguments; nothing is written and no rank is asked."""
        self.dataset, self.plan, self.out, self.config = dataset, plan, out, config
        self.world, self.device = world, device
        self.step, self.num_bad = 0, 0
        self.maker = view_maker(config, device)
        self.steps_per_epoch = plan.steps_per_epoch
        self.num_steps = config.optim.epochs * self.steps_per_epoch
        self.end_step = min(self.num_steps, config.optim.max_steps or self.num_steps)
        self.settings = _step_settings(config, world, device)

    def start(self) -> None:
        """Build the models and load the newest checkpoint, if there is one. Rank 0 chooses it for all ranks."""
        self.learner = build_learner(self.config, self.device)
        path = dist.on_rank_0(lambda: find_latest(self.out / CHECKPOINTS_NAME, self.observer.message))
        if path is None:
            self._begin()
            return
        state = load_checkpoint(path)
        if state["dataset"] != self.dataset.fingerprint:
            raise CheckpointError(f"{path}: was trained on another dataset or subset than {shown(self.dataset.url)}")
        try:
            self.learner.student.load_state_dict(state["student"])
            self.learner.teacher.load_state_dict(state["teacher"])
            self.learner.optimizer.load_state_dict(state["optimizer"])
            self.learner.centre.copy_(state["dino_loss"]["center"][0])
            self.step, self.num_bad = int(state["step"]), int(state["bad_samples"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit this model ({type(error).__name__})") from None
        self.observer.message(f"going on after step {self.step} ({path})")

    def _begin(self) -> None:
        """Take the weights that the configuration names, if it does. Rank 0 reads them for all ranks."""
        if self.config.student.init_from is None:
            return
        learner, maker = self.learner, self.maker
        dist.on_rank_0(lambda: begin_from(learner.student, self.config, maker.mean, maker.std, self.observer.message))
        dist.broadcast(learner.student.state_dict().values())
        learner.teacher.load_state_dict(learner.student.state_dict())

    def execute(self, stop: StopRequest, evaluate: Evaluate | None) -> Outcome:
        """All steps that are left."""
        if self.step >= self.end_step:
            self.observer.message(f"nothing left to do: {self.step} of {self.end_step} steps are done")
            return self._outcome()
        self.observer.message(self._summary())
        journal = Journal(self.out, self.step) if self.world.rank == 0 else None
        dist.barrier()  # the journal takes back what a killed run wrote too much, before anyone writes more
        recorder = Recorder(
            self.out, self.config, self.steps_per_epoch, self.end_step, journal, self.observer, self.num_bad
        )
        try:
            with closing(self._batches()) as batches:
                self._steps(batches, stop, evaluate, recorder)
        finally:
            if journal:
                journal.close()
        if self.step < self.end_step:
            raise StoppedBySignal(
                f"stopped by {stop.name or 'a signal to another rank'} after step {self.step} of {self.end_step}; "
                f"saved {self._outcome().checkpoint}; run the same command again to go on"
            )
        self.observer.message(f"done: {self.step} steps, {self._outcome().checkpoint}")
        return self._outcome()

    def _summary(self) -> str:
        settings = self.settings
        millions = sum(parameter.numel() for parameter in self.learner.student.backbone.parameters()) / 1e6
        precision = "fp32" if settings.autocast_dtype is None else "bf16"
        processes = f"{self.world.size} processes, " if self.world.size > 1 else ""
        return (
            f"training {self.maker.describe()} ({millions:.1f} M) on {self.device.type} in {precision}: "
            f"{processes}{len(self.dataset):,} samples, {self.steps_per_epoch:,} steps an epoch, steps "
            f"{self.step:,} to {self.end_step:,}, batch {settings.global_batch} in parts of {settings.micro_batch}"
        )

    def _outcome(self) -> Outcome:
        path = checkpoint_path(self.out / CHECKPOINTS_NAME, self.step)
        return Outcome(self.step, path, self.learner.teacher, self.learner.student)

    def _steps(
        self, batches: Iterator[Batch], stop: StopRequest, evaluate: Evaluate | None, recorder: Recorder
    ) -> None:
        while self.step < self.end_step and not recorder.stopping:
            asked_at = time.perf_counter()
            batch: Batch = next(batches)
            waited = time.perf_counter() - asked_at
            if batch.step != self.step:
                raise TrainingError(f"the loader gave step {batch.step}, expected {self.step}: please report this")
            values = values_at(self.config, self.steps_per_epoch, self.step)
            metrics = train_step(
                self.learner, self.settings, self.maker.views(batch), self.step, values, len(batch.bad), bool(stop.name)
            )
            self.step += 1
            recorder.record(self.step, metrics, values, batch, waited)
            if evaluate:
                recorder.write(self.step, evaluate(self.step, self.learner.student, self.learner.teacher))
            if self._due() or self.step == self.end_step or recorder.stopping:
                recorder.flush()
                self.num_bad = recorder.num_bad
                dist.on_rank_0(self._save)

    def _batches(self) -> Generator[Batch, None, None]:
        speed, data = self.config.speed, self.config.data
        source = PlanSource(
            self.dataset,
            self.plan,
            self.world,
            self.step,
            self.end_step,
            verify_digests=data.verify_digests,
            read_ahead=data.read_ahead,
            cache=cache_options(self.config),
        )
        num_workers = choose_num_workers(speed.num_workers, self.world, self.device)
        blocks = Blocks(num_workers, speed.prefetch_factor)
        pipeline = stream(source, self.maker.stage(source, blocks))
        return load(pipeline, num_workers, speed.prefetch_factor, pin_memory=self.device.type == "cuda")

    def _due(self) -> bool:
        epochs, inside = divmod(self.step, self.steps_per_epoch)
        every = self.config.train.save_every_steps
        return (inside == 0 and epochs % self.config.train.save_every == 0) or (every > 0 and self.step % every == 0)

    def _save(self) -> None:
        try:
            save_checkpoint(self.out / CHECKPOINTS_NAME, self._state(), self.config.train.keep_checkpoints)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as either
            raise OutputError(
                f"{self.out / CHECKPOINTS_NAME}: checkpoint of step {self.step} cannot be written "
                f"({str(error).splitlines()[0]}); free space there and run the same command again"
            ) from None

    def _state(self) -> State:
        learner = self.learner
        return {
            "format_version": FORMAT_VERSION,
            "student": learner.student.state_dict(),
            "teacher": learner.teacher.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "dino_loss": {"center": learner.centre[None]},
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "bad_samples": self.num_bad,
            "config": to_dict(self.config),
            "dataset": self.dataset.fingerprint,
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
        autocast_dtype=torch.bfloat16 if config.speed.precision == "bf16" else None,
        micro_batch=micro_batch_size(batch_size // world.size, config.train.max_batch_per_device),
        global_batch=batch_size,
        clip_grad=config.optim.clip_grad,
        seed=config.train.seed,
        rank=world.rank,
    )


def initial_models(config: RunConfig) -> tuple[DinoModel, DinoModel]:
    """Student and teacher as a run with this configuration begins: their weights come from `train.seed`."""
    torch.manual_seed(int(np.random.SeedSequence(config.train.seed).generate_state(1)[0]))
    return build_pair(architecture_of(config), config.student)


def build_learner(config: RunConfig, device: torch.device) -> Learner:
    """What a run with this configuration begins with, on `device`."""
    student, teacher = (dist.synchronise_batch_norm(model.to(device), device) for model in initial_models(config))
    return Learner(
        student=student,
        replicated=dist.replicate(student, device),
        teacher=teacher,
        optimizer=build_optimizer(student),
        centre=torch.zeros(config.student.out_dim, device=device),
    )
