"""`dinowds merge`: one dataset of several, without copying a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table
from .withdraw import counting

if TYPE_CHECKING:
    from dinowds.data.manifest import Manifest


def merge(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Two or more folders or URLs.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the new dataset; a URL if all of them are URLs.")],
    name: Annotated[str | None, typer.Option(help="Of the new dataset; the folder's name otherwise.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset in OUT once the new one is whole.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Make one dataset of several: an index over their shards, which stay where they are and must stay there.

    Keys must differ, and labels must have the same numbers. Subsets are not carried over.

    [dim]dinowds merge datasets/a datasets/b --out datasets/all[/dim]
    """
    from dinowds.remote.urls import shown
    from dinowds.shard.finished.merge import merge_datasets

    with interruptible(), counting("samples") as count:
        merged, notices = merge_datasets(datasets, out, name, overwrite, lambda _what, done, total: count(done, total))
    for notice in notices:
        print_notice(notice)
    _print(shown(out), merged, len(datasets), as_json)


def _print(title: str, merged: Manifest, num_datasets: int, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "dataset": title,
                "samples": merged.num_samples,
                "shards": len(merged.shards),
                "bytes": merged.num_bytes,
                "cohorts": merged.cohorts,
                "label_names": merged.label_names,
                "quarantined": merged.quarantined,
                "metadata": merged.metadata,
            }
        )
        return
    from rich.console import Console

    rows: list[tuple[str, object]] = [
        ("datasets", num_datasets),
        ("samples", merged.num_samples),
        ("shards", len(merged.shards)),
        ("bytes, where they were", format_bytes(merged.num_bytes)),
        *((f"cohort {cohort}", samples) for cohort, samples in merged.cohorts.items()),
        *((f"quarantined: {reason}", lines) for reason, lines in merged.quarantined.items()),
    ]
    Console().print(make_table(title, ("", ""), rows))
