"""How long does a large dataset take to open, and what do look-ups in its index cost?

    python benchmarks/index.py [--rows 1000000] [--folder /tmp] [--json benchmarks/results/index-DATE.json]

Makes a synthetic samples.parquet (one row group a shard) and its manifest in a temporary folder: about 65 bytes a row,
and as much again for the index of the shards that are touched. There are no shards. A fresh process then opens the
dataset and looks random samples up; its own memory is what no other process and no page cache shares. The reference is
an LRU of decoded row groups, as many as `REFERENCE_GROUPS`.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import append_result

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import SAMPLES_NAME, SAMPLES_SCHEMA, Manifest, Shard, write_manifest

GROUP_ROWS = 16_000
BATCH = 256
REFERENCE_GROUPS = 256
SLIDES, COHORTS, LABELS = 10_000, 4, 9


def random_rows(count: int) -> Any:
    random = np.random.default_rng(0)
    slides = random.integers(0, SLIDES, count)
    x, y = random.integers(0, 500, (2, count)) * 256
    sizes = random.integers(9_000, 23_000, count)
    slide_names = [f"TCGA-{slide:05d}-01Z-00-DX1" for slide in slides.tolist()]
    names = [f"{slide}/{x}_{y}.jpg" for slide, x, y in zip(slide_names, x.tolist(), y.tolist(), strict=True)]
    columns = {
        "key": [""] * count,
        "shard": np.zeros(count, np.int32),
        "offset": np.cumsum(sizes + 1024) + 512,
        "size": sizes,
        "ext": pa.array(["jpg"] * count).dictionary_encode(),
        "digest": pa.array([random.bytes(16) for _ in range(count)], pa.binary(16)),
        "cohort": pa.array([f"cohort{slide % COHORTS}" for slide in slides.tolist()]).dictionary_encode(),
        "slide": pa.array(slide_names).dictionary_encode(),
        "x": x,
        "y": y,
        "label": random.integers(0, LABELS, count),
        "width": np.full(count, 256, np.int32),
        "height": np.full(count, 256, np.int32),
        "source": pa.array(["/data/cohort.tar"] * count).dictionary_encode(),
        "source_name": names,
    }
    return pa.table(columns, schema=SAMPLES_SCHEMA)


def with_keys(rows: Any, shard: int) -> Any:
    keys = [f"{(shard * len(rows) + row) * 0x9E3779B97F4A7C15 % 2**64:016x}" for row in range(len(rows))]
    rows = rows.set_column(0, SAMPLES_SCHEMA.field("key"), pa.array(keys))
    return rows.set_column(1, SAMPLES_SCHEMA.field("shard"), pa.array(np.full(len(rows), shard, np.int32)))


def write_dataset(folder: Path, num_rows: int) -> None:
    rows = random_rows(min(GROUP_ROWS, num_rows))
    num_shards = max(1, num_rows // len(rows))
    with pq.ParquetWriter(folder / SAMPLES_NAME, SAMPLES_SCHEMA, compression="zstd") as writer:
        for shard in range(num_shards):
            writer.write_table(with_keys(rows, shard), row_group_size=len(rows))
    shards = [
        Shard(f"shards/patches-{shard:06d}.tar", len(rows), 1 << 30, f"{shard:064x}") for shard in range(num_shards)
    ]
    cohorts = {f"cohort{number}": num_shards * len(rows) // COHORTS for number in range(COHORTS)}
    labels = tuple(str(label) for label in range(LABELS))
    write_manifest(folder, Manifest("patches", "image", tuple(shards), cohorts, labels, 0, "0" * 64))


def own_memory() -> float:
    """MiB of this process that are no page cache."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)) / 1024


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path) -> dict[str, float]:
    """Seconds, microseconds a look-up, and MiB, of a process that starts with nothing."""
    random, before = np.random.default_rng(1), own_memory()
    result: dict[str, float] = {}
    opened: list[Dataset] = []
    result["open_s"] = timed(lambda: opened.append(Dataset.open(folder)))
    (dataset,) = opened
    result["own_memory_open_mib"] = own_memory() - before
    batches = random.integers(0, len(dataset), (5, BATCH))
    result["first_batch_s"] = timed(lambda: [dataset[i] for i in batches[0].tolist()])
    result["new_batch_ms"] = 1e3 * timed(lambda: [dataset[i] for i in batches[1:].ravel().tolist()]) / 4
    result["own_memory_mib"] = own_memory() - before
    ids = random.permutation(batches.ravel())
    result["look_up_us"] = 1e6 * timed(lambda: [dataset[i] for i in ids.tolist()]) / len(ids)
    result["slides_of_us"] = 1e6 * timed(lambda: dataset.slides_of(ids)) / len(ids)
    return result


def measure_again(folder: Path) -> dict[str, float]:
    """A later process of the same host: what was decoded is there."""
    dataset, before = Dataset.open(folder), own_memory()
    ids = np.random.default_rng(1).integers(0, len(dataset), (5, BATCH))[0].tolist()
    result = {"open_again_s": timed(lambda: Dataset.open(folder))}
    result["first_batch_again_s"] = timed(lambda: [dataset[i] for i in ids])
    result["own_memory_again_mib"] = own_memory() - before
    return result


def measure_reference(folder: Path) -> dict[str, float]:
    random, before = np.random.default_rng(1), own_memory()
    columns = ["key", "offset", "size", "ext", "digest", "label"]
    began = time.perf_counter()
    file = pq.ParquetFile(folder / SAMPLES_NAME)
    result = {"reference_open_s": time.perf_counter() - began}
    num_groups = file.num_row_groups

    @functools.lru_cache(REFERENCE_GROUPS)
    def group(number: int) -> Any:
        return file.read_row_group(number, columns=columns, use_threads=False).combine_chunks()

    def look_up(sample: int) -> list[Any]:
        rows = group(sample // GROUP_ROWS % num_groups)
        return [column[sample % len(rows)].as_py() for column in rows.columns]

    ids = random.integers(0, file.metadata.num_rows, 4 * BATCH)
    result["reference_first_batch_s"] = timed(lambda: [look_up(i) for i in ids[:BATCH].tolist()])
    result["reference_look_up_us"] = 1e6 * timed(lambda: [look_up(i) for i in ids.tolist()]) / len(ids)
    result["reference_own_memory_mib"] = own_memory() - before
    return result


def in_new_process(work: Callable[[Path], dict[str, float]], folder: Path) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        os.environ["DINOWDS_CACHE"] = str(folder / "cache")
        write_dataset(folder, options.rows)
        result: dict[str, Any] = {"rows": options.rows, "index_mb": (folder / SAMPLES_NAME).stat().st_size / 1e6}
        for work in (measure, measure_again, measure_reference):
            result |= in_new_process(work, folder)
        used = sum(path.stat().st_blocks * 512 for path in (folder / "cache").rglob("*") if path.is_file())
        result["cache_mb"] = used / 1e6
    result = {name: round(value, 4) for name, value in result.items()}
    print(json.dumps(result, indent=1))
    if options.json:
        append_result(options.json, "index", result, ["numpy", "pyarrow", "xxhash"])


if __name__ == "__main__":
    main()
