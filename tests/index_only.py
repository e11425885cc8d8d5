"""Datasets that are an index alone, for what opens no shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, Manifest, Shard, write_manifest
from dinowds.files import sha256_of
from tests.support import signed

LABELS = ("tumour", "stroma", "fat", "mucus")

Row = dict[str, Any]
SlideRows = tuple[str, str | None, int]
"""Cohort, slide and number of samples."""


def write_index(folder: Path, slides: Sequence[SlideRows], shard_rows: int = 1000) -> Path:
    """A dataset whose samples lie sorted by slide. Keys are k00000000, k00000001, …; quickly made of many rows."""
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
        "x": [None] * len(rows),
        "y": [None] * len(rows),
        "label": of % 3,
        "width": np.full(len(rows), 32),
        "height": np.full(len(rows), 32),
        "source": cohorts,
        "source_name": keys,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in SAMPLES_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SAMPLES_SCHEMA)
    return _write(folder, [table[first : first + shard_rows] for first in range(0, len(table), shard_rows)])


def write_rows(
    folder: Path, shards: Sequence[Sequence[Row]], compression: str = "zstd", use_dictionary: bool = True
) -> Path:
    """A dataset of shards with these rows, as of `random_rows`."""
    tables = [
        pa.Table.from_pylist([{**row, "shard": shard} for row in rows], schema=SAMPLES_SCHEMA)
        for shard, rows in enumerate(shards)
    ]
    return _write(folder, tables, compression=compression, use_dictionary=use_dictionary)


def random_rows(count: int, seed: int = 0, slides: int = 7, cohorts: int = 3) -> list[Row]:
    """Rows of samples.parquet but for `shard`; some have no slide, no place or no label."""
    random = np.random.default_rng(seed)
    rows = []
    for place in range(count):
        slide = f"slide{random.integers(slides)}" if random.random() < 0.8 else None
        ext = ["jpg", "png", "webp"][random.integers(3)]
        rows.append(
            {
                "key": f"{seed}-{place:06d}" + "é" * int(random.integers(3)),
                "offset": int(random.integers(1 << 40)),
                "size": int(random.integers(1 << 33)),
                "ext": ext,
                "digest": random.bytes(16),
                "cohort": f"cohort{random.integers(cohorts)}",
                "slide": slide,
                "x": int(random.integers(1000)) if random.random() < 0.7 else None,
                "y": int(random.integers(-1000, 1000)) if random.random() < 0.7 else None,
                "label": int(random.integers(len(LABELS))) if random.random() < 0.7 else None,
                "width": int(random.integers(1, 300)),
                "height": int(random.integers(1, 300)),
                "source": f"/data/{random.integers(2)}.tar",
                "source_name": f"{slide or 'none'}/deep/{place}_{seed}.{ext}",
            }
        )
    return rows


def accept_index(folder: Path) -> None:
    """Give the manifest the digest of the footer that the index has now, as if it had been written so."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    content["dinowds"]["samples_footer_sha256"] = footer_sha256(folder / SAMPLES_NAME)
    path.write_text(json.dumps(signed(content)))


def cut(rows: Sequence[Row], sizes: Sequence[int]) -> list[list[Row]]:
    """Rows dealt to shards of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return [list(rows[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _write(folder: Path, tables: Sequence[Any], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SAMPLES_NAME
    with open(path, "wb") as file, pq.ParquetWriter(file, SAMPLES_SCHEMA, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, len(table)))
    cohorts = Counter(name for table in tables for name in table["cohort"].to_pylist())
    manifest = Manifest(
        name="index",
        kind="image",
        shards=tuple(Shard(f"shards/{i:06d}.tar", len(table), 1 << 42, "0" * 64) for i, table in enumerate(tables)),
        cohorts=dict(sorted(cohorts.items())),
        label_names=LABELS,
        seed=0,
        samples_sha256=sha256_of(path),
        samples_footer_sha256=footer_sha256(path),
    )
    write_manifest(folder, manifest)
    return folder
