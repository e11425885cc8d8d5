"""Columns of made-up images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

TEXT = pa.large_string()


def images(paths: list[str], slides: list[str | None] | None = None, cohorts: list[str] | None = None) -> Any:
    """The table that `choose` takes; the slide is the first folder unless given."""
    slides = slides or [path.split("/")[0] if "/" in path else None for path in paths]
    columns = {
        "path": pa.array(paths, TEXT),
        "slide": pa.array(slides, pa.string()).dictionary_encode(),
        "cohort": pa.array(cohorts or ["c"] * len(paths), pa.string()).dictionary_encode(),
    }
    return pa.table(columns)
