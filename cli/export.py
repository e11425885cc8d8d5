"""`dinowds export`: weights for other systems."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json, print_notice
from .tables import make_table

if TYPE_CHECKING:
    from dinowds.model.weights import Export


class To(str, Enum):
    timm = "timm"
    dino = "dino"
    hipt = "hipt"


def export(
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A run's folder, a file of weights, or a folder of timm.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for timm, a file for dino and hipt.")],
    to: Annotated[
        To,
        typer.Option(
            help="timm: a folder as on the Hugging Face Hub, also for slide2vec, eva and TRIDENT. "
            "dino: a .pth of the original DINO. hipt: a .pth of a region model for HIPT."
        ),
    ],
    student: Annotated[bool, typer.Option("--student", help="The student; otherwise the teacher.")] = False,
    with_head: Annotated[bool, typer.Option("--with-head", help="With DINO's head (dino only).")] = False,
    fold_normalization: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="MEAN STD",
            help="Fold the normalisation that a consumer forces into the weights: one number, or three with commas.",
        ),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Resolution of the images, µm per px, to be kept on record.")
    ] = None,
    pos_interpolation: Annotated[
        str | None, typer.Option(help="timm, size or dino; otherwise what the checkpoint says, or its family's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Write trained weights for another system; its own call loads them back before they appear.

    [dim]dinowds export --checkpoint runs/patch --out exports/patch --to timm[/dim]

    [dim]dinowds export --checkpoint runs/patch --out exports/trident --to timm --fold-normalization 0.5 0.5[/dim]
    """
    normalization = fold_normalization and (
        _channels("MEAN", fold_normalization[0]),
        _channels("STD", fold_normalization[1]),
    )
    with interruptible("export again"):
        from dinowds.model.weights import export_weights, read_weights, with_mpp

        weights = read_weights(checkpoint, "student" if student else "teacher", pos_interpolation=pos_interpolation)
        if mpp is not None:
            weights = with_mpp(weights, mpp)
        done = export_weights(
            weights, out, to.value, normalization=normalization, with_head=with_head, overwrite=overwrite
        )
    _print(done, as_json)


def _channels(name: str, text: str) -> tuple[float, float, float]:
    from math import isfinite

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(isfinite(n) and (name == "MEAN" or n > 0) for n in numbers):
        above = ", above 0" if name == "STD" else ""
        raise typer.BadParameter(f"{name} is {text}, expected one number or three with commas, shares of 255{above}")
    red, green, blue = numbers * (3 // len(numbers))
    return red, green, blue


def _print(done: Export, as_json: bool) -> None:
    weights = done.weights
    architecture = weights.architecture
    size, of_images = architecture.size, architecture.kind == "image"
    if as_json:
        print_json(
            {
                "path": done.path,
                "to": done.to,
                "from": weights.path,
                "family": weights.family,
                "model": weights.which,
                "kind": architecture.kind,
                **size._asdict(),
                "patch_size": architecture.patch_size,
                "grid": architecture.grid,
                "pos_interpolation": architecture.pos_interpolation,
                "mean": weights.mean if of_images else None,
                "std": weights.std if of_images else None,
                "about": weights.about,
                "fingerprint": weights.fingerprint,
                "difference": done.difference,
                "load": done.calls,
                "note": done.note,
            }
        )
        return
    from rich.console import Console

    rows: list[tuple[str, object]] = [
        ("from", f"{weights.path} ({weights.family}, {weights.which})"),
        ("width, depth, heads", f"{size.embed_dim}, {size.depth}, {size.num_heads}"),
        ("patch, grid", f"{architecture.patch_size}, {architecture.grid} × {architecture.grid}"),
        ("position interpolation", architecture.pos_interpolation),
        *([("mean, std", f"{weights.mean}, {weights.std}")] if of_images else []),
        ("checked, largest difference", f"{done.difference:.1e}"),
    ]
    console = Console()
    console.print(make_table(done.path, ("", ""), rows))
    console.print("Load it with:", *(f"  {call}" for call in done.calls), sep="\n", markup=False, soft_wrap=True)
    if done.note:
        print_notice(f"mind: {done.note}")
