"""`dinowds train patch`: dataset → run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import print_error

app = typer.Typer(help="Pretrain a Vision Transformer with DINO.", no_args_is_help=True)


@app.command()
def patch(
    data: Annotated[Path, typer.Option(help="Dataset folder that 'dinowds shard' wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Run folder. The same command on it goes on.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="YAML file; configs/patch.yaml shows all keys.")] = None,
    nproc: Annotated[int, typer.Option(help="Processes on this host, one for each GPU.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as optim.lr=1e-4 train.seed=1.")
    ] = None,
) -> None:
    """Pretrain a ViT on image patches.

    Under torchrun or srun every process is one rank; --nproc N starts N here. Ctrl-C saves and stops.
    """
    from dinowds.config import load_config

    loaded = load_config(config, overrides or [])
    if nproc == 1:
        run_rank(data, out, loaded)
        return
    from dinowds.train.launch import launch

    launch(_run_rank_and_exit, (data, out, loaded), nproc)


def run_rank(data: Path, out: Path, config: object) -> None:
    """One rank, with the progress of rank 0 on stderr."""
    from dinowds.train.loop import train

    from .progress import run_observer

    observer = run_observer()
    try:
        outcome = train(data, out, config, observer)  # type: ignore[arg-type]
    finally:
        observer.close()
    observer.message(f"done: {outcome.step} steps, {outcome.checkpoint}")


def _run_rank_and_exit(data: Path, out: Path, config: object) -> None:
    # Runs in a process of its own, whose errors must be one line too.
    from dinowds.errors import DinowdsError

    try:
        run_rank(data, out, config)
    except DinowdsError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
