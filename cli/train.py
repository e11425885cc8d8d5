"""`dinowds train patch` and `dinowds train region`: dataset → run folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import interruptible, print_error, print_notice

if TYPE_CHECKING:
    from dinowds.config import Kind, RunConfig

app = typer.Typer(help="Pretrain a Vision Transformer with DINO.", no_args_is_help=True)

Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET[:SUBSET]",
        help="Folder or URL that 'dinowds shard' wrote, or a name such as Pathology:root=/data.",
        show_default="that of a reference's YAML",
    ),
]
Regions = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET[:SUBSET]",
        help="Folder or URL of regions, that 'dinowds embed region' wrote, or 'dinowds shard' from .pt files.",
        show_default="that of a reference's YAML",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Run folder. The same command on it goes on.", show_default="that of a reference's YAML"),
]
PatchYaml = Annotated[
    Path | None,
    typer.Option(help="YAML file; configs/patch.yaml shows all keys. Those of the reference are taken too."),
]
RegionYaml = Annotated[
    Path | None,
    typer.Option(help="YAML file; configs/region.yaml shows all keys. Those of the reference are taken too."),
]
Nproc = Annotated[int, typer.Option(help="Processes on this host, one for each GPU.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as optim.lr=1e-4 train.seed=1.")
]


@app.command()
def patch(
    data: Data = None,
    out: Out = None,
    config: PatchYaml = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Pretrain a ViT on image patches.

    Under torchrun or srun every process is one rank; --nproc N starts N here. Ctrl-C saves and stops.
    """
    with _stoppable():
        _train("image", data, out, config, nproc, overrides)


@app.command()
def region(
    data: Regions = None,
    out: Out = None,
    config: RegionYaml = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Pretrain a hierarchical ViT on regions: grids of patch features. Cells that are missing are left out.

    Under torchrun or srun every process is one rank; --nproc N starts N here. Ctrl-C saves and stops.
    """
    with _stoppable():
        _train("region", data, out, config, nproc, overrides)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A signal that comes before the first step, or after the last, ends the command as one between them does."""
    signal.signal(signal.SIGUSR1, signal.default_int_handler)  # by default it kills
    with interruptible():
        yield


def _train(
    kind: Kind, data: str | None, out: Path | None, config: Path | None, nproc: int, overrides: list[str] | None
) -> None:
    from dinowds.config import load_run
    from dinowds.world import World

    world = World.from_environment()
    if nproc > 1 and world.size > 1:
        print_error(
            f"--nproc {nproc} starts ranks, but this is one of {world.size} already (as torchrun or srun says); "
            "leave --nproc out, or start a single task"
        )
        raise typer.Exit(2)
    is_first = world.rank == 0
    loaded = load_run(config, overrides or [], kind, max(nproc, world.size))
    data = _given("--data", data or loaded.data, "the dataset", "train.dataset_path")
    out = Path(_given("--out", out or loaded.out, "the run folder", "train.output_dir"))
    for line in loaded.notices if is_first else ():
        print_notice(line)
    data, opened = _open_in_place(data, loaded.config, is_first)
    if nproc == 1:
        run_rank(data, out, opened)
        return
    from dinowds.train.launch import launch

    launch(run_rank, (data, out, opened), nproc)


def _given(option: str, value: Any, what: str, key: str) -> Any:
    if value is None:
        print_error(f"{option} is missing: give {what}, or the YAML of a reference's run that says {key} as --config")
        raise typer.Exit(2)
    return value


def _open_in_place(data: str, config: RunConfig, is_first: bool) -> tuple[str, RunConfig]:
    """With the indexes of datasets that are named in the reference's way."""
    from dataclasses import replace

    from dinowds.shard.roots import is_name, open_in_place

    from .shard import default_workers
    from .shard_progress import show_progress

    knn = config.tune.knn
    locations = (data, knn.query_dataset_path, knn.test_dataset_path)
    if not any(location and is_name(location) for location in locations):
        return data, config
    notice = print_notice if is_first else None
    with show_progress() as report:
        opened = [location and open_in_place(location, default_workers(), report, notice) for location in locations]
    knn = replace(knn, query_dataset_path=opened[1], test_dataset_path=opened[2])
    return opened[0] or data, replace(config, tune=replace(config.tune, knn=knn))


def run_rank(data: str, out: Path, config: RunConfig) -> None:
    """One rank, with the progress of rank 0 on stderr."""
    from functools import partial

    from dinowds.eval.tune import evaluation_of
    from dinowds.train.loop import train

    from .progress import run_observer

    observer = run_observer()
    with interruptible(), closing(observer):
        train(data, out, config, observer, partial(evaluation_of, config, data, observer.message))
