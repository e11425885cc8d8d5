"""Which figures of runs are drawn, and what a reader should look for in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dinowds.report.metrics import Curve
from dinowds.report.page import Block, Columns, Plot, Section, Table
from dinowds.report.plots import DASHES, NUM_SERIES, Level, Line, line_figure, ordered_colour, series_colour
from dinowds.report.runfolder import RunFolder
from dinowds.train.diagnostics import GRADIENT_NORM

_FEW = 24
"""Points of a curve below which each is marked."""
_MOST_OTHERS = 24
"""Plots of figures that this page does not know."""
_LINKED = "step"


@dataclass(frozen=True)
class Panel:
    """A plot of figures that belong together."""

    title: str
    note: str
    y_title: str
    figures: tuple[tuple[str, str], ...]
    """Name in metrics.jsonl, and in the legend."""
    is_wide: bool = False
    log_y: bool = False
    marks_ln_k: bool = False
    level: Level | None = None


SCORES = (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC"))
"""Figures of a classification, and what they are called."""

PANELS: tuple[tuple[str, str, tuple[Panel, ...]], ...] = (
    (
        "Learning",
        "learning",
        (
            Panel(
                "Loss",
                "At ln K the student knows nothing; near 0 the output may have collapsed to one prototype.",
                "nats",
                (("loss", "loss"),),
                is_wide=True,
                marks_ln_k=True,
            ),
            Panel(
                "Loss as a share of ln K",
                "Comparable between runs with different numbers of prototypes.",
                "loss ÷ ln K",
                (("loss_share", "loss ÷ ln K"),),
                level=Level(1.0, "knows nothing"),
            ),
            Panel(
                "Entropy of the teacher's targets",
                "Lower is sharper; ln K is a uniform output.",
                "nats",
                (("teacher_entropy", "teacher's entropy"),),
                marks_ln_k=True,
            ),
            Panel(
                "KL of teacher and student",
                "Loss − entropy: how far the student is behind. At 0 there is nothing to learn.",
                "nats",
                (("kl", "KL"),),
            ),
            Panel(
                "Prototypes in use",
                "Perplexity of the mean output, and how many are some target's largest. Falling to 1 is collapse.",
                "prototypes",
                (("output_perplexity", "perplexity"), ("prototypes_in_use", "largest of some target")),
                log_y=True,
            ),
            Panel(
                "Spread of features",
                "1 where features fill all dimensions evenly, 0 where all images have the same.",
                "std · √D",
                (("teacher_std", "teacher"), ("student_std", "student")),
            ),
            Panel(
                "Distance of teacher and student",
                "‖θₜ − θₛ‖ ÷ ‖θₛ‖; 0 is a student that does not move.",
                "share of the student's norm",
                (("teacher_distance", "distance"),),
            ),
        ),
    ),
    (
        "Quality of the features",
        "quality",
        (
            *(
                Panel(
                    f"Nearest neighbours: {label}",
                    "Of labelled samples, while training. The teacher is what is kept.",
                    label,
                    ((f"knn/teacher/{name}", "teacher"), (f"knn/student/{name}", "student")),
                )
                for name, label in SCORES
            ),
            Panel(
                "RankMe",
                "How many dimensions features use; follows their quality without labels.",
                "dimensions",
                (("knn/teacher/rank_me", "teacher"),),
            ),
        ),
    ),
    (
        "Gradients",
        "gradients",
        (
            Panel(
                "Norm of all gradients",
                "Before clipping.",
                "L2 norm",
                ((f"{GRADIENT_NORM}all", "all gradients"),),
                log_y=True,
            ),
            Panel(
                "Norm of the centre", "Of what is taken off the teacher's outputs.", "‖c‖", (("centre_norm", "‖c‖"),)
            ),
        ),
    ),
    (
        "Schedules",
        "schedules",
        (
            Panel("Learning rate", "", "lr", (("lr", "learning rate"),)),
            Panel("Weight decay", "", "weight decay", (("weight_decay", "weight decay"),)),
            Panel("Momentum of the teacher", "", "momentum", (("momentum", "momentum"),)),
            Panel("Temperature of the teacher", "", "temperature", (("teacher_temperature", "temperature"),)),
        ),
    ),
    (
        "Speed",
        "speed",
        (
            Panel("Throughput", "Over all processes.", "images per second", (("images_per_second", "images/s"),)),
            Panel(
                "Waiting for data",
                "Share of the time in which the device had nothing to do.",
                "share of time",
                (("waiting_share", "waiting"),),
            ),
            Panel(
                "Use of the device",
                "Share of its peak that the model's operations make (MFU).",
                "share of peak",
                (("mfu", "MFU"),),
            ),
            Panel("Memory", "The most that tensors of a GPU took so far.", "GiB", (("peak_memory_gib", "peak"),)),
            Panel(
                "What was left out",
                "Samples that were replaced, and steps that were not applied, so far.",
                "count",
                (("bad_samples", "samples"), ("bad_steps", "steps")),
            ),
        ),
    ),
)
"""Section, its anchor, and its plots."""

_UNSHOWN = frozenset({"epoch"})


def curve_sections(runs: Sequence[RunFolder]) -> list[Section]:
    """What the runs have of `PANELS`, then everything else that they have."""
    sections = [Section(title, anchor, blocks) for title, anchor, panels in PANELS if (blocks := _blocks(runs, panels))]
    if blocks := _blocks(runs, _others(runs)):
        sections.append(Section("Other figures", "others", blocks))
    if len(runs) == 1 and (plot := _gradients_by_module(runs[0])):
        place = next((i for i, section in enumerate(sections) if section.anchor == "gradients"), len(sections) - 1)
        sections[place] = Section(sections[place].title, sections[place].anchor, [plot, *sections[place].blocks])
    return sections


def newest_figures(run: RunFolder) -> Table:
    """First, least, most and last of every figure: the curves as numbers."""
    rows = []
    for name, curve in run.metrics.curves.items():
        (least, at_least), (most, at_most) = curve.least(), curve.most()
        rows.append((name, float(curve.values[0]), least, at_least, most, at_most, curve.last))
    return Table("Figures in numbers", ("figure", "first", "least", "at step", "most", "at step", "last"), rows)


def describe_curve(name: str, curve: Curve) -> str:
    """A curve in words."""
    (least, at_least), (most, at_most) = curve.least(), curve.most()
    return (
        f"{name}: {curve.count:,} points from step {int(curve.steps[0]):,} to {int(curve.steps[-1]):,}, from "
        f"{float(curve.values[0]):.4g} to {curve.last:.4g}; least {least:.4g} at step {at_least:,}, most {most:.4g} at "
        f"step {at_most:,}"
    )


def _blocks(runs: Sequence[RunFolder], panels: Sequence[Panel]) -> list[Block]:
    """Wide plots one below another, the others in columns."""
    made = [(panel, plot) for panel in panels if (plot := _plot(runs, panel))]
    narrow = [plot for panel, plot in made if not panel.is_wide]
    return [*(plot for panel, plot in made if panel.is_wide), *([Columns(narrow)] if narrow else [])]


def _plot(runs: Sequence[RunFolder], panel: Panel) -> Plot | None:
    lines, words = [], []
    for number, run in enumerate(runs):
        there = [(label, curve) for name, label in panel.figures if (curve := run.metrics.curves.get(name))]
        for place, (label, curve) in enumerate(there):
            name = " ".join([*([run.name] if len(runs) > 1 else []), *([label] if len(panel.figures) > 1 else [])])
            lines.append(
                Line(
                    name or label,
                    curve.steps.tolist(),
                    curve.values.tolist(),
                    series_colour(number if len(runs) > 1 else place),
                    DASHES[(place + (number // NUM_SERIES if len(runs) > 1 else 0)) % len(DASHES)],
                    len(curve.steps) <= _FEW,
                )
            )
            words.append(describe_curve(name or label, curve))
    if not lines or (panel.title == "What was left out" and not any(max(line.y) for line in lines)):
        return None
    figure = line_figure(lines, "step", panel.y_title, list(_levels(runs, panel)), _can_be_log(lines, panel))
    height = (360 if panel.is_wide else 270) + 18 * max(0, len(lines) - 2)  # its legend has more lines
    return Plot(panel.title, figure, f"{panel.title}. {'. '.join(words)}.", panel.note, height, linked=_LINKED)


def _levels(runs: Sequence[RunFolder], panel: Panel) -> Iterator[Level]:
    if panel.level is not None:
        yield panel.level
    if panel.marks_ln_k:
        for value in sorted({run.ln_k for run in runs if run.ln_k is not None}):
            yield Level(value, f"ln K = {value:.3f}")


def _can_be_log(lines: Sequence[Line], panel: Panel) -> bool:
    return panel.log_y and all(min(line.y) > 0 for line in lines)


def _gradients_by_module(run: RunFolder) -> Plot | None:
    """Blocks in the order of their depth, between what makes tokens and the head."""
    parts = {
        name.removeprefix(GRADIENT_NORM): curve
        for name, curve in run.metrics.curves.items()
        if name.startswith(GRADIENT_NORM) and name != f"{GRADIENT_NORM}all"
    }
    if not parts:
        return None
    blocks = [name for name in parts if name.startswith("blocks.")]
    share = {name: number / max(1, len(blocks) - 1) for number, name in enumerate(blocks)}
    others = {name: number for number, name in enumerate(name for name in parts if name not in share)}
    lines = [
        Line(
            name,
            curve.steps.tolist(),
            curve.values.tolist(),
            ordered_colour(share[name]) if name in share else series_colour(others[name] + 1),
            "solid" if name in share else DASHES[1 + others[name] % 3],
            len(curve.steps) <= _FEW,
        )
        for name, curve in parts.items()
    ]
    log_y = all(min(line.y) > 0 for line in lines)
    figure = line_figure(lines, "step", "L2 norm", log_y=log_y)
    words = ". ".join(f"{name} from {curve.values[0]:.3g} to {curve.last:.3g}" for name, curve in parts.items())
    note = "Blocks from dark (first) to light (last). One that towers above the others is where a run diverges."
    return Plot(
        "Norms of gradients by part of the model", figure, f"{words}.", note, 360 + 9 * len(parts), linked=_LINKED
    )


def _others(runs: Sequence[RunFolder]) -> list[Panel]:
    known = {name for _, _, panels in PANELS for panel in panels for name, _ in panel.figures} | _UNSHOWN
    names = dict.fromkeys(name for run in runs for name in run.metrics.curves)
    others = [name for name in names if name not in known and not name.startswith(GRADIENT_NORM)]
    return [Panel(name, "", "", ((name, name),)) for name in others[:_MOST_OTHERS]]
