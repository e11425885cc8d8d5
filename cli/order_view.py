"""How `dinowds order` shows what it found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .shared import printable
from .tables import make_table

if TYPE_CHECKING:
    from rich.console import Console

    from dinowds.data.dataset import Dataset
    from dinowds.data.order.exposure import Exposure
    from dinowds.data.order.listing import Named
    from dinowds.data.order.plan import Plan
    from dinowds.data.order.quality import Quality

_MAX_ROWS = 12
_WELL_MIXED = 0.98
_WELL_MIXED_AT_EDGES = 0.9  # of few batches, whose ratio is not known as well
_AT_ONCE = 1 << 15  # draws that are planned and looked up together


def about(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """What every JSON answer begins with."""
    from dinowds.remote.urls import shown

    return {
        "dataset": shown(dataset.url),
        "subset": dataset.subset,
        "samples": len(dataset),
        "order": {**dataclasses.asdict(plan.order), "weights": dict(plan.order.weights)},
        "steps_per_epoch": plan.steps_per_epoch,
    }


def print_batches_json(dataset: Dataset, plan: Plan, steps: range, ranks: Sequence[int] | None) -> None:
    """One batch after the other, so that any number of them takes the memory of a few."""
    head = json.dumps({**about(dataset, plan), "batches": []}, indent=1, ensure_ascii=False)
    start, end = head[: head.rindex("]")], head[head.rindex("]") :]
    separator = start
    for step, rows in _named_batches(dataset, plan, steps):
        columns = dict(zip(("keys", "cohorts", "slides", "labels"), zip(*rows, strict=True), strict=True))
        batch = {"step": step, "epoch": step // plan.steps_per_epoch, **columns}
        if ranks:
            batch["ranks"] = ranks
        print(f"{separator}\n  {json.dumps(batch, ensure_ascii=False)}", end="")  # noqa: T201
        separator = ","
    print(f"\n {end}")  # noqa: T201


def show_batches(dataset: Dataset, plan: Plan, steps: range, ranks: Sequence[int] | None) -> None:
    """A table for each batch."""
    console = _introduce(dataset, plan)
    columns = ("place", *(("rank",) if ranks else ()), "key", "cohort", "slide", "label")
    for step, rows in _named_batches(dataset, plan, steps):
        table = make_table(f"global batch {step:,} (epoch {step // plan.steps_per_epoch:,})", columns, ())
        for column in table.columns:
            column.justify = "left"
        for place, row in enumerate(rows):
            cells = (place, *((ranks[place],) if ranks else ()), *("-" if value is None else value for value in row))
            table.add_row(*(printable(str(cell)) for cell in cells))
        console.print(table)


def _named_batches(dataset: Dataset, plan: Plan, steps: range) -> Iterator[tuple[int, list[Named]]]:
    from dinowds.data.order.listing import Listing

    listing, batch_size = Listing(dataset), plan.order.batch_size
    at_once = max(1, _AT_ONCE // batch_size)
    for start in range(0, len(steps), at_once):
        block = steps[start : start + at_once]
        rows = listing.of(plan.draws(block).ids.ravel())
        for place, step in enumerate(block):
            yield step, rows[place * batch_size : (place + 1) * batch_size]


def exposure_json(exposure: Exposure, plan: Plan) -> dict[str, Any]:
    least, median, most = exposure.views_per_sample
    return {
        "until_step": exposure.until_step,
        "epochs": exposure.until_step / plan.steps_per_epoch,
        **dataclasses.asdict(exposure.total),
        "views_per_sample": {"min": least, "median": median, "max": most},
        "num_slides": exposure.num_slides,
        "slides_not_seen": exposure.slides_not_seen,
        "samples_without_slide": exposure.samples_without_slide,
        "cohorts": {name: dataclasses.asdict(views) for name, views in exposure.cohorts.items()},
        "slides": [
            {"cohort": slide.cohort, "slide": slide.name, **dataclasses.asdict(views)}
            for slide, views in exposure.slides.items()
        ],
    }


def show_exposure(exposure: Exposure, dataset: Dataset, plan: Plan) -> None:
    console = _introduce(dataset, plan)
    least, median, most = exposure.views_per_sample
    rows: list[tuple[str, object]] = [
        ("epochs", f"{exposure.until_step / plan.steps_per_epoch:,.2f}"),
        ("draws", exposure.total.draws),
        ("samples", exposure.total.samples),
        ("samples not seen", exposure.total.not_seen),
        ("views of a sample, min", least),
        ("median", f"{median:,g}"),
        ("max", most),
        ("slides", exposure.num_slides),
        ("slides not seen", exposure.slides_not_seen),
        ("samples without slide", exposure.samples_without_slide),
    ]
    console.print(make_table(f"seen before step {exposure.until_step:,}", ("", ""), rows))
    columns = ("samples", "draws", "samples not seen")
    cohorts = [(name, *dataclasses.astuple(views)) for name, views in exposure.cohorts.items()]
    console.print(make_table("cohorts", ("cohort", *columns), _first(cohorts)))
    known = [(slide, views) for slide, views in exposure.slides.items() if slide.name is not None]
    known.sort(key=lambda item: item[1].draws / item[1].samples)
    slides = [(f"{slide.cohort}/{slide.name}", *dataclasses.astuple(views)) for slide, views in known]
    if slides:
        console.print(make_table("slides, least seen first", ("cohort/slide", *columns), _first(slides)))


def quality_json(quality: Quality) -> dict[str, Any]:
    return {
        **dataclasses.asdict(quality),
        "ratio": quality.ratio,
        "cap_kept": quality.cap_kept,
        "cohorts": {
            name: {"share": share, "expected": expected} for name, (share, expected) in quality.cohorts.items()
        },
        "meaning": explain(quality),
    }


def show_quality(quality: Quality, dataset: Dataset, plan: Plan) -> None:
    console = _introduce(dataset, plan)
    which = "" if quality.is_whole else ": spread, first and last"
    rows: list[tuple[str, object]] = [
        (f"batches looked at{which}", f"{quality.batches:,} of {quality.steps_per_epoch:,}"),
        ("distinct slides of a batch, mean", f"{quality.distinct_slides:,.2f}"),
        ("of a uniform draw", f"{quality.expected_slides:,.2f}"),
        ("ratio", f"{quality.ratio:.4f}"),
        ("of the epoch's first batches", "-" if quality.first_ratio is None else f"{quality.first_ratio:.4f}"),
        ("of its last batches", "-" if quality.last_ratio is None else f"{quality.last_ratio:.4f}"),
        ("most samples of one slide in a batch", quality.most_of_a_slide),
        ("data.max_per_slide", "none" if quality.cap is None else quality.cap),
        ("samples of a batch without slide, mean", f"{quality.samples_without_slide:,.2f}"),
    ]
    console.print(make_table(f"batches of epoch {quality.epoch:,}", ("", ""), rows))
    shares = [(name, f"{share:.2%}", f"{expected:.2%}") for name, (share, expected) in quality.cohorts.items()]
    console.print(make_table("cohorts", ("cohort", "share of draws", "expected"), shares))
    console.print(explain(quality), markup=False, highlight=False, soft_wrap=True)


def explain(quality: Quality) -> str:
    """What the figures mean, in a sentence or two."""
    seen = "" if quality.is_whole else ", of the batches looked at"
    advice = "leave data.window_chunks and data.partitions out, or raise data.window_chunks, or shuffle the dataset"
    edges = {"first": quality.first_ratio, "last": quality.last_ratio}
    unlike = [name for name, ratio in edges.items() if ratio is not None and ratio < _WELL_MIXED_AT_EDGES]
    if quality.ratio < _WELL_MIXED:
        text = (
            f"Poorly mixed{seen}: a batch has {1 - quality.ratio:.0%} fewer slides than a uniform draw of the same "
            f"samples would have; {advice} when it is made."
        )
    elif unlike:
        text = (
            f"Poorly mixed at the epoch's edge: its {unlike[0]} batches have {1 - (edges[unlike[0]] or 0):.0%} fewer "
            f"slides than a uniform draw of the same samples would have; {advice} when it is made."
        )
    elif quality.cap is not None and quality.ratio > 1:
        text = (
            f"Well mixed{seen}: kept apart by the cap, a batch has more slides than a uniform draw of the same samples."
        )
    else:
        text = f"Well mixed{seen}: a batch has as many slides as a uniform draw of the same samples would have."
    if quality.cap_kept is False:
        text += (
            f" The cap is not kept: a batch has {quality.most_of_a_slide} samples of a slide; raise data.max_per_slide."
        )
    elif quality.cap_kept:
        text += f" The cap is kept{seen}."
    return text


def _introduce(dataset: Dataset, plan: Plan) -> Console:
    """One line on the order; gives the console for what follows."""
    order = plan.order
    parts = [
        f"{len(dataset):,} samples",
        f"{plan.steps_per_epoch:,} global batches of {order.batch_size:,} an epoch",
        f"seed {order.seed}",
        f"chunks of {order.chunk_size:,}",
        f"partitions {order.partitions:,}",
        f"windows of {order.window_chunks:,} chunks",
    ]
    parts += [f"at most {order.max_per_slide:,} of a slide"] if order.max_per_slide else []
    weights = " ".join(f"{name} {weight:g}" for name, weight in order.weights.items())
    parts += [f"weights {weights}"] if weights else []
    from rich.console import Console

    console = Console()
    console.print(printable(", ".join(parts)), markup=False, highlight=False, soft_wrap=True)
    return console


def _first(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first rows, and a line that sums the others up."""
    if len(rows) <= _MAX_ROWS + 1:
        return list(rows)
    _, *numbers = zip(*rows[_MAX_ROWS:], strict=True)
    return [*rows[:_MAX_ROWS], (f"{len(rows) - _MAX_ROWS:,} others", *map(sum, numbers))]
