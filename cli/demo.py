"""`dinowds demo`: the whole way on photographs, in about five minutes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import interruptible, print_json

if TYPE_CHECKING:
    from dinowds.demo.run import Result


def demo(
    out: Annotated[Path, typer.Option(help="Folder for cohorts, datasets and runs. Run again to go on.")] = Path(
        "demo"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON alone.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of both configs/demo.yaml and configs/demo_region.yaml, such as optim.epochs=2.",
        ),
    ] = None,
) -> None:
    """Cut photographs into cohort tars, shard them, pretrain a small ViT, make regions of its features, pretrain a
    hierarchical ViT on these, compare the features of all, and write pictures and pages that show it.

    Sixteen photographs that ship with scikit-image, as grey patches of equal mean and contrast; the label of a patch or
    a region is its photograph, and the test's come from the other side of it.
    """
    from rich.console import Console

    from dinowds.config import default_config_path, load_config
    from dinowds.demo.run import run_demo

    from .progress import run_observer

    console = Console(stderr=True)
    observer = run_observer(console)
    patch = load_config(default_config_path("demo"), overrides or [])
    region = load_config(default_config_path("demo_region"), overrides or [], "region")
    with interruptible(), closing(observer):
        result = run_demo(out, patch, region, observer)
    if json:
        print_json(asdict(result))
    else:
        _print_result(result)


def _print_result(result: Result) -> None:
    _print_scores("patch", result.patches, result.num_classes)
    _print_scores("region", result.regions, result.num_classes)
    for path in (*result.pictures, *result.pages):
        print(path)  # noqa: T201


def _print_scores(kind: str, evaluation: dict[str, Any], num_classes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Which of {num_classes} photographs is this {kind} of? 20-NN, held-out sides")
    table.add_column("features", min_width=20)
    table.add_column("accuracy", justify="right")
    table.add_column("", min_width=32)
    plain = [result for result in evaluation["results"] if not result["settings"]["centred"]]
    best = max(result["accuracy"]["value"] for result in plain)
    for result in reversed(plain):
        accuracy = result["accuracy"]["value"]
        style = "bold green" if accuracy == best else None
        table.add_row(result["model"], f"{accuracy:.3f}", "█" * round(32 * accuracy), style=style)
    console = Console()
    console.print(table)
    train, test = (evaluation[split]["samples"] for split in ("train", "test"))
    console.print(
        f"chance {1 / num_classes:.3f} · {train:,} training and {test:,} test samples · {evaluation['step']} steps",
        highlight=False,
    )
