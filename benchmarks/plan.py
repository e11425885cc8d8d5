"""How long does the plan of a very large dataset take, and how much memory?

Against the way of other loaders: one array of all sample ids, shuffled at the start of each epoch. Each runs in a
process of its own, so that memory is that of the whole process.

    python benchmarks/plan.py [--shards 100000] [--samples 10000] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import append_result, machine

from dinowds.data.order.plan import EpochPlan, Order
from dinowds.data.subsets.selection import Selection

PACKAGES = ("numpy",)
BATCH = 256


def measure_plan(shards: int, samples: int) -> dict[str, float]:
    """Shards of `samples` ± 20 % samples: seconds to build, milliseconds to find a batch, MB of the process."""
    counts = np.random.default_rng(0).integers(samples * 8 // 10, samples * 12 // 10 + 1, shards)
    begin = time.perf_counter()
    plan = EpochPlan(Selection(counts), Order(BATCH))
    plan.epoch(0)
    built = time.perf_counter() - begin
    located = []
    for step in np.linspace(0, plan.steps_per_epoch - 1, 9).astype(int).tolist():
        begin = time.perf_counter()
        plan.ids(step)
        located.append((time.perf_counter() - begin) * 1000)
    begin = time.perf_counter()
    plan.draws(range(1000, 1008))
    following = (time.perf_counter() - begin) * 1000 / 8
    return {
        "samples": len(plan.selections[0]),
        "build_s": built,
        "locate_ms": statistics.median(located),
        "locate_worst_ms": max(located),
        "next_batch_ms": following,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def measure_array(shards: int, samples: int) -> dict[str, float]:
    """One int64 a sample, shuffled."""
    begin = time.perf_counter()
    order = np.arange(shards * samples)
    np.random.default_rng(0).shuffle(order)
    built = time.perf_counter() - begin
    return {
        "samples": len(order),
        "build_s": built,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def in_process(name: str, shards: int, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--shards", str(shards), "--samples", str(samples)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10_000, help="of a shard")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("plan", "array"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure = measure_plan if arguments.only == "plan" else measure_array
        print(json.dumps(measure(arguments.shards, arguments.samples)))
        return
    rounds = [in_process("plan", arguments.shards, arguments.samples) for _ in range(arguments.rounds)]
    result: dict[str, Any] = {"plan": {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}}
    peer_samples = max(1, arguments.samples // 10)  # a tenth: all of it takes 8 bytes a sample and minutes
    result["array of a tenth of the samples"] = in_process("array", arguments.shards, peer_samples)
    for name, figures in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.3f}" for key, value in figures.items()))
    ratio = result["array of a tenth of the samples"]["build_s"] * 10 / result["plan"]["build_s"]
    print(f"an array of all samples would take about {ratio:,.0f} × as long to make")
    result["build_ratio"] = ratio
    print(machine(PACKAGES)["cpu"])
    if arguments.json:
        append_result(arguments.json, "plan", result, PACKAGES)


if __name__ == "__main__":
    main()
