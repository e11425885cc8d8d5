"""The page of a run, or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinowds.report.page import Page, Section, Text


def run_page(folders: Sequence[Path], data: str | None = None) -> Page:  # noqa: ARG001
    """What is known of runs."""
    return Page(folders[0].name, "a run of dinowds", [Section("Curves", "curves", [Text("…")])])
