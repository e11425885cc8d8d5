"""`dinowds withdraw`: take slides out of a dataset."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.shard.finished.withdraw import Withdrawal


def withdraw(
    dataset: Annotated[str, typer.Argument(help="Folder of the dataset.", show_default=False)],
    slides: Annotated[
        Path | None, typer.Option(metavar="FILE", help="List of slides, one a line: their names, or cohort/slide.")
    ] = None,
    rewrite: Annotated[
        bool,
        typer.Option(
            "--rewrite",
            help="Copy the shards concerned without the samples, also those of earlier withdrawals; needs room for "
            "32 GiB of shards at most. Alone, it does what is left.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be withdrawn; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Withdraw slides, as when consent is: they leave the index, the quarantine and the subsets at once.

    Their bytes stay in the shards, where no reader of the index finds them, until --rewrite. An interrupted run goes
    on when the same command is given again.

    [dim]dinowds withdraw datasets/patches --slides withdrawn.txt --rewrite[/dim]
    """
    from dinowds.remote.urls import shown
    from dinowds.shard.finished.withdraw import withdraw_slides

    with interruptible(), counting("bytes") as count:
        done, notices = withdraw_slides(dataset, slides, rewrite, dry_run, count)
    for notice in notices:
        print_notice(notice)
    if as_json:
        print_json({"dataset": shown(dataset), "dry_run": dry_run, **done.to_json(), "notices": notices})
    else:
        _print(shown(dataset), done, rewrite, dry_run)


def _print(title: str, done: Withdrawal, rewrite: bool, dry_run: bool) -> None:
    from rich.console import Console

    rows: list[tuple[str, object]] = [
        ("samples", done.samples),
        ("slides", done.slides),
        *((f"cohort {cohort}", samples) for cohort, samples in (done.cohorts or {}).items()),
        ("shards that held them", done.shards),
        ("lines of the quarantine", done.quarantine_lines),
    ]
    if rewrite or dry_run:
        what = "shards that --rewrite copies" if dry_run else "shards copied"
        rows += [(what, done.rewritten_shards), ("their bytes", format_bytes(done.rewritten_bytes))]
    if not dry_run:
        rows.append(("withdrawn samples still in shards", done.in_shards))
    Console().print(make_table(f"{title} ({'nothing written' if dry_run else 'withdrawn'})", ("", ""), rows))


@contextmanager
def counting(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of (done, all) on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(unit), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)
