"""How long does the page of a large dataset take, and how large is it?

    python benchmarks/report_dataset.py [--rows 1000000] [--folder /tmp] [--json benchmarks/results/NAME.json]

Makes a synthetic samples.parquet (one row group a shard, as benchmarks/index.py) whose rows point at 4,096 real JPEG
patches of 256 px in a tar that all shards link to. So every payload is there hundreds of times, which is the most work
that looking for duplicates can be. The reference is to read all columns of samples.parquet once with pyarrow, in the
same process; `cpu` times are of the processor, without waiting for other jobs of the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from common import append_result, photo_patches
from index import COHORTS, GROUP_ROWS, LABELS, random_rows, with_keys

from dinowds.data.manifest import SAMPLES_NAME, SAMPLES_SCHEMA, Manifest, Shard, write_manifest
from dinowds.report.dataset import dataset_page
from dinowds.report.page import write_page

PAYLOADS, SIDE = 4096, 256


def write_tar(path: Path) -> dict[str, Any]:
    """A tar of patches → offset, size and digest of each."""
    offsets, sizes, digests = [], [], []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, payload in enumerate(photo_patches(PAYLOADS, SIDE, seed=0)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(payload)
            offsets.append(tar.offset + tarfile.BLOCKSIZE)
            tar.addfile(member, io.BytesIO(payload))
            sizes.append(len(payload))
            digests.append(xxhash.xxh3_128_digest(payload))
    return {"offset": np.array(offsets), "size": np.array(sizes), "digest": np.array(digests, dtype="V16")}


def write_dataset(folder: Path, num_rows: int) -> int:
    """Its samples: at least `num_rows`."""
    rows = random_rows(min(GROUP_ROWS, num_rows))
    num_shards = -(-num_rows // len(rows))
    (folder / "shards").mkdir()
    first = folder / "shards" / "patches-000000.tar"
    known = write_tar(first)
    random = np.random.default_rng(0)
    with pq.ParquetWriter(folder / SAMPLES_NAME, SAMPLES_SCHEMA, compression="zstd") as writer:
        for shard in range(num_shards):
            chosen = random.integers(0, PAYLOADS, len(rows))
            table = with_keys(rows, shard)
            for name in ("offset", "size", "digest"):
                values = known[name][chosen]
                column = pa.array(values.tolist() if name == "digest" else values, SAMPLES_SCHEMA.field(name).type)
                table = table.set_column(SAMPLES_SCHEMA.names.index(name), SAMPLES_SCHEMA.field(name), column)
            writer.write_table(table, row_group_size=len(rows))
            if shard:
                os.link(first, folder / "shards" / f"patches-{shard:06d}.tar")
    shards = tuple(
        Shard(f"shards/patches-{shard:06d}.tar", len(rows), first.stat().st_size, f"{shard:064x}")
        for shard in range(num_shards)
    )
    counts = np.unique(rows["cohort"].to_numpy(zero_copy_only=False), return_counts=True)
    cohorts = {str(name): num_shards * int(count) for name, count in zip(*counts, strict=True)}
    labels = tuple(f"label {label}" for label in range(LABELS))
    assert len(cohorts) == COHORTS
    write_manifest(folder, Manifest("patches", "image", shards, cohorts, labels, 0, "0" * 64))
    return num_shards * len(rows)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, and its seconds, by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - wall, time.process_time() - cpu


def measure(folder: Path) -> dict[str, float]:
    size, seconds, cpu = timed(lambda: write_page(dataset_page(str(folder)), folder / "page.html"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _, reference, reference_cpu = timed(lambda: pq.read_table(folder / SAMPLES_NAME, use_threads=False))
    return {
        "page_s": seconds,
        "page_cpu_s": cpu,
        "reference_s": reference,
        "reference_cpu_s": reference_cpu,
        "cpu_ratio": cpu / reference_cpu,
        "page_mb": size / 1e6,
        "peak_memory_mib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        os.environ["DINOWDS_CACHE"] = str(folder / "cache")
        result = {"rows": write_dataset(folder, options.rows), **measure(folder)}
    result = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps(result, indent=1))
    if options.json:
        append_result(options.json, "report_dataset", result, ["numpy", "pyarrow", "plotly"])


if __name__ == "__main__":
    main()
