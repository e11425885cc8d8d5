"""`dinowds subset`: name a part of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json, print_notice
from .tables import make_table

if TYPE_CHECKING:
    from dinowds.data.dataset import Dataset
    from dinowds.data.subsets.subset import Subset


def subset(
    dataset: Annotated[
        str, typer.Argument(help="Dataset, or DATASET:SUBSET for a part of a subset.", show_default=False)
    ],
    name: Annotated[str | None, typer.Option(help="Of the new subset.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="List of samples to take, one a line: key, name in its source, slide/file name, or file name where "
            "that is unique, with or without its extension."
        ),
    ] = None,
    remove: Annotated[Path | None, typer.Option(help="List of samples to leave out.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Condition on columns of the index: \"cohort == 'A' and label != 3\".")
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="List of slides: their names, or cohort/slide.")] = None,
    max_per_slide: Annotated[int | None, typer.Option(help="Draw at most this many samples of a slide.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Draw this share of what is left: 0 < F <= 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a subset of that name.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Show the subsets that there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Name a part of a dataset, for use as DATASET:NAME. No shard is read or written.

    A sample is taken if all conditions hold; then come --max-per-slide and --fraction.

    [dim]dinowds subset datasets/patches --name fold_0 --slides fold_0/train.txt --max-per-slide 500[/dim]
    """
    from dinowds.data.dataset import Dataset
    from dinowds.data.location import split_location
    from dinowds.data.subsets.subset import check_writable, write_subset
    from dinowds.remote.urls import shown

    if (name is None) != list_all:
        raise typer.BadParameter("give --name for a new subset, or --list", param_hint="--name")
    with interruptible():
        if not list_all:
            check_writable(split_location(dataset)[0])
        opened = Dataset.open(dataset)
        if list_all:
            _print_list(opened, as_json)
            return
        from dinowds.data.subsets.choose import SubsetOptions, choose_subset

        assert name is not None
        options = SubsetOptions(keep, remove, where, slides, max_per_slide, fraction, seed)
        made, mask, notices = choose_subset(opened, name, options)
        for notice in notices:
            print_notice(notice)
        if not write_subset(opened.url, made, mask, opened.files, overwrite):
            print_notice(f"{shown(opened.url)}:{name} is there already, and is the same")
    _print_subset(opened, made, as_json)


def _print_subset(dataset: Dataset, made: Subset, as_json: bool) -> None:
    from dinowds.remote.urls import shown

    location = f"{shown(dataset.url)}:{made.name}"
    if as_json:
        print_json({"dataset": location, **made.to_json()})
        return
    from rich.console import Console

    total = dataset.manifest.num_samples
    rows: list[tuple[str, object]] = [
        ("samples", made.samples),
        ("of the dataset", f"{made.samples / total:.2%}"),
        ("slides", made.slides),
        *((f"cohort {cohort}", count) for cohort, count in made.cohorts.items()),
    ]
    Console().print(make_table(location, ("", ""), rows))


def _print_list(dataset: Dataset, as_json: bool) -> None:
    from dinowds.data.subsets.subset import describe, list_subsets, read_subset
    from dinowds.errors import DatasetError
    from dinowds.remote.urls import HTTP, scheme_of, shown

    found: list[Subset] = []
    names = list_subsets(dataset.url, dataset.files)
    for name in names:
        try:
            found.append(read_subset(dataset.url, name, dataset.manifest, dataset.files))
        except DatasetError as error:
            print_notice(str(error))
    url = shown(dataset.url)
    if not names:
        over_http = scheme_of(url) in HTTP
        print_notice(
            f"{url}: " + ("the server lists no subsets, though there may be some" if over_http else "has no subsets")
        )
    if as_json:
        print_json({"dataset": url, "subsets": [subset.to_json() for subset in found]})
        return
    from rich.console import Console

    if not found:
        return
    rows = [(subset.name, subset.samples, subset.slides, describe(subset.definition)) for subset in found]
    Console().print(make_table(url, ("subset", "samples", "slides", "made with"), rows))
