"""`dinowds order`: the order in which a run sees a dataset, from its index alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .order_view import (
    about,
    exposure_json,
    print_batches_json,
    quality_json,
    show_batches,
    show_exposure,
    show_quality,
)
from .shared import print_json

if TYPE_CHECKING:
    from dinowds.data.dataset import Dataset
    from dinowds.data.order.plan import Plan

_MAX_STEP = 10**9
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


def order(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET[:SUBSET]", help="Folder or URL that 'dinowds shard' wrote.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.batch_size=64 train.seed=1.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of the run, such as RUN/config.yaml of one that has begun.")
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(metavar="A[..B]", help="Global batches A to B, both included; counted over the run from 0."),
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(help="Count --batches from this epoch's first; which one --quality looks at.")
    ] = None,
    world: Annotated[int | None, typer.Option(help="Show which of so many ranks takes each sample.")] = None,
    exposure: Annotated[
        bool, typer.Option("--exposure", help="Count what a run has seen before --until-step, by cohort and slide.")
    ] = False,
    until_step: Annotated[int | None, typer.Option(help="Steps that the run has done.")] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Compare the slides of a batch with those of a uniform draw.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Show which samples a training run sees when. Opens no shard.

    The same configuration as that of 'dinowds train patch' gives the same order. Without another option: the first
    global batch.

    [dim]dinowds order datasets/patches --config runs/one/config.yaml --batches 3..5[/dim]
    [dim]dinowds order datasets/patches --exposure --until-step 20000[/dim]
    """
    steps = _parse_range(batches or "0")
    _check_options({"--batches": batches, "--exposure": exposure, "--quality": quality}, epoch, world, until_step)
    opened, plan = _open(dataset, config, overrides or [])
    if exposure:
        from dinowds.data.order.exposure import count_exposure

        with _progress("counting draws") as report:
            counted = count_exposure(opened, plan, until_step or 0, report)
        if as_json:
            print_json({**about(opened, plan), **exposure_json(counted, plan)})
        else:
            show_exposure(counted, opened, plan)
    elif quality:
        from dinowds.data.order.quality import measure_quality

        with _progress("drawing batches") as report:
            measured = measure_quality(opened, plan, epoch or 0, report)
        if as_json:
            print_json({**about(opened, plan), **quality_json(measured)})
        else:
            show_quality(measured, opened, plan)
    else:
        if epoch is not None:
            if steps[-1] >= plan.steps_per_epoch:
                raise _error(f"--batches {batches}: the batches of an epoch are 0 to {plan.steps_per_epoch - 1}")
            steps = range(*(epoch * plan.steps_per_epoch + edge for edge in (steps.start, steps.stop)))
        ranks = _ranks(plan, world)
        (print_batches_json if as_json else show_batches)(opened, plan, steps, ranks)


def _error(message: str) -> Exception:
    from dinowds.errors import ConfigError

    return ConfigError(message)


def _parse_range(text: str) -> range:
    """'3' or '3..5', both included."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise _error(f"--batches {text}: expected a number such as 3, or first..last such as 3..5")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise _error(f"--batches {text}: ends before it begins; expected {last}..{first}")
    if last > _MAX_STEP:
        raise _error(f"--batches {text}: expected at most {_MAX_STEP}")
    return range(first, last + 1)


def _check_options(modes: Mapping[str, object], epoch: int | None, world: int | None, until_step: int | None) -> None:
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise _error(f"{' and '.join(chosen)}: expected one of them")
    mode = chosen[0] if chosen else "--batches"
    if mode == "--exposure" and until_step is None:
        raise _error("--exposure needs --until-step K, the steps that the run has done")
    for name, value, modes_of_it, least in (
        ("--until-step", until_step, ("--exposure",), 0),
        ("--epoch", epoch, ("--batches", "--quality"), 0),
        ("--world", world, ("--batches",), 1),
    ):
        if value is not None and mode not in modes_of_it:
            raise _error(f"{name} goes with {' or '.join(modes_of_it)}, not with {mode}")
        if value is not None and not least <= value <= _MAX_STEP:
            raise _error(f"{name} is {value}, expected {least} to {_MAX_STEP}")


def _open(dataset: str, config: Path | None, overrides: list[str]) -> tuple[Dataset, Plan]:
    from dinowds.config import load_config
    from dinowds.data.dataset import Dataset
    from dinowds.data.order.make import make_plan, order_of

    opened = Dataset.open(dataset)
    return opened, make_plan(opened, order_of(load_config(config, overrides, opened.manifest.kind)))


def _ranks(plan: Plan, world: int | None) -> list[int] | None:
    """The rank that takes each place of a global batch."""
    if world is None:
        return None
    batch_size = plan.order.batch_size
    if batch_size % world:
        raise _error(f"--world is {world}, which does not divide train.batch_size {batch_size}")
    return [place * world // batch_size for place in range(batch_size)]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
