"""The page of a dataset."""

from __future__ import annotations

from dinowds.data.summary import summarize
from dinowds.remote.urls import shown
from dinowds.report.page import Facts, Page, Section, Table


def dataset_page(location: str) -> Page:
    """What is in DATASET or DATASET:SUBSET.

    Raises:
        DatasetError: it cannot be opened.
        StorageError: it lies remote and cannot be read.
    """
    summary = summarize(location)
    facts = Facts((("samples", summary.samples), ("shards", summary.shards), ("slides", summary.slides)))
    cohorts = Table("Samples of each cohort", ("cohort", "samples"), list(summary.cohorts.items()))
    return Page(shown(location), "a dataset of dinowds", [Section("Cohorts", "cohorts", [cohorts])], [facts])
