"""How long does a loader take to its first batch at 90 % of an epoch, against a cold start?

Each start opens the dataset anew, in a process of its own; starts alternate and medians are compared. The bytes that
were asked of the store before the batch are counted.

    python benchmarks/resume.py [--images 8192] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

from common import append_result, machine, photo_patches

from dinowds.data import Dataset, Order, PlanSource, World, make_plan
from dinowds.shard.build import ShardOptions, build_dataset

PACKAGES = ("numpy", "torch", "webdataset")
BATCH = 256


def make_dataset(folder: Path, count: int) -> Path:
    patches = photo_patches(min(count, 2048), 256, seed=0)
    with tarfile.open(folder / "cohort.tar", "w") as tar:
        for index in range(count):
            member = tarfile.TarInfo(f"slide{index // 100}/{index}_0.jpg")
            member.size = len(patches[index % len(patches)])
            tar.addfile(member, BytesIO(patches[index % len(patches)]))
    build_dataset([folder / "cohort.tar"], folder / "dataset", ShardOptions(max_count=1000))
    return folder / "dataset"


def first_batch(path: Path, share: float) -> dict[str, float]:
    """Seconds from opening the dataset to the last sample of the first batch, and the bytes read."""
    begin = time.perf_counter()
    dataset = Dataset.open(path)
    plan = make_plan(dataset, Order(BATCH, window_chunks=16, partitions=2))
    source = PlanSource(dataset, plan, World(), int(plan.steps_per_epoch * share))
    raws = iter(source)
    payload = sum(len(next(raws)["jpg"]) for _ in range(BATCH))
    return {"seconds": time.perf_counter() - begin, "payload": payload, "read": source.store.bytes_read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(first_batch(Path(arguments.only[0]), float(arguments.only[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = make_dataset(Path(folder), arguments.images)
        found: dict[float, list[dict[str, float]]] = {0.0: [], 0.9: []}
        for _ in range(arguments.rounds + 1):
            for share, results in found.items():
                command = [sys.executable, __file__, "--only", str(path), str(share)]
                results.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    cold, resumed = (statistics.median(r["seconds"] for r in results[1:]) for results in found.values())
    result = {"cold_s": cold, "resumed_s": resumed, "ratio": resumed / cold, "last": [r[-1] for r in found.values()]}
    print(f"cold {cold * 1000:.0f} ms, at 90 % of the epoch {resumed * 1000:.0f} ms: {resumed / cold:.2f} ×")
    for name, results in zip(("cold", "at 90 %"), found.values(), strict=True):
        print(f"{name}: payload {results[-1]['payload']:,.0f} bytes, read {results[-1]['read']:,.0f}")
    print(machine(PACKAGES)["cpu"])
    if arguments.json:
        append_result(arguments.json, "resume", result, PACKAGES)


if __name__ == "__main__":
    main()
