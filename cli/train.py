"""`dinowds train patch` and `dinowds train region`: dataset → run folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible

if TYPE_CHECKING:
    from dinowds.config import Kind, RunConfig

app = typer.Typer(help="Pretrain a Vision Transformer with DINO.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Run folder. The same command on it goes on.", show_default=False)]
Nproc = Annotated[int, typer.Option(help="Processes on this host, one for each GPU.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as optim.lr=1e-4 train.seed=1.")
]


@app.command()
def patch(
    data: Annotated[
        str,
        typer.Option(metavar="DATASET[:SUBSET]", help="Folder or URL that 'dinowds shard' wrote.", show_default=False),
    ],
    out: Out,
    config: Annotated[Path | None, typer.Option(help="YAML file; configs/patch.yaml shows all keys.")] = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Pretrain a ViT on image patches.

    Under torchrun or srun every process is one rank; --nproc N starts N here. Ctrl-C saves and stops.
    """
    _train("image", data, out, config, nproc, overrides)


@app.command()
def region(
    data: Annotated[
        str,
        typer.Option(
            metavar="DATASET[:SUBSET]",
            help="Folder or URL of regions, that 'dinowds embed region' wrote, or 'dinowds shard' from .pt files.",
            show_default=False,
        ),
    ],
    out: Out,
    config: Annotated[Path | None, typer.Option(help="YAML file; configs/region.yaml shows all keys.")] = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Pretrain a hierarchical ViT on regions: grids of patch features. Cells that are missing are left out.

    Under torchrun or srun every process is one rank; --nproc N starts N here. Ctrl-C saves and stops.
    """
    _train("region", data, out, config, nproc, overrides)


def _train(kind: Kind, data: str, out: Path, config: Path | None, nproc: int, overrides: list[str] | None) -> None:
    from dinowds.config import load_config

    loaded = load_config(config, overrides or [], kind)
    if nproc == 1:
        run_rank(data, out, loaded)
        return
    from dinowds.train.launch import launch

    launch(run_rank, (data, out, loaded), nproc)


def run_rank(data: str, out: Path, config: RunConfig) -> None:
    """One rank, with the progress of rank 0 on stderr."""
    from dinowds.train.loop import train

    from .progress import run_observer

    observer = run_observer()
    with interruptible(), closing(observer):
        train(data, out, config, observer)
