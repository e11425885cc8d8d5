"""`dinowds doctor`: is this machine ready?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .shared import print_json


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs and datasets will be written.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON alone.")] = False,
) -> None:
    """Check versions, devices, shared memory, cores and write access; say what to do. Exit code 1 on a problem."""
    from dinowds.doctor import examine, worst

    findings = list(examine(folder))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        from rich.console import Console
        from rich.table import Table

        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[bold red]problem[/]"}
        table = Table("check", "", "found", "what to do")
        for finding in findings:
            table.add_row(finding.name, marks[finding.status], finding.found, finding.advice)
        Console().print(table)
    if worst(findings) == "problem":
        raise typer.Exit(1)
