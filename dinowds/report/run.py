"""The page of a run, or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dinowds.errors import ConfigError
from dinowds.report.curves import curve_sections, newest_figures
from dinowds.report.looks import look_sections
from dinowds.report.metrics import POINTS
from dinowds.report.page import Block, Folded, Notice, Page, Section
from dinowds.report.runfolder import RunFolder, read_run
from dinowds.report.sections import (
    alarm_blocks,
    configuration_section,
    configurations_section,
    describe_model,
    evaluation_section,
    head_facts,
    log_block,
    summary_table,
)

_LEAST_POINTS = 200
"""Of a curve, however many runs there are."""


def run_page(folders: Sequence[Path], data: str | None = None) -> Page:
    """What is known of runs. A run that goes on, is empty or is damaged has a page too, which says so.

    Args:
        data: DATASET[:SUBSET] of the pictures; None for the one that the run was trained on.

    Raises:
        ConfigError: a folder twice.
        OSError: a file is there and cannot be read.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run is named twice; give each run once")
    runs = [read_run(folder, max(_LEAST_POINTS, POINTS // len(folders))) for folder in folders]
    return _page_of_one(runs[0], data) if len(runs) == 1 else _page_of_several(_told_apart(runs))


def _page_of_one(run: RunFolder, data: str | None) -> Page:
    kind = "A run" if run.config is None else f"A run of {describe_model(run.config)}"
    steps = f"{run.metrics.last_step:,}" + (f" of {run.planned_steps:,}" if run.planned_steps else "")
    sections = [
        Section("Alarms", "alarms", alarm_blocks(run)),
        *curve_sections([run]),
        *([evaluations] if (evaluations := evaluation_section([run])) else []),
        *look_sections(run, data),
        configuration_section(run),
        *_records(run),
    ]
    return Page(run.name, f"{kind}: {steps} steps, seen on {_now()}", sections, [*_damage([run]), head_facts(run)])


def _page_of_several(runs: Sequence[RunFolder]) -> Page:
    alarms: list[Block] = []
    for run in runs:
        alarms += [
            Notice(b.level, f"{run.name}: {b.text}", b.lists) for b in alarm_blocks(run) if isinstance(b, Notice)
        ]
    sections = [
        *([Section("Alarms", "alarms", alarms)] if alarms else []),
        *curve_sections(runs),
        *([evaluations] if (evaluations := evaluation_section(runs)) else []),
        configurations_section(runs),
    ]
    title = " · ".join(run.name for run in runs)
    return Page(
        title, f"{len(runs)} runs side by side, seen on {_now()}", sections, [*_damage(runs), summary_table(runs)]
    )


def _records(run: RunFolder) -> list[Section]:
    """The log, and the curves as numbers."""
    blocks: list[Block] = []
    if run.metrics.curves:
        blocks.append(Folded("All figures in numbers", [newest_figures(run)]))
    if log := log_block(run):
        blocks.append(log)
    return [Section("Records", "records", blocks)] if blocks else []


def _damage(runs: Sequence[RunFolder]) -> list[Block]:
    return [Notice("problem", notice) for run in runs for notice in run.notices]


def _told_apart(runs: list[RunFolder]) -> list[RunFolder]:
    """Runs of one name are called by their paths."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return runs


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")
