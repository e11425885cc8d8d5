"""`dinowds report`: one page that shows a run, several runs, or a dataset."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import interruptible, print_json, printable
from .tables import format_bytes


def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|DATASET",
            help="Run folders, beside each other if there are several, or a dataset (DATASET:SUBSET for a subset).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.html", help="The page.", show_default="RUN/report.html or DATASET-report.html"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET[:SUBSET]",
            help="Images of a run's pictures and map of features.",
            show_default="what it was trained on",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Write one HTML file that shows a run or a dataset. It needs no network and can be sent to anyone.

    Of a run: curves, alarms, configuration, evaluations, and what the encoder looks at. Needs
    pip install 'dinowds[[report]'.

    [dim]dinowds report runs/patch[/dim]

    [dim]dinowds report runs/one runs/two --out both.html[/dim]

    [dim]dinowds report datasets/patches --out patches.html[/dim]
    """
    from dinowds.report.make import make_report

    with interruptible("make it again"), _waiting():
        made = make_report(targets, out, data, overwrite)
    if as_json:
        print_json({"path": made.path, "kind": made.kind, "bytes": made.num_bytes})
    else:
        print(f"{printable(str(made.path))} ({format_bytes(made.num_bytes)})")  # noqa: T201


def _waiting() -> AbstractContextManager[Any]:
    """A sign on a terminal that something goes on: pictures may take a minute."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("making the page")
