"""`dinowds eval`: weights and datasets → how good the features are."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .embed import PosInterpolation, Precision
from .embed_progress import Report, show_progress
from .shared import interruptible, print_json, print_notice
from .tables import make_table

if TYPE_CHECKING:
    from dinowds.eval.bootstrap import Interval
    from dinowds.eval.evaluate import Evaluation, FeatureFigures, Result
    from dinowds.eval.subjects import ModelOptions

app = typer.Typer(help="Measure how good features are, beside those of baselines.", no_args_is_help=True)

_MAX_LABELS = 12
"""Of a confusion matrix that is shown."""
_FEATURES = {"rank_me": "RankMe", "alpha_req": "alpha-ReQ", "std": "feature std"}


class Solver(str, Enum):
    """Of `--solver`."""

    AUTO = "auto"
    SKLEARN = "sklearn"
    TORCH = "torch"


CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        "-c",
        help="Run folder, or weights of dinowds, DINO, HIPT, the reference or timm.",
        show_default=False,
    ),
]
LabelledCheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="Run folder, or weights of dinowds, DINO, HIPT, the reference or timm; none where --train and --test are "
        "features that 'dinowds embed patch' wrote.",
        show_default=False,
    ),
]
TrainOption = Annotated[
    str, typer.Option(metavar="DATASET[:SUBSET]", help="Samples with labels to learn from.", show_default=False)
]
TestOption = Annotated[
    str,
    typer.Option(metavar="DATASET[:SUBSET]", help="Samples with labels of the same names to tell.", show_default=False),
]
StudentOption = Annotated[bool, typer.Option("--student", help="The student's weights, not the teacher's.")]
BothOption = Annotated[bool, typer.Option("--both", help="Teacher and student, beside each other.")]
LeakageOption = Annotated[
    bool, typer.Option("--allow-leakage", help="Go on where training and test data share slides or samples.")
]
ResamplesOption = Annotated[int, typer.Option(min=0, help="Draws of the bootstrap; 0 for no intervals.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="Resize the largest square in the middle of each image to this side.",
        show_default="what the weights were trained on",
    ),
]
InterpolationOption = Annotated[
    PosInterpolation | None, typer.Option(help="Of positions, for other sizes.", show_default="the weights' own")
]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: bf16 where the device has units for it.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples that go through the device at once.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Loader processes.", show_default="by the cores")]
BadOption = Annotated[int, typer.Option(min=0, help="Unreadable samples of a dataset, which are left out, at most.")]
SaveOption = Annotated[
    bool, typer.Option("--no-save", help="Do not add the result to evaluations.jsonl of the checkpoint's run.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]


@app.command()
def knn(
    train: TrainOption,
    test: TestOption,
    checkpoint: LabelledCheckpointOption = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="Neighbours; several.", show_default="20")] = None,
    temperature: Annotated[float, typer.Option(help="T of their weights exp(cosine / T).")] = 0.07,
    student: StudentOption = False,
    both: BothOption = False,
    allow_leakage: LeakageOption = False,
    resamples: ResamplesOption = 1000,
    image_size: SizeOption = None,
    pos_interpolation: InterpolationOption = None,
    precision: PrecisionOption = Precision.AUTO,
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    max_bad: BadOption = 100,
    no_save: SaveOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell labels by the k nearest neighbours, weighted exp(cosine / T); features as they are, and centred by their
    training mean.

    [dim]dinowds eval knn --checkpoint runs/one --train data/train --test data/test --k 1 --k 20[/dim]
    """
    from dinowds.eval.evaluate import EvalOptions, evaluate_knn

    _check_which(checkpoint, student, both)
    models = None
    if checkpoint is not None:
        models = _model_options(
            checkpoint, student, both, image_size, pos_interpolation, precision, batch_size, workers, max_bad
        )
    options = EvalOptions(models, allow_leakage, resamples)
    found = _run(lambda report: evaluate_knn(train, test, options, k or [20], temperature, print_notice, report))
    _finish(found, no_save or checkpoint is None, as_json)


@app.command()
def linear(
    train: TrainOption,
    test: TestOption,
    checkpoint: LabelledCheckpointOption = None,
    solver: Annotated[
        Solver, typer.Option(help="auto: sklearn for small sets, torch for large ones; both find the same solution.")
    ] = Solver.AUTO,
    seeds: Annotated[
        int, typer.Option(min=1, help="Times that the regularisation is chosen, each on other training samples.")
    ] = 3,
    student: StudentOption = False,
    both: BothOption = False,
    allow_leakage: LeakageOption = False,
    resamples: ResamplesOption = 1000,
    image_size: SizeOption = None,
    pos_interpolation: InterpolationOption = None,
    precision: PrecisionOption = Precision.AUTO,
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    max_bad: BadOption = 100,
    no_save: SaveOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell labels by logistic regression on the features, whose regularisation is chosen on training samples alone.

    [dim]dinowds eval linear --checkpoint runs/one --train data/train --test data/test[/dim]
    """
    from dinowds.eval.evaluate import EvalOptions, evaluate_linear

    _check_which(checkpoint, student, both)
    models = None
    if checkpoint is not None:
        models = _model_options(
            checkpoint, student, both, image_size, pos_interpolation, precision, batch_size, workers, max_bad
        )
    options = EvalOptions(models, allow_leakage, resamples)
    found = _run(lambda report: evaluate_linear(train, test, options, solver.value, seeds, print_notice, report))
    _finish(found, no_save or checkpoint is None, as_json)


@app.command()
def features(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET[:SUBSET]", help="Samples, with labels or without.", show_default=False),
    ],
    checkpoint: CheckpointOption,
    samples: Annotated[int, typer.Option(min=1, help="Of the dataset at most, drawn at random.")] = 25600,
    student: StudentOption = False,
    both: BothOption = False,
    image_size: SizeOption = None,
    pos_interpolation: InterpolationOption = None,
    precision: PrecisionOption = Precision.AUTO,
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    max_bad: BadOption = 100,
    as_json: JsonOption = False,
) -> None:
    """What features tell without labels: RankMe, alpha-ReQ and their standard deviation.

    [dim]dinowds eval features data/patches --checkpoint runs/one[/dim]
    """
    from dinowds.eval.evaluate import evaluate_features

    _check_which(checkpoint, student, both)
    options = _model_options(
        checkpoint, student, both, image_size, pos_interpolation, precision, batch_size, workers, max_bad
    )
    found = _run(lambda report: evaluate_features(dataset, options, samples, print_notice, report))
    if as_json:
        print_json(found.to_json())
    else:
        _print_features(found)


def _check_which(checkpoint: str | None, student: bool, both: bool) -> None:
    from dinowds.errors import ConfigError

    if student and both:
        raise ConfigError("--student is given with --both; give one of them")
    if checkpoint is None and (student or both):
        raise ConfigError(f"{'--student' if student else '--both'} goes with --checkpoint, the weights")


def _model_options(
    checkpoint: str,
    student: bool,
    both: bool,
    image_size: int | None,
    pos_interpolation: PosInterpolation | None,
    precision: Precision,
    batch_size: int,
    workers: int | None,
    max_bad: int,
) -> ModelOptions:
    from dinowds.eval.subjects import ModelOptions

    return ModelOptions(
        checkpoint,
        ("teacher", "student") if both else ("student",) if student else ("teacher",),
        None if pos_interpolation is None else pos_interpolation.value,
        image_size,
        precision.value,
        batch_size,
        workers,
        max_bad,
    )


def _run(evaluate: Callable[[Report], Any]) -> Any:
    with interruptible("begin anew"), show_progress("samples") as report:
        return evaluate(report)


def _finish(found: Evaluation, no_save: bool, as_json: bool) -> None:
    from dinowds.errors import OutputError
    from dinowds.eval.history import keep_evaluation

    content = found.to_json()
    if not no_save:
        try:
            if (kept := keep_evaluation(found.checkpoint, content)) is not None:
                print_notice(f"added to {kept}")
        except OutputError as error:
            print_notice(f"the result could not be added: {error}")
    if as_json:
        print_json(content)
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    from rich.console import Console

    console = Console()
    bootstrap = found.bootstrap
    drawn = f"{bootstrap['level']:.0%}, {bootstrap['resamples']:,} draws of {bootstrap['clusters']:,} {bootstrap['of']}"
    rows: list[tuple[str, object]] = [
        ("checkpoint", found.checkpoint),
        *([("step", found.step)] if found.step is not None else []),
        *((f"{name} data", _say_split(split)) for name, split in (("training", found.train), ("test", found.test))),
        ("labels", f"{len(found.labels):,}"),
        ("shared by both", found.leakage),
        ("intervals", drawn if bootstrap["resamples"] else "none"),
        *((name, _say(found.features[key])) for key, name in _FEATURES.items()),
    ]
    console.print(make_table("", ("", ""), rows))
    columns = ("features", *_settings_columns(found), "accuracy", "balanced accuracy", "AUROC")
    console.print(make_table(_title(found), columns, map(_row, found.results)))
    if len(found.labels) <= _MAX_LABELS:
        _print_confusion(found)


def _say_split(split: dict[str, Any]) -> str:
    slides = f" of {split['slides']:,} slides" if split["slides"] else ""
    return f"{split['name']}, {split['samples']:,} samples{slides}"


def _title(found: Evaluation) -> str:
    settings = found.results[0].settings
    if found.kind == "knn":
        return f"k nearest neighbours, T = {settings['temperature']:g}"
    return f"logistic regression, {settings['seeds']} seeds"


def _settings_columns(found: Evaluation) -> tuple[str, ...]:
    return ("k", "centred") if found.kind == "knn" else ("C", "solver")


def _row(result: Result) -> tuple[object, ...]:
    return (result.model, *_settings(result), *map(_say_interval, result.figures.values()))


def _settings(result: Result) -> tuple[object, ...]:
    """As `_settings_columns` names them."""
    settings = result.settings
    if "k" in settings:
        return (settings["k"], "yes" if settings["centred"] else "no")
    return (f"{settings['C']:g}", settings["solver"])


def _say_interval(interval: Interval) -> str:
    bounds = "" if interval.low != interval.low else f" ({interval.low:.3f}–{interval.high:.3f})"  # NaN is not itself
    return f"{_say(interval.value)}{bounds}"


def _say(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"  # NaN is not itself


def _print_confusion(found: Evaluation) -> None:
    from rich.console import Console

    result = found.results[0]
    settings = zip(_settings_columns(found), _settings(result), strict=True)
    shown = ", ".join(f"{name} {value}" for name, value in settings)
    rows = [(name, *counts) for name, counts in zip(found.labels, result.confusion, strict=True)]
    Console().print(make_table(f"{result.model}, {shown}", ("label → told", *found.labels), rows))


def _print_features(found: FeatureFigures) -> None:
    from rich.console import Console

    about = found.dataset
    title = f"{found.checkpoint} on {about['samples']:,} samples of {about['name']}"
    rows = [(name, *(_say(figures[key]) for key in _FEATURES)) for name, figures in found.models.items()]
    Console().print(make_table(title, ("features", *_FEATURES.values()), rows))
