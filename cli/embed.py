"""`dinowds embed`: a dataset and weights → features, or regions of features."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import embed_region
from .embed_progress import show_progress
from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table

if TYPE_CHECKING:
    from dinowds.embed.patches.embed import Outcome, Plan
    from dinowds.embed.patches.job import PatchOptions

app = typer.Typer(help="Make features of images, or regions of features.", no_args_is_help=True)


class Dtype(str, Enum):
    """Of `--dtype`."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Precision(str, Enum):
    """Of `--precision`."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


class PosInterpolation(str, Enum):
    """Of `--pos-interpolation`."""

    TIMM = "timm"
    SIZE = "size"
    DINO = "dino"


@app.command()
def patch(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET[:SUBSET]", help="Folder or URL that 'dinowds shard' wrote.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run folder, or weights of dinowds, DINO, HIPT, the reference or timm.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the features. The same command goes on.", show_default=False)
    ],
    student: Annotated[bool, typer.Option("--student", help="The student's weights, not the teacher's.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of the features in the files.")] = Dtype.FLOAT16,
    tokens: Annotated[bool, typer.Option("--tokens", help="Write the patch tokens of each image too.")] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Resize the largest square in the middle of each image to this side.",
            show_default="as they are",
        ),
    ] = None,
    pos_interpolation: Annotated[
        PosInterpolation | None, typer.Option(help="Of positions, for other sizes.", show_default="the weights' own")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="auto: bf16 where the device has units for it.")
    ] = Precision.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the device at once.")] = 256,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Loader processes of each rank.", show_default="by the cores")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this host, one for each GPU.")] = 1,
    max_bad: Annotated[int, typer.Option(min=0, help="Unreadable samples, whose features are NaN, at most.")] = 100,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace features of another dataset, model or options in OUT.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Write the feature of each sample of a dataset as Parquet.

    Under torchrun or srun every process is one rank; --nproc N starts N here. An interrupted run goes on when the same
    command is given again.

    [dim]dinowds embed patch datasets/patches --checkpoint runs/one --out features/one[/dim]
    """
    from dinowds.embed.patches.embed import plan_patches
    from dinowds.embed.patches.job import PatchOptions

    options = PatchOptions(
        checkpoint=checkpoint,
        which="student" if student else "teacher",
        pos_interpolation=None if pos_interpolation is None else pos_interpolation.value,
        dtype=dtype.value,
        tokens=tokens,
        image_size=image_size,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        overwrite=overwrite,
    )
    if dry_run:
        _print_plan(plan_patches(dataset, out, options), out, as_json)
    elif nproc == 1:
        run_rank(dataset, out, options, as_json)
    else:
        from dinowds.train.launch import launch

        launch(run_rank, (dataset, out, options, as_json), nproc)


def run_rank(dataset: str, out: Path, options: PatchOptions, as_json: bool) -> None:
    """One rank; rank 0 shows its progress and the result."""
    from dinowds.embed.patches.embed import embed_patches
    from dinowds.world import World

    if World.from_environment().rank:
        with interruptible():
            embed_patches(dataset, out, options)
        return
    with interruptible(), show_progress("images") as report:
        outcome = embed_patches(dataset, out, options, report, print_notice)
    _print(outcome, out, as_json)


def _print(outcome: Outcome, out: Path, as_json: bool) -> None:
    about = outcome.about
    if as_json:
        speed = round(outcome.images_per_second, 1)
        print_json({"features": str(out), "embedded": outcome.embedded, "images_per_second": speed, **about})
        return
    rows: list[tuple[str, object]] = [
        ("samples", about["samples"]),
        *([("could not be read (bad_samples.jsonl)", about["bad_samples"])] if about["bad_samples"] else []),
        ("files", about["shards"]),
        ("values of a feature", f"{about['dim']} {about['dtype']}"),
        *([("patch tokens of an image", about["tokens"])] if about["tokens"] else []),
        *([("images/s of rank 0", f"{outcome.images_per_second:,.0f}")] if outcome.embedded else []),
    ]
    _print_rows(str(out), rows)


def _print_plan(plan: Plan, out: Path, as_json: bool) -> None:
    if as_json:
        import dataclasses

        print_json({"features": str(out), **dataclasses.asdict(plan)})
        return
    states = {"new": "new", "begun": "goes on, or is finished", "other": "replaced by this"}
    rows = [
        ("samples", plan.samples),
        ("files", plan.shards),
        ("values of a feature", plan.dim),
        ("patch tokens of an image", plan.tokens),
        ("bytes of all features, about", format_bytes(plan.num_bytes)),
        ("precision", plan.precision),
        ("features in OUT", states[plan.state]),
    ]
    _print_rows(f"{out} (nothing written)", rows)


def _print_rows(title: str, rows: list[tuple[str, object]]) -> None:
    from rich.console import Console

    Console().print(make_table(title, ("", ""), rows))


app.command()(embed_region.region)
