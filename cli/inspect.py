"""`dinowds inspect`: what a dataset holds, and whether it is whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import interruptible, print_json, printable
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.data.summary import Summary
    from dinowds.data.verify import Damage

_MAX_ROWS = 12


def inspect(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Folder or URL that 'dinowds shard' wrote to; DATASET:SUBSET for a subset.", show_default=False
        ),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything again and compare it with sizes, counts and digests.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
    crops: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw the crops of N samples into --out, as a training run has them."),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write a page with plots and samples, as 'dinowds report DATASET' does.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Picture of --crops, or page of --html.", show_default="DATASET-report.html of --html"
        ),
    ] = None,
    renderer: Annotated[
        list[str] | None,
        typer.Option(help="cpu, device or pil, of --crops; several, or all, below each other.", show_default="a run's"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the run whose crops --crops draws.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the samples and crops of --crops.", show_default="train.seed")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For --crops, such as crops.stain=0.5.")
    ] = None,
) -> None:
    """Show what a dataset holds: shards, cohorts, slides, labels, image sizes and formats.

    With --verify, list each damage with its shard and key, and fail if there is any. With --crops, draw a few samples
    and their crops instead. With --html, write one HTML file that shows all that and more: samples, labels, positions,
    colours and stains by cohort, duplicates.

    [dim]dinowds inspect datasets/patches --verify[/dim]
    [dim]dinowds inspect datasets/patches --html --out patches.html[/dim]
    [dim]dinowds inspect datasets/patches --crops 8 --out crops.png crops.quarter_turns=true[/dim]
    """
    of_files = {"--out": out, "--overwrite": overwrite or None}
    of_crops = {"--renderer": renderer or None, "--config": config, "--seed": seed, "KEY=VALUE": overrides or None}
    _check_options(crops, html, out, verify, as_json, of_files, of_crops)
    if html:
        _write_page(dataset, out, overwrite)
    elif crops is not None and out is not None:
        from .inspect_crops import write_sheet

        write_sheet(dataset, crops, out, renderer or [], config, overrides or [], seed, overwrite)
    else:
        _show(dataset, verify, as_json)


def _show(dataset: str, verify: bool, as_json: bool) -> None:
    """Tables or JSON of what a dataset holds, and each damage; DatasetError if there is any."""
    from dinowds.data.summary import summarize
    from dinowds.data.verify import verify_dataset
    from dinowds.errors import DatasetError
    from dinowds.remote.urls import shown

    title = shown(dataset)
    damages: list[Damage] = []
    summary: Summary | None = None
    with interruptible("begin anew"):
        if verify:
            with _progress() as report:
                damages = verify_dataset(dataset, report)
            damages += _stale(dataset)
        try:
            summary = summarize(dataset)
        except DatasetError:
            if not damages:
                raise
    if as_json:
        content: dict[str, Any] = {"dataset": title, **({} if summary is None else summary.to_json())}
        if verify:
            content["damages"] = [{"shard": d.shard, "key": d.key, "problem": d.problem} for d in damages]
        print_json(content)
    else:
        if summary is not None:
            print_summary(summary, title)
        _print_damages(damages, verify)
    if damages:
        first = damages[0]
        where = first.shard if first.key is None else f"{first.shard}, key {first.key}"
        advice = "make the dataset again, or copy it again"
        raise DatasetError(f"{title}: damage found: {len(damages)}, first in {where}: {first.problem}; {advice}")


def _stale(dataset: str) -> list[Damage]:
    from dinowds.data.location import split_location
    from dinowds.data.manifest import read_manifest
    from dinowds.data.verify import Damage
    from dinowds.interop.stale import stale_indexes

    root, _ = split_location(dataset)
    problem = "is of another state of the dataset; give 'dinowds index' again"
    return [Damage(name, None, problem) for name in stale_indexes(root, read_manifest(root))]


def _check_options(
    crops: int | None,
    html: bool,
    out: Path | None,
    verify: bool,
    as_json: bool,
    of_files: Mapping[str, object],
    of_crops: Mapping[str, object],
) -> None:
    from dinowds.errors import ConfigError

    if crops is None:
        if alone := [name for name, value in of_crops.items() if value is not None]:
            raise ConfigError(f"{alone[0]}: goes with --crops N, the samples whose crops are drawn")
        if not html and (alone := [name for name, value in of_files.items() if value is not None]):
            raise ConfigError(f"{alone[0]}: goes with --crops N or --html, which write a file")
    if crops is None and not html:
        return
    others = {"--crops": crops is not None and html, "--verify": verify, "--json": as_json}
    if found := [name for name, value in others.items() if value]:
        what = "--html writes a page" if html else "--crops draws a picture"
        raise ConfigError(f"{what}: expected no {found[0]} with it")
    if crops is not None and out is None:
        raise ConfigError("--crops needs --out FILE.png, the picture that it draws")


def _write_page(dataset: str, out: Path | None, overwrite: bool) -> None:
    from dinowds.report.make import make_dataset_report

    with interruptible("make it again"):
        made = make_dataset_report(dataset, out, overwrite)
    print(f"{printable(str(made.path))} ({format_bytes(made.num_bytes)})")  # noqa: T201


def print_summary(summary: Summary, title: str) -> None:
    """Tables on stdout."""
    from rich.console import Console

    console = Console()
    rows: list[tuple[str, object]] = [
        *([] if summary.subset is None else [("subset", summary.subset)]),
        ("shards", summary.shards),
        ("samples", summary.samples),
        ("bytes of images" if summary.subset else "bytes", format_bytes(_num_bytes(summary))),
        ("slides", summary.slides),
    ]
    if summary.samples_per_slide:
        least, median, most = summary.samples_per_slide
        rows += [("samples per slide, min", least), ("median", f"{median:,g}"), ("max", most)]
    if summary.samples_without_slide:
        rows.append(("samples without slide", summary.samples_without_slide))
    rows += [(f"quarantined: {reason}", count) for reason, count in summary.quarantined.items()]
    rows += [(f"dropped: {reason}", count) for reason, count in _counts(summary, "dropped")]
    rows += [(what, count) for what, count in _counts(summary, "quality")]
    if duplicates := summary.metadata.get("duplicates"):
        rows.append(("exact duplicates", duplicates))
    if summary.withdrawn_in_shards:
        rows.append(("withdrawn, but still in shards (see 'dinowds withdraw --rewrite')", summary.withdrawn_in_shards))
    console.print(make_table(title, ("", ""), rows))
    cohorts = [(name, count, summary.slides_per_cohort[name]) for name, count in summary.cohorts.items()]
    console.print(make_table("cohorts", ("cohort", "samples", "slides"), _first(cohorts)))
    if summary.labels:
        labels: list[tuple[object, ...]] = list(summary.labels.items())
        if summary.samples_without_label:
            labels.append(("none", summary.samples_without_label))
        console.print(make_table("labels", ("label", "samples"), _first(labels)))
    console.print(make_table("image sizes", ("width x height", "samples"), _first(list(summary.sizes.items()))))
    console.print(make_table("formats", ("format", "samples"), summary.formats.items()))


def _counts(summary: Summary, name: str) -> list[tuple[str, object]]:
    """Of the metadata, which others may have written."""
    found = summary.metadata.get(name)
    return list(found.items()) if isinstance(found, dict) else []


def _num_bytes(summary: Summary) -> int:
    """Shards have other samples too: of a subset, its payloads are counted."""
    return summary.num_bytes if summary.subset is None else summary.payload_bytes


def _first(
    rows: list[tuple[object, ...]] | list[tuple[str, int]] | list[tuple[str, int, int]],
) -> list[tuple[object, ...]]:
    """The first rows, and a line that counts the others."""
    if len(rows) <= _MAX_ROWS + 1:
        return list(rows)
    others = rows[_MAX_ROWS:]
    totals = (sum(int(str(row[column])) for row in others) for column in range(1, len(rows[0])))
    return [*rows[:_MAX_ROWS], (f"{len(others)} others", *totals)]


def _print_damages(damages: list[Damage], verify: bool) -> None:
    from rich.console import Console

    if verify and not damages:
        Console().print("verified: every byte is as it was written")
    for damage in damages:
        parts = [damage.shard, damage.key, damage.problem]
        text = ": ".join(printable(part) for part in parts if part is not None)
        print(text)  # noqa: T201


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
