"""`dinowds embed region`: region images, patches or features → a dataset of regions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .shard import default_memory, default_workers, parse_size
from .shard_progress import show_progress
from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.data.manifest import Manifest
    from dinowds.embed.regions.ways import RegionOptions, Summary

_GRIDS, _EMBEDDING, _OUTPUT = "Grids", "Embedding", "Output"

Stride = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="From one region to the next; smaller ones overlap.",
        show_default="the region size",
        rich_help_panel=_GRIDS,
    ),
]
Step = Annotated[
    float | None,
    typer.Option(
        help="Distance of neighbouring patches in the units of x and y.",
        show_default="found for each slide",
        rich_help_panel=_GRIDS,
    ),
]


def region(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Dataset of patches or of region images (DATASET[:SUBSET]), folder that 'dinowds embed patch' wrote, "
            "or Parquet files with slide, x, y and feature.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the new dataset. The same command goes on.", show_default=False),
    ],
    region_size: Annotated[
        int, typer.Option(metavar="PX", help="Side of a region, in px of its patches.", show_default=False)
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run folder, or weights of dinowds, DINO, HIPT, the reference or timm; not for features.",
            show_default=False,
        ),
    ] = None,
    take: Annotated[
        Literal["auto", "images", "patches", "features"],
        typer.Option("--from", help="What SRC has: images of whole regions, patches of slides, or features of these."),
    ] = "auto",
    patch_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Side of a patch.",
            show_default="the images' own; 256 in region images",
            rich_help_panel=_GRIDS,
        ),
    ] = None,
    stride: Stride = None,
    step: Step = None,
    min_filled: Annotated[
        float, typer.Option(help="Least share of a region's cells that must exist.", rich_help_panel=_GRIDS)
    ] = 0.5,
    max_unplaced: Annotated[
        float,
        typer.Option(
            help="Largest share of patches that may be left out: no slide, x or y, off the lattice, or at another's "
            "place.",
            rich_help_panel=_GRIDS,
        ),
    ] = 0.01,
    student: Annotated[
        bool, typer.Option("--student", help="The student's weights, not the teacher's.", rich_help_panel=_EMBEDDING)
    ] = False,
    pos_interpolation: Annotated[
        Literal["timm", "size", "dino"] | None,
        typer.Option(
            help="Of positions, for other sizes.", show_default="the weights' own", rich_help_panel=_EMBEDDING
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="auto: bf16 where the device has units for it.", rich_help_panel=_EMBEDDING),
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Patches that go through the device at once.", rich_help_panel=_EMBEDDING)
    ] = 256,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Loader processes of each rank.", show_default="by the cores", rich_help_panel=_EMBEDDING
        ),
    ] = None,
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes on this host, one for each GPU.", rich_help_panel=_EMBEDDING)
    ] = 1,
    max_bad: Annotated[
        int,
        typer.Option(min=0, help="Unreadable patches, whose cells are missing, at most.", rich_help_panel=_EMBEDDING),
    ] = 100,
    name: Annotated[
        str | None,
        typer.Option(help="Of the dataset and its shards; the folder's name otherwise.", rich_help_panel=_OUTPUT),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle.", rich_help_panel=_OUTPUT)] = 0,
    shard_size: Annotated[
        str, typer.Option(help="Largest shard: 256MiB, 1GB, 500000.", rich_help_panel=_OUTPUT)
    ] = "256MiB",
    max_count: Annotated[
        int | None, typer.Option(help="Largest number of regions in a shard.", rich_help_panel=_OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the dataset in OUT once the new one is whole.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be written; write nothing.", rich_help_panel=_OUTPUT),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Make a dataset of regions: n×n grids of the features of patches, for 'dinowds train region'.

    A patch's cell follows from its x and y alone; cells that do not exist are NaN. Under torchrun or srun every process
    is one rank; --nproc N starts N here. An interrupted run goes on when the same command is given again; what is
    unfinished lies in OUT.unfinished.

    [dim]dinowds embed region datasets/patches -c runs/one --region-size 4096 --out datasets/regions[/dim]
    """
    from dinowds.embed.patches.job import PatchOptions
    from dinowds.embed.regions.ways import RegionOptions
    from dinowds.shard.options import ShardOptions

    embedding = PatchOptions(
        checkpoint=checkpoint or "",
        which="student" if student else "teacher",
        pos_interpolation=pos_interpolation,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
    )
    options = RegionOptions(
        region_size=region_size,
        take=take,
        patch_size=patch_size,
        stride=stride,
        step=step,
        min_filled=min_filled,
        max_unplaced=max_unplaced,
        embedding=None if checkpoint is None else embedding,
        sharding=ShardOptions(
            name=name,
            seed=seed,
            shard_size=parse_size(shard_size),
            max_count=max_count,
            workers=default_workers(),
            memory=default_memory(),
            overwrite=overwrite,
        ),
    )
    if dry_run:
        from dinowds.embed.regions.embed import plan_regions

        _print_plan(plan_regions(source, options), options, out, as_json)
    elif nproc == 1:
        run_rank(source, out, options, as_json)
    else:
        from dinowds.train.launch import launch

        launch(run_rank, (source, out, options, as_json), nproc)


def run_rank(source: str, out: Path, options: RegionOptions, as_json: bool) -> None:
    """One rank; rank 0 shows its progress and the result."""
    from dinowds.embed.regions.embed import embed_regions
    from dinowds.world import World

    if World.from_environment().rank:
        with interruptible():
            embed_regions(source, out, options)
        return
    with interruptible(), show_progress() as show:
        manifest = embed_regions(source, out, options, _phases(show), print_notice)
    assert manifest is not None
    _print(manifest, out, as_json)


def _phases(show: Callable[[Any], None]) -> Callable[[str, int, int], None]:
    from dinowds.shard.progress import ShardProgress

    def report(phase: str, done: int, total: int) -> None:
        show(ShardProgress(phase, done, total))  # type: ignore[arg-type]

    return report


def _print(manifest: Manifest, out: Path, as_json: bool) -> None:
    facts = manifest.metadata
    if as_json:
        print_json(
            {
                **facts,  # its `cohorts` tell mpp; those of the result are counts
                "dataset": str(out),
                "regions": manifest.num_samples,
                "cohorts": manifest.cohorts,
                "quarantined": manifest.quarantined,
            }
        )
        return
    cells = facts["region_size"] // facts["patch_size"]
    rows: list[tuple[str, object]] = [
        ("regions", manifest.num_samples),
        ("cells of a region", f"{cells}×{cells}"),
        ("features of a cell", facts["feature_dim"]),
        *([("missing cells", facts["missing_cells"])] if facts.get("missing_cells") else []),
        ("shards", len(manifest.shards)),
        ("bytes", format_bytes(manifest.num_bytes)),
        *((f"cohort {cohort}", count) for cohort, count in manifest.cohorts.items()),
        *((f"quarantined: {reason}", count) for reason, count in manifest.quarantined.items()),
    ]
    _print_rows(str(out), rows)


def _print_plan(plan: Summary, options: RegionOptions, out: Path, as_json: bool) -> None:
    if as_json:
        import dataclasses

        print_json({"dataset": str(out), **dataclasses.asdict(plan)})
        return
    of_all = plan.regions * plan.cells**2
    rows: list[tuple[str, object]] = [
        ("made from", plan.made_from),
        ("regions", plan.regions),
        *([("slides with regions", plan.slides)] if plan.slides else []),
        ("cells of a region", f"{plan.cells}×{plan.cells}"),
        ("missing cells", f"{plan.missing_cells:,} of {of_all:,}"),
        (f"regions with less than {options.min_filled:.0%} of their cells, left out", plan.sparse_regions),
        *((f"patches left out: {reason}", count) for reason, count in plan.left_out.items()),
        *((f"distance of patches, cohort {cohort}", str(step)) for cohort, step in (plan.step or {}).items()),
    ]
    _print_rows(f"{out} (nothing written)", rows)


def _print_rows(title: str, rows: list[tuple[str, object]]) -> None:
    from rich.console import Console

    Console().print(make_table(title, ("", ""), rows))
