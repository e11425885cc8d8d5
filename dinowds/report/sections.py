"""What a run's page says in words and tables: its head, alarms, configuration and evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dinowds.config import CONFIGS, RunConfig, flatten, to_dict
from dinowds.errors import ConfigError
from dinowds.model.architecture import Architecture
from dinowds.model.dino import architecture_of
from dinowds.model.vit import build_backbone
from dinowds.report.curves import SCORES
from dinowds.report.page import Block, Cell, Columns, Facts, Folded, Notice, Plot, Section, Table, Text, shown
from dinowds.report.plots import heat_figure
from dinowds.report.runfolder import Alarm, RunFolder
from dinowds.train.monitor import BAD_SAMPLES_NAME, BAD_STEPS_NAME

_MOST_LINES = 200
"""Of the log that are shown: the last."""
_MOST_STEPS = 6
"""At which an alarm was told, by number."""
_MOST_CLASSES = 100
"""Of a confusion matrix that can be looked at."""


def head_facts(run: RunFolder) -> Facts:
    """What one wants to know of a run first."""
    curves = run.metrics.curves
    pairs: list[tuple[str, Cell]] = [("model", describe_model(run.config) if run.config else None)]
    if run.data_name:
        pairs.append(("trained on", run.data_name))
    pairs.append(("steps", describe_steps(run)))
    if run.hours:
        pairs.append(("time of training", _hours(run.hours)))
    if rate := curves.get("images_per_second"):
        pairs.append(("throughput, last", f"{rate.last:,.4g} images/s"))
    if loss := curves.get("loss"):
        share = curves.get("loss_share")
        pairs.append(("loss, last", f"{loss.last:.3f}" + (f" ({share.last:.0%} of ln K)" if share else "")))
    for name, label in (("accuracy", "kNN accuracy"), ("rank_me", "RankMe")):
        if curve := curves.get(f"knn/teacher/{name}"):
            best, at = curve.most()
            pairs.append((f"{label} of the teacher, best", f"{best:.4g} at step {at:,}"))
    pairs += [("samples left out", run.num_bad_samples), ("steps not applied", run.num_bad_steps)]
    pairs.append(("last written", run.last_written or None))
    return Facts(pairs)


def describe_model(config: RunConfig) -> str:
    """Its name and size."""
    try:
        architecture = architecture_of(config)
    except ConfigError:  # a region run that did not find out its number of features
        return config.student.arch
    millions = num_parameters(architecture) / 1e6
    tokens = f"/{architecture.patch_size}" if architecture.kind == "image" else f" on cells of {architecture.in_dim}"
    return f"{config.student.arch}{tokens} ({millions:.1f} M parameters)"


def num_parameters(architecture: Architecture) -> int:
    """Of the backbone."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_backbone(architecture).parameters())


def describe_steps(run: RunFolder) -> str:
    """How far it is."""
    done, planned = run.metrics.last_step, run.planned_steps
    if run.is_done:
        return f"{done:,} (done)"
    return f"{done:,} of {planned:,}" if planned else f"{done:,}"


def alarm_blocks(run: RunFolder) -> list[Block]:
    """What the monitor found, each with its causes and what to change; or that it found nothing."""
    blocks: list[Block] = [_alarm(alarm) for alarm in run.alarms]
    for count, name, what in (
        (run.num_bad_samples, BAD_SAMPLES_NAME, "could not be read and were replaced"),
        (run.num_bad_steps, BAD_STEPS_NAME, "had a loss or gradients that are not finite, and were not applied"),
    ):
        if count:
            noun = name.removeprefix("bad_").removesuffix(".jsonl")
            blocks.append(Notice("warning", f"{count:,} {noun} {what}; {name} in the run's folder has them."))
    if run.config is None:
        blocks.append(Notice("note", "Without its configuration, the monitor cannot look at this run again."))
    elif not run.alarms:
        blocks.append(Text("The monitor found nothing that goes wrong."))
    return blocks


def _alarm(alarm: Alarm) -> Notice:
    steps = ", ".join(f"{step:,}" for step in alarm.steps[:_MOST_STEPS])
    more = f" and {len(alarm.steps) - _MOST_STEPS:,} times more" if len(alarm.steps) > _MOST_STEPS else ""
    finding = alarm.finding
    what = finding.what[:1].upper() + finding.what[1:]
    word = "step" if len(alarm.steps) == 1 else "steps"
    return Notice(
        "warning",
        f"{what}. Found at {word} {steps}{more}.",
        {"Usual causes, most frequent first": finding.causes, "What to try": finding.options},
    )


def log_block(run: RunFolder) -> Folded | None:
    """What the run said of itself."""
    lines = [(line.when, line.text) for line in run.log[-_MOST_LINES:]]
    if not lines:
        return None
    rest = f", the last {_MOST_LINES:,} of {len(run.log):,} lines" if len(run.log) > _MOST_LINES else ""
    return Folded(f"train.log{rest}", [Table("What the run said", ("time", "message"), lines)])


def configuration_section(run: RunFolder) -> Section:
    """What differs from the default, and every key."""
    blocks: list[Block] = []
    if run.config is not None:
        default = flatten(to_dict(CONFIGS[run.config.kind]()))
        rows = [
            (key, _value(value), _value(default.get(key)))
            for key, value in run.saved.items()
            if value != default.get(key)
        ]
        caption = "What differs from the default, or was chosen by the machine and the data"
        blocks.append(Table(caption, ("key", "this run", "default"), rows) if rows else Text("All is the default."))
    rows_of_all = [(key, _value(value)) for key, value in run.saved.items()]
    if rows_of_all:
        all_keys = Table("Every key of config.yaml", ("key", "value"), rows_of_all)
        blocks.append(Folded(f"The whole configuration, {len(rows_of_all)} keys", [all_keys]))
    return Section("Configuration", "configuration", blocks or [Text("There is no configuration.")])


def configurations_section(runs: Sequence[RunFolder]) -> Section:
    """Where runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.saved)
    rows = [
        (key, *(_value(run.saved[key]) if key in run.saved else None for run in runs))
        for key in keys
        if len({_value(run.saved.get(key)) for run in runs}) > 1
    ]
    table = Table("Where the configurations differ", ("key", *(run.name for run in runs)), rows)
    return Section("Configuration", "configuration", [table if rows else Text("The configurations are equal.")])


def summary_table(runs: Sequence[RunFolder]) -> Table:
    """`head_facts` of runs beside each other."""
    facts = [{name: shown(value) for name, value in head_facts(run).pairs} for run in runs]
    names = dict.fromkeys(name for of_run in facts for name in of_run)
    rows = [(name, *(of_run.get(name) for of_run in facts)) for name in names]
    return Table("The runs", ("", *(run.name for run in runs)), rows)


def evaluation_section(runs: Sequence[RunFolder]) -> Section | None:
    """Of evaluations.jsonl: a table for each kind and pair of datasets, and the confusion of the best of each.

    Runs are beside each other where they were evaluated alike.
    """
    groups: dict[tuple[str, str, str], list[tuple[RunFolder, Mapping[str, Any]]]] = {}
    for run in runs:
        for entry in run.evaluations:
            key = (str(entry.get("kind", "?")), _dataset(entry.get("train")), _dataset(entry.get("test")))
            groups.setdefault(key, []).append((run, entry))
    blocks: list[Block] = []
    for (kind, train, test), entries in groups.items():
        blocks += _evaluations(f"{_KINDS.get(kind, kind)}, {train} → {test}", entries, len(runs) > 1)
    return Section("Evaluations", "evaluations", blocks) if blocks else None


_KINDS = {"knn": "k nearest neighbours", "linear": "Linear probe"}


def _evaluations(title: str, entries: Sequence[tuple[RunFolder, Mapping[str, Any]]], of_several: bool) -> list[Block]:
    results = [
        (run, entry, result)
        for run, entry in entries
        for result in _list(entry.get("results"))
        if isinstance(result, dict)
    ]
    rows = [
        (
            *([run.name] if of_several else []),
            str(result.get("model", "?")),
            _settings(result.get("settings")),
            _number(entry.get("step")),
            *(_score(result.get(name)) for name, _ in SCORES),
        )
        for run, entry, result in results
    ]
    head = (*(["run"] if of_several else []), "model", "settings", "step", *(label for _, label in SCORES))
    blocks: list[Block] = [Table(title, head, rows)]
    if leakage := dict.fromkeys(str(entry["leakage"]) for _, entry in entries if entry.get("leakage")):
        blocks.append(Notice("note", f"Train and test: {'; '.join(leakage)}"))
    confusions = [item for item in results if _is_matrix(item[2].get("confusion"))]
    if confusions:
        run, entry, best = max(confusions, key=lambda item: _value_of(item[2].get("balanced_accuracy")))
        name = f"{run.name}, " if of_several else ""
        blocks.append(_confusion(f"{name}{best.get('model', '?')} {_settings(best.get('settings'))}", entry, best))
    return blocks


def _confusion(title: str, entry: Mapping[str, Any], result: Mapping[str, Any]) -> Block:
    """Rows are what samples are, shares of them the colour."""
    counts: list[list[int]] = result["confusion"]
    labels = [str(label) for label in _list(entry.get("labels"))]
    names = labels if len(labels) == len(counts) else [str(number) for number in range(len(counts))]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    texts = [[f"{count:,}" for count in row] for row in counts]
    right = sum(row[place] for place, row in enumerate(counts))
    total = sum(map(sum, counts))
    side = min(720, 160 + 34 * len(names))
    plot = Plot(
        f"Confusion of {title}".strip(),
        heat_figure(names, names, shares, texts, "predicted", "label"),
        f"Of {total:,} samples of {len(names)} labels, {right:,} lie on the diagonal.",
        "Colours are shares of the samples of a label.",
        height=side,
        most_width=side + 160,
    )
    return plot if len(names) > 8 else Columns([plot])


def _is_matrix(value: Any) -> bool:
    """A confusion matrix, from a file."""
    return (
        isinstance(value, list)
        and 2 <= len(value) <= _MOST_CLASSES
        and all(isinstance(row, list) and len(row) == len(value) for row in value)
        and all(type(count) is int and count >= 0 for row in value for count in row)
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dataset(said: Any) -> str:
    """Name and number of samples, from a file."""
    if not isinstance(said, dict):
        return "?"
    samples = said.get("samples")
    return f"{said.get('name', '?')}" + (f" ({samples:,} samples)" if isinstance(samples, int) else "")


def _settings(said: Any) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in said.items()) if isinstance(said, dict) else ""


def _score(said: Any) -> Cell:
    """A figure with its interval."""
    if not isinstance(said, dict):
        return _number(said)
    value, low, high = (_number(said.get(name)) for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return value
    return f"{value:.3f} ({low:.3f} – {high:.3f})"


def _value_of(said: Any) -> float:
    value = _number(said.get("value") if isinstance(said, dict) else said)
    return -1.0 if value is None or math.isnan(value) else float(value)


def _number(said: Any) -> int | float | None:
    return said if isinstance(said, int | float) and not isinstance(said, bool) else None


def _value(value: Any) -> str:
    """As in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
