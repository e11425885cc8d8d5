"""`dinowds attend`: pictures of what a model looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .embed_progress import show_progress
from .shared import interruptible, print_json, printable

_REGIONS, _DRAWING = "Whole regions", "Drawing"


def attend(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...|DATASET[:SUBSET]",
            help="Image files, or a dataset: samples by --key, or a few.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run folder, or weights of dinowds, DINO, HIPT, the reference or timm; of images or of regions.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the pictures, a PNG file each.", show_default=False)
    ],
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Of a sample of DATASET; several.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="So many of DATASET at even distances, without --key.", show_default="8"),
    ] = None,
    student: Annotated[bool, typer.Option("--student", help="The student's weights, not the teacher's.")] = False,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Resize the shorter side to this. Both sides become multiples of the model's patch size in any case.",
            show_default="as it is",
        ),
    ] = None,
    patch_checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Model of the patches, where --checkpoint is of regions and the images are whole regions.",
            show_default=False,
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    patch_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Side of a region's patch.",
            show_default="what the model was trained on, or 256",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    drop_blank: Annotated[
        bool,
        typer.Option("--drop-blank", help="Nearly white or black patches are missing cells.", rich_help_panel=_REGIONS),
    ] = False,
    mass: Annotated[
        float, typer.Option(help="Share of the attention that the mask's tokens hold.", rich_help_panel=_DRAWING)
    ] = 0.6,
    colours: Annotated[
        Literal["inferno", "viridis", "magma", "plasma", "cividis"],
        typer.Option(help="Of the maps.", rich_help_panel=_DRAWING),
    ] = "inferno",
    alpha: Annotated[float, typer.Option(help="Share of the colours over an image.", rich_help_panel=_DRAWING)] = 0.6,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Interpolate maps between tokens.", rich_help_panel=_DRAWING)
    ] = False,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground",
            help="PCA of the foreground alone: the more attended side of the first component.",
            rich_help_panel=_DRAWING,
        ),
    ] = False,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="PCA of all images together: a colour means the same in each.",
            rich_help_panel=_DRAWING,
        ),
    ] = False,
    panels: Annotated[
        bool,
        typer.Option("--panels", help="Write each panel to a file of its own too.", rich_help_panel=_DRAWING),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures of these names in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Draw the attention of the class token and the principal components of patch tokens, a sheet for each image.

    With a region's model: of its cells. With --patch-checkpoint: of the patches too, joined over the whole region.

    [dim]dinowds attend --checkpoint runs/patch photo.jpg --out attention[/dim]

    [dim]dinowds attend --checkpoint runs/patch data/patches --key slide-1/1024_2048 --out attention[/dim]

    [dim]dinowds attend --checkpoint runs/region --patch-checkpoint runs/patch region.png --out attention[/dim]
    """
    from dinowds.eval.attend.run import AttendOptions
    from dinowds.eval.attend.run import attend as draw

    options = AttendOptions(
        checkpoint=checkpoint,
        patch_checkpoint=patch_checkpoint,
        which="student" if student else "teacher",
        size=size,
        patch_size=patch_size,
        drop_blank=drop_blank,
        mass=mass,
        colours=colours,
        alpha=alpha,
        is_smooth=smooth,
        only_foreground=foreground,
        is_joint=joint,
        panels=panels,
        overwrite=overwrite,
    )
    with interruptible("begin anew"), show_progress("pictures") as report:
        drawn = draw(sources, out, options, key or [], samples, report)
    if as_json:
        import dataclasses

        print_json({"pictures": str(out), "drawn": [dataclasses.asdict(one) for one in drawn]})
        return
    for one in drawn:
        held = f"{one.tokens_in_mask:,} of {one.tokens:,} tokens hold {100 * mass:g} % of the attention"
        print(printable(f"{one.picture}: {one.details[0]}  ·  {held}"))  # noqa: T201
