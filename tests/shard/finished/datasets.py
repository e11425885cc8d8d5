"""Finished datasets, made without `dinowds shard`: shards with real members, an index, a quarantine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import (
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
    SHARDS_NAME,
    Manifest,
    Shard,
    write_manifest,
)
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.files import sha256_of
from tests.shard.ustar_writer import UstarWriter

Row = dict[str, Any]


def payload_of(key: str) -> bytes:
    """The bytes of a sample: found in a file by its key, of many sizes."""
    size = 300 + xxhash.xxh32_intdigest(key.encode()) % 900
    return f"<{key}>".encode() + np.random.default_rng(xxhash.xxh32_intdigest(key.encode())).bytes(size)


def make_finished(
    folder: Path,
    slides: Sequence[tuple[str, str | None]],
    per_slide: int = 6,
    per_shard: int = 8,
    label_names: Sequence[str] = (),
    quarantine: Sequence[Row] = (),
    extra: str | None = None,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A dataset of `per_slide` samples of each (cohort, slide), shuffled; labels in turn, where there are any.

    `extra` is a further column of random float32, and each third sample then has a member KEY.json too.
    """
    names = [(cohort, slide, place) for cohort, slide in slides for place in range(per_slide)]
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    (folder / SHARDS_NAME).mkdir(parents=True)
    schema = SAMPLES_SCHEMA if extra is None else SAMPLES_SCHEMA.append(pa.field(extra, pa.float32()))
    shards = []
    with pq.ParquetWriter(folder / SAMPLES_NAME, schema, compression="zstd", write_page_checksum=True) as index:
        for number, first in enumerate(range(0, len(order), per_shard)):
            path = folder / SHARDS_NAME / f"{folder.name}-{number:06d}.tar"
            with open(path, "wb") as file:
                tar, rows = UstarWriter(file), []
                for place in order[first : first + per_shard]:
                    rows.append(_add(tar, names[place], place, number, len(label_names), extra))
                num_bytes, sha256 = tar.finish()
            index.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
            shards.append(Shard(f"{SHARDS_NAME}/{path.name}", len(rows), num_bytes, sha256))
    (folder / QUARANTINE_NAME).write_text("".join(json.dumps(line) + "\n" for line in quarantine))
    manifest = Manifest(
        name=folder.name,
        kind="image",
        shards=tuple(shards),
        cohorts=dict(Counter(cohort for cohort, *_ in names)),
        label_names=tuple(label_names),
        seed=seed,
        samples_sha256=sha256_of(folder / SAMPLES_NAME),
        samples_footer_sha256=footer_sha256(folder / SAMPLES_NAME),
        quarantined=dict(Counter(line["reason"] for line in quarantine)),
        metadata=metadata or {},
    )
    write_manifest(folder, manifest)
    return folder


def _add(
    tar: UstarWriter, name: tuple[str, str | None, int], place: int, shard: int, labels: int, extra: str | None
) -> Row:
    cohort, slide, number = name
    key = f"{cohort}/{slide}/{number}_{number}"
    payload = payload_of(key)
    offset = tar.add(f"{key}.jpg", payload)
    if labels:
        tar.add(f"{key}.cls", str(place % labels).encode())
    if extra and not place % 3:
        tar.add(f"{key}.json", json.dumps({"of": key}).encode())
    return {
        **{"key": key, "shard": shard, "offset": offset, "size": len(payload), "ext": "jpg"},
        **{"digest": xxhash.xxh3_128_digest(payload), "cohort": cohort, "slide": slide, "x": number, "y": number},
        **{"label": place % labels if labels else None, "width": 8, "height": 8},
        **{"source": f"/in/{cohort}.tar", "source_name": f"{slide}/{number}_{number}.jpg"},
        **({extra: np.float32(place) / 7} if extra else {}),
    }


def add_subset(folder: Path, name: str, **options: Any) -> list[str]:
    """Store a subset; its keys in order."""
    dataset = Dataset.open(folder)
    subset, mask, _ = choose_subset(dataset, name, SubsetOptions(**options))
    write_subset(dataset.url, subset, mask, dataset.files)
    return keys_of(f"{folder}:{name}")


def keys_of(location: Path | str) -> list[str]:
    """Of all samples, in order."""
    return [sample.key for sample in Dataset.open(location)]


def rows_of(folder: Path) -> list[Row]:
    """Rows of the index, but for those columns that a change of other rows changes."""
    rows = pq.read_table(folder / SAMPLES_NAME).to_pylist()
    return [{name: value for name, value in row.items() if name not in ("shard", "offset")} for row in rows]


def tree(folder: Path) -> dict[str, bytes]:
    """Each file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
