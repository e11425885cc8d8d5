"""`dinowds shard`: sources → a dataset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .shard_progress import show_progress
from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.data.manifest import Manifest
    from dinowds.shard.build import ShardPlan

Layout = Literal[
    "auto", "tar", "folder", "hs2p", "stamp", "classes", "paths", "webdataset", "dataset", "reference", "regions"
]

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MAX_WORKERS = 8


def parse_size(text: str) -> int:
    """'256MiB', '1GB', '1.5G' or '500000' → bytes. Raises typer.BadParameter."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is not a size; expected for example 256MiB, 1GB or 500000")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])


def default_workers() -> int:
    """The cores this process may use, at most 8: more threads only compete for the disk."""
    from dinowds.world import available_cores

    return min(available_cores(), _MAX_WORKERS)


def default_memory() -> int:
    """Half of the memory that this process may still take, bytes."""
    from dinowds.shard.options import MIN_MEMORY
    from dinowds.world import available_memory

    return max(available_memory() // 2, MIN_MEMORY)


_LISTS, _QUALITY, _OUTPUT = "Labels and lists", "Quality and duplicates", "Output"

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC...",
        help="Tars (plain, gz, bz2, xz), zips, folders of images or of slides' tars, lists of paths (CSV, Parquet), "
        "datasets, roots of .npy entries. What is packed needs room for its unpacked bytes in OUT meanwhile.",
    ),
]
Out = Annotated[
    str, typer.Option("--out", "-o", help="Folder of the new dataset, or a URL such as s3://bucket/prefix.")
]
LayoutName = Annotated[Layout, typer.Option(help="How the sources lie on disk.")]
CohortName = Annotated[str | None, typer.Option("--cohort", help="Name of all sources' cohort; their own otherwise.")]
SplitName = Annotated[str | None, typer.Option("--split", help="Of sources that have several: train, query, …")]
FoldName = Annotated[str | None, typer.Option("--fold", help="Of .npy roots that have several.")]
KeyPattern = Annotated[
    str | None,
    typer.Option(
        help="Regex with named groups slide, x, y, searched in each path; '' for none.",
        show_default="x_y at a name's end",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(help="CSV of labels: by path, slide/name, file name or slide.", rich_help_panel=_LISTS),
]
NameColumn = Annotated[
    str | None,
    typer.Option(help="Its column of names.", show_default="filename, image_path, slide_id, …", rich_help_panel=_LISTS),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Its column of labels.", show_default="label", rich_help_panel=_LISTS)
]
ClassColumn = Annotated[
    str | None, typer.Option(help="Its column of the names of integer labels.", rich_help_panel=_LISTS)
]
Keep = Annotated[
    Path | None,
    typer.Option(help="Take these alone: a list of paths, slide/names, file names or slides.", rich_help_panel=_LISTS),
]
Remove = Annotated[Path | None, typer.Option(help="Leave these out.", rich_help_panel=_LISTS)]
MaxPerSlide = Annotated[
    int | None, typer.Option(help="Draw at most that many samples of each slide.", rich_help_panel=_LISTS)
]
Verify = Annotated[
    Literal["header", "decode"],
    typer.Option(
        help="Check images by their structure, or decode them all; that also gives columns on white, black and blur.",
        rich_help_panel=_QUALITY,
    ),
]
DropDuplicates = Annotated[
    bool, typer.Option("--drop-duplicates", help="Take images of the same bytes once.", rich_help_panel=_QUALITY)
]
DropBlank = Annotated[
    bool, typer.Option("--drop-blank", help="Leave out nearly white and black images.", rich_help_panel=_QUALITY)
]
MinSharpness = Annotated[
    float | None,
    typer.Option(help="Leave out images whose Laplacian varies less, in grey levels².", rich_help_panel=_QUALITY),
]
Name = Annotated[
    str | None,
    typer.Option(help="Of the dataset and its shards; the folder's name otherwise.", rich_help_panel=_OUTPUT),
]
Seed = Annotated[int, typer.Option(help="Of the shuffle over all sources.", rich_help_panel=_OUTPUT)]
Shuffle = Annotated[
    bool,
    typer.Option("--shuffle/--no-shuffle", help="Shuffle, or keep the order of the sources.", rich_help_panel=_OUTPUT),
]
ShardSize = Annotated[str, typer.Option(help="Largest shard: 256MiB, 1GB, 500000.", rich_help_panel=_OUTPUT)]
MaxCount = Annotated[int | None, typer.Option(help="Largest number of samples in a shard.", rich_help_panel=_OUTPUT)]
Workers = Annotated[int | None, typer.Option(help="Threads; the cores, at most 8, otherwise.", rich_help_panel=_OUTPUT)]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Shuffle sources that are larger than this through files in OUT, which reads them in sequence; "
        "0 for never.",
        show_default="half of what is free",
        rich_help_panel=_OUTPUT,
    ),
]
InPlace = Annotated[
    bool,
    typer.Option(
        "--in-place", help="Write an index alone: the shards are the tars as they are.", rich_help_panel=_OUTPUT
    ),
]
Append = Annotated[
    bool,
    typer.Option("--append", help="Add the sources as new cohorts to the dataset in OUT.", rich_help_panel=_OUTPUT),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Work on a dask cluster: local, or tcp://scheduler:port.", rich_help_panel=_OUTPUT),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the dataset in OUT once the new one is whole; a remote one at once.",
        rich_help_panel=_OUTPUT,
    ),
]
Staging = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the unfinished part of a remote dataset: a shard or two a worker.",
        show_default="in the cache folder",
        rich_help_panel=_OUTPUT,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be written; write nothing.", rich_help_panel=_OUTPUT)
]


def shard(
    sources: Sources,
    out: Out,
    layout: LayoutName = "auto",
    cohort: CohortName = None,
    split: SplitName = None,
    fold: FoldName = None,
    key_pattern: KeyPattern = None,
    labels: Labels = None,
    name_column: NameColumn = None,
    label_column: LabelColumn = None,
    class_column: ClassColumn = None,
    keep: Keep = None,
    remove: Remove = None,
    max_per_slide: MaxPerSlide = None,
    verify: Verify = "header",
    drop_duplicates: DropDuplicates = False,
    drop_blank: DropBlank = False,
    min_sharpness: MinSharpness = None,
    name: Name = None,
    seed: Seed = 0,
    shuffle: Shuffle = True,
    shard_size: ShardSize = "256MiB",
    max_count: MaxCount = None,
    workers: Workers = None,
    memory: Memory = None,
    in_place: InPlace = False,
    append: Append = False,
    cluster: Cluster = None,
    overwrite: Overwrite = False,
    staging: Staging = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Make a dataset: shuffled WebDataset shards with an index.

    An interrupted run goes on when the same command is given again. The bytes of images are never changed.

    [dim]dinowds shard cohort-a.tar cohort-b.tar --out datasets/patches[/dim]
    """
    from dinowds.remote.urls import shown
    from dinowds.shard.build import ShardOptions, build_dataset, plan_dataset
    from dinowds.shard.choice import Choice
    from dinowds.shard.records import DEFAULT_KEY_PATTERN

    choice = Choice(
        labels=labels,
        name_column=name_column,
        label_column=label_column,
        class_column=class_column,
        keep=keep,
        remove=remove,
        drop_blank=drop_blank,
        min_sharpness=min_sharpness,
        drop_duplicates=drop_duplicates,
        max_per_slide=max_per_slide,
        seed=seed,
    )
    options = ShardOptions(
        name=name,
        seed=seed,
        shuffle=shuffle,
        shard_size=parse_size(shard_size),
        max_count=max_count,
        workers=default_workers() if workers is None else workers,
        memory=default_memory() if memory is None else parse_size(memory) or None,
        key_pattern=DEFAULT_KEY_PATTERN if key_pattern is None else key_pattern,
        layout=layout,
        cohort=cohort,
        split=split,
        fold=fold,
        verify=verify,
        choice=choice,
        in_place=in_place,
        append=append,
        cluster=cluster,
        overwrite=overwrite,
        staging=staging,
    )
    with interruptible(), show_progress() as report:
        if dry_run:
            plan = plan_dataset(sources, out, options, report)
        else:
            manifest = build_dataset(sources, out, options, report, print_notice)
    if dry_run:
        for line in plan.notices:
            print_notice(line)
        _print_plan(plan, shown(out), as_json)
    else:
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
    rows += [(f"dropped: {what}", count) for what, count in manifest.metadata.get("dropped", {}).items()]
    rows += [(what, count) for what, count in manifest.metadata.get("quality", {}).items()]
    if duplicates := manifest.metadata.get("duplicates"):
        rows.append(("exact duplicates, kept", duplicates))
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
        *((f"would drop: {what}", count) for what, count in plan.dropped.items()),
        *((f"would quarantine: {reason}", count) for reason, count in plan.quarantined.items()),
    ]
    _print_rows(f"{out} (nothing written)", rows)


def _print_rows(title: str, rows: list[tuple[str, object]]) -> None:
    from rich.console import Console

    Console().print(make_table(title, ("", ""), rows))
