"""`dinowds demo`: the whole way on photographs, in about three minutes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json

if TYPE_CHECKING:
    from dinowds.demo import Result


def demo(
    out: Annotated[Path, typer.Option(help="Folder for cohorts, datasets and the run. Run again to go on.")] = Path(
        "demo"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON alone.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Over configs/demo.yaml, such as optim.epochs=2."),
    ] = None,
) -> None:
    """Cut photographs into cohort tars, shard them, pretrain a small ViT, and compare its features.

    Sixteen photographs that ship with scikit-image, as grey patches of equal mean and contrast; the label of a patch is
    its photograph, and test patches come from the other side of it.
    """
    from rich.console import Console

    from dinowds.config import default_config_path, load_config
    from dinowds.demo import run_demo

    from .progress import run_observer

    console = Console(stderr=True)
    observer = run_observer(console)
    config = load_config(default_config_path("demo"), overrides or [])
    with interruptible(), closing(observer):
        result = run_demo(out, config, observer)
    if json:
        print_json(result.to_json())
    else:
        _print_result(result)


def _print_result(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Which of {result.num_classes} photographs is it? 20-NN, held-out halves")
    table.add_column("features")
    table.add_column("accuracy", justify="right")
    table.add_column("", min_width=32)
    for name, accuracy in result.accuracies.items():
        best = name == max(result.accuracies, key=lambda n: result.accuracies[n])
        table.add_row(name, f"{accuracy:.3f}", "█" * round(32 * accuracy), style="bold green" if best else None)
    console = Console()
    console.print(table)
    console.print(
        f"chance {1 / result.num_classes:.3f} · {result.num_train:,} train and {result.num_test:,} test patches\n"
        f"{result.steps} steps · loss {result.loss:.2f} (ln K = {result.ln_k:.2f})",
        highlight=False,
    )
