"""Datasets that are an index alone: as many rows as a test wants, and no shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.manifest import SAMPLES_SCHEMA, Manifest, Shard, write_manifest
from dinowds.files import sha256_of

LABELS = ("tumour", "stroma", "fat", "mucus")

Row = dict[str, Any]


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


def write_index(
    folder: Path, shards: Sequence[Sequence[Row]], compression: str = "zstd", use_dictionary: bool = True
) -> Path:
    """samples.parquet and manifest.json of shards with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.parquet"
    with pq.ParquetWriter(path, SAMPLES_SCHEMA, compression=compression, use_dictionary=use_dictionary) as writer:
        for shard, rows in enumerate(shards):
            table = pa.Table.from_pylist([{**row, "shard": shard} for row in rows], schema=SAMPLES_SCHEMA)
            writer.write_table(table, row_group_size=max(1, len(rows)))
    counts = Counter(row["cohort"] for rows in shards for row in rows)
    manifest = Manifest(
        name="index",
        kind="image",
        shards=tuple(Shard(f"shards/{i:06d}.tar", len(rows), 1 << 42, "0" * 64) for i, rows in enumerate(shards)),
        cohorts=dict(sorted(counts.items())),
        label_names=LABELS,
        seed=0,
        samples_sha256=sha256_of(path),
    )
    write_manifest(folder, manifest)
    return folder


def cut(rows: Sequence[Row], sizes: Sequence[int]) -> list[list[Row]]:
    """Rows dealt to shards of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return [list(rows[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
