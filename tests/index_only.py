"""Datasets of which only the index is there, quickly made: for what opens no shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.manifest import SAMPLES_NAME, SAMPLES_SCHEMA, Manifest, Shard, write_manifest

SlideRows = tuple[str, str | None, int]
"""Cohort, slide and number of samples."""


def write_index(folder: Path, slides: Sequence[SlideRows], shard_rows: int = 1000) -> Path:
    """A dataset whose samples lie sorted by slide, in shards that are not there. Keys are k00000000, k00000001, …"""
    folder.mkdir(parents=True)
    table = _table(slides, shard_rows)
    pq.write_table(table, folder / SAMPLES_NAME, row_group_size=shard_rows)
    cohorts: Counter[str] = Counter()
    for cohort, _, count in slides:
        cohorts[cohort] += count
    sizes = [min(shard_rows, len(table) - first) for first in range(0, len(table), shard_rows)]
    manifest = Manifest(
        name=folder.name,
        kind="image",
        shards=tuple(Shard(f"shards/{i}.tar", size, 0, "0" * 64) for i, size in enumerate(sizes)),
        cohorts=dict(cohorts),
        label_names=("0", "1", "2"),
        seed=0,
        samples_sha256=hashlib.sha256((folder / SAMPLES_NAME).read_bytes()).hexdigest(),
        shuffled=False,
    )
    write_manifest(folder, manifest)
    return folder


def _table(slides: Sequence[SlideRows], shard_rows: int) -> Any:
    of = np.repeat(np.arange(len(slides)), [count for *_, count in slides])
    rows = np.arange(len(of))
    keys = [f"k{row:08d}" for row in rows]
    cohorts, names = ([slides[i][part] for i in of.tolist()] for part in (0, 1))
    columns = {
        "key": keys,
        "shard": rows // shard_rows,
        "offset": rows % shard_rows * 2048 + 512,
        "size": np.full(len(rows), 1000),
        "ext": ["jpg"] * len(rows),
        "digest": [b"\0" * 16] * len(rows),
        "cohort": cohorts,
        "slide": names,
        "x": None,
        "y": None,
        "label": of % 3,
        "width": np.full(len(rows), 32),
        "height": np.full(len(rows), 32),
        "source": cohorts,
        "source_name": keys,
    }
    empty = [None] * len(rows)
    arrays = [pa.array(empty if columns[field.name] is None else columns[field.name]) for field in SAMPLES_SCHEMA]
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, SAMPLES_SCHEMA, strict=True)], schema=SAMPLES_SCHEMA
    )
