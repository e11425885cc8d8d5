"""`dinowds shard`: sources → a dataset."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import interruptible, print_json, printable
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.data.manifest import Manifest
    from dinowds.shard.build import ShardPlan, ShardProgress

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_PLAIN_SECONDS = 5.0
_MAX_WORKERS = 8


def parse_size(text: str) -> int:
    """'256MiB', '1GB', '1.5G' or '500000' → bytes. Raises typer.BadParameter."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is not a size; expected for example 256MiB, 1GB or 500000")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])


def default_workers() -> int:
    """The cores this process may use, at most 8: more processes only compete for the disk."""
    from dinowds.world import available_cores

    return min(available_cores(), _MAX_WORKERS)


def shard(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Tars (plain, gz, bz2, xz) or folders of images; each is a cohort. A compressed tar needs room "
            "for its uncompressed bytes in OUT (or the staging folder) meanwhile.",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder of the new dataset, or a URL such as s3://bucket/prefix.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the dataset and its shards; the folder's name otherwise.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle over all sources.")] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Shuffle, or keep the order of the sources.")
    ] = True,
    shard_size: Annotated[
        str, typer.Option(help="Largest shard: 256MiB, 1GB, 500000. Each worker holds one in memory.")
    ] = "256MiB",
    max_count: Annotated[int | None, typer.Option(help="Largest number of samples in a shard.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that write; the cores, at most 8, otherwise.")] = None,
    key_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regex with named groups slide, x, y, searched in each path; '' for none.",
            show_default="x_y at a name's end",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the dataset in OUT once the new one is whole; a remote one at once."),
    ] = False,
    staging: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the unfinished part of a remote dataset: a shard or two a worker.",
            show_default="in the cache folder",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Make a dataset: shuffled WebDataset shards with an index.

    An interrupted run goes on when the same command is given again. The bytes of images are never changed.

    [dim]dinowds shard cohort-a.tar cohort-b.tar --out datasets/patches[/dim]
    """
    from dinowds.remote.urls import shown
    from dinowds.shard.build import ShardOptions, build_dataset, plan_dataset
    from dinowds.shard.records import DEFAULT_KEY_PATTERN

    options = ShardOptions(
        name=name,
        seed=seed,
        shuffle=shuffle,
        shard_size=parse_size(shard_size),
        max_count=max_count,
        workers=default_workers() if workers is None else workers,
        key_pattern=DEFAULT_KEY_PATTERN if key_pattern is None else key_pattern,
        overwrite=overwrite,
        staging=staging,
    )
    with interruptible(), show_progress() as report:
        if dry_run:
            _print_plan(plan_dataset(sources, out, options, report), shown(out), as_json)
            return
        manifest = build_dataset(sources, out, options, report)
    _print_summary(manifest, out, as_json)


def _print_summary(manifest: Manifest, out: str, as_json: bool) -> None:
    from dinowds.data.summary import summarize
    from dinowds.remote.urls import shown

    summary = summarize(out if "://" in out else Path(out).resolve())
    if as_json:
        print_json({"dataset": shown(out), **summary.to_json()})
        return
    rows: list[tuple[str, object]] = [
        ("samples", summary.samples),
        ("shards", summary.shards),
        ("bytes", format_bytes(summary.num_bytes)),
        ("cohorts", len(summary.cohorts)),
        ("slides", summary.slides),
    ]
    rows += [(f"skipped: {what}", count) for what, count in manifest.metadata.get("skipped", {}).items()]
    rows += [(f"quarantined: {reason}", count) for reason, count in manifest.quarantined.items()]
    _print_rows(shown(out), rows)


def _print_plan(plan: ShardPlan, out: str, as_json: bool) -> None:
    if as_json:
        import dataclasses

        print_json({"dataset": out, **dataclasses.asdict(plan)})
        return
    rows: list[tuple[str, object]] = [
        ("samples", plan.samples),
        ("shards", plan.shards),
        ("bytes", format_bytes(plan.num_bytes)),
        *((f"cohort {cohort}", count) for cohort, count in plan.cohorts.items()),
        ("labels", len(plan.label_names)),
        *((f"would skip: {what}", count) for what, count in plan.skipped.items()),
        *((f"would quarantine: {reason}", count) for reason, count in plan.quarantined.items()),
    ]
    _print_rows(f"{out} (nothing written)", rows)


def _print_rows(title: str, rows: list[tuple[str, object]]) -> None:
    from rich.console import Console

    Console().print(make_table(title, ("", ""), rows))


@contextmanager
def show_progress() -> Iterator[Callable[[ShardProgress], None]]:
    """A bar on a terminal, a line every few seconds elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _PlainLines().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress).report


class _Bar:
    """Shows one phase at a time."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None
        self._phase: tuple[str, str] | None = None

    def report(self, state: ShardProgress) -> None:
        from rich.markup import escape

        if self._phase != (state.phase, state.source):
            self._phase = (state.phase, state.source)
            if self._task is not None:
                self._progress.remove_task(self._task)
            # A run that goes on begins with samples: they are no part of its speed.
            self._task = self._progress.add_task(
                escape(f"{state.phase} {Path(state.source).name}".strip()),
                total=state.total_samples or None,
                completed=state.samples,
                rate="",
            )
            return
        speed = self._progress.tasks[-1].speed
        rate = f"{speed:,.0f} samples/s" if speed and state.phase == "write" else ""
        if state.phase == "decompress":
            rate = format_bytes(state.num_bytes)
        self._progress.update(self._task, completed=state.samples, rate=rate)


class _PlainLines:
    """A line when a phase begins, and every few seconds of writing."""

    def __init__(self) -> None:
        self._phase = ""
        self._began = self._printed = 0.0
        self._samples_before = 0

    def report(self, state: ShardProgress) -> None:
        now = time.monotonic()
        phase = f"{state.phase} {state.source}".strip()
        if phase != self._phase:
            self._phase, self._began, self._printed, self._samples_before = phase, now, now, state.samples
            self._print(f"{phase}: {state.total_samples:,} samples" if state.total_samples else phase)
        elif now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            speed = (state.samples - self._samples_before) / (now - self._began)
            if state.phase == "write" and speed:
                left = (state.total_samples - state.samples) / speed
                done = f"{state.samples:,} of {state.total_samples:,} samples"
                self._print(f"write: {done}, {speed:,.0f} samples/s, {left:,.0f} s left")
            else:
                amount = format_bytes(state.num_bytes) if state.num_bytes else f"{state.samples:,} members"
                self._print(f"{phase}: {amount}")

    @staticmethod
    def _print(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
