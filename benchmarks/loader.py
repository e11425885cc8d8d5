"""How fast do images come out of a loader: dinowds, webdataset, an mmap map dataset and MosaicML streaming?

    python benchmarks/loader.py [--read] [--workers 0 1 2] [--peers dinowds map-simplejpeg] [--images N] [--rounds N]
                                [--folder FOLDER] [--json FILE]

All read the same JPEG patches from a warm page cache in shuffled batches, each in a process of its own; rounds of all
alternate and medians are compared. By default images are decoded, to one uint8 tensor a batch; `--read` takes the bytes
alone. Peers come twice: with Pillow, as they are mostly used, and with the decoder that dinowds has. Loader processes
have one thread each; the main process only counts, and lets a batch go before it takes the next but one.

Images/s and CPU time (user and system, all processes) count from the batch at which every loader process has delivered
one. The first batch counts from before the dataset is opened, after imports. Memory comes from another run: the highest
sum of PSS over the processes, and what of it is not pages of files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from common import append_result, cpu_seconds, machine, memory_mib, photo_patches

BATCH = 256
PATCH_SIZE = 256
DISTINCT = 8192
"""Patches that differ; more images repeat them."""
IMAGES = {"decode": 8192, "read": 32768}
"""By default: enough batches that the few which are ready when counting starts do not matter."""
SECONDS_BETWEEN_SAMPLES = 0.05
PACKAGES = ("numpy", "simplejpeg", "pillow", "torch", "webdataset")
FIGURES = ("images_per_second", "cpu_us_per_image", "first_batch_s", "start_cpu_s")


def read_batches(name: str, task_fields: dict[str, Any], batches: int) -> dict[str, float]:
    """Read `batches` batches with a peer in this process, and count."""
    from loader_peers import PEERS, Task, one_thread

    warnings.simplefilter("ignore")
    one_thread()
    task = Task(**task_fields)
    __import__(PEERS[name].module)
    process = os.getpid()
    cpu_before, began = cpu_seconds(process), time.perf_counter()
    stream = PEERS[name].batches(task)
    _check(name, next(stream), task.decode)
    first_batch = time.perf_counter() - began
    start_cpu = cpu_seconds(process) - cpu_before
    warm = max(1, task.workers)
    for _ in range(warm - 1):
        next(stream)
    cpu_before, began = cpu_seconds(process), time.perf_counter()
    images = 0
    for _ in range(batches - warm):
        images += len(next(stream))
    seconds, cpu = time.perf_counter() - began, cpu_seconds(process) - cpu_before
    if images != (batches - warm) * BATCH:
        raise RuntimeError(f"{name}: {images} images in {batches - warm} batches")
    return dict(zip(FIGURES, (images / seconds, cpu / images * 1e6, first_batch, start_cpu), strict=True))


def _check(name: str, images: Any, decode: bool) -> None:
    """The same form for all, or the comparison is none."""
    if decode:
        is_right = tuple(images.shape) == (BATCH, PATCH_SIZE, PATCH_SIZE, 3) and str(images.dtype) == "torch.uint8"
    else:
        is_right = len(images) == BATCH and all(bytes(payload[:2]) == b"\xff\xd8" for payload in images)
    if not is_right:
        raise RuntimeError(
            f"{name}: a batch is not of {BATCH} {'images in one uint8 tensor' if decode else 'JPEG files'}"
        )


def run_peer(name: str, task_fields: dict[str, Any], batches: int) -> dict[str, float]:
    """`read_batches` in a fresh process."""
    command = _command(name, task_fields, batches)
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{name} failed:\n{ran.stderr}")
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def peak_memory(name: str, task_fields: dict[str, Any], batches: int) -> dict[str, float]:
    """Highest memory of a peer's processes in one run, MiB."""
    peak = {"pss": 0.0, "own": 0.0}
    with subprocess.Popen(
        _command(name, task_fields, batches), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = {kind: max(peak[kind], mib) for kind, mib in memory_mib(process.pid).items()}
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    return peak


def _command(name: str, task_fields: dict[str, Any], batches: int) -> list[str]:
    return [sys.executable, __file__, "--child", json.dumps([name, task_fields, batches])]


def compare(names: list[str], task_fields: dict[str, Any], batches: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of each peer over alternating rounds, and its memory. The memory run, first, warms the page cache."""
    memory = {name: peak_memory(name, task_fields, batches) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(run_peer(name, task_fields, batches))
    return {
        name: {
            **{figure: statistics.median(figures[figure] for figures in runs) for figure in FIGURES},
            "peak_pss_mib": memory[name]["pss"],
            "peak_own_mib": memory[name]["own"],
        }
        for name, runs in found.items()
    }


def show(rows: dict[str, dict[str, float]], title: str) -> None:
    from loader_peers import PEERS

    fastest = max(row["images_per_second"] for row in rows.values())
    columns = f"{'images/s':>9s} {'× best':>7s} {'µs CPU/image':>13s} {'first batch s':>14s}"
    print(f"\n{title:32s} {columns} {'start CPU s':>12s} {'PSS MiB':>8s} {'own MiB':>8s}")
    for name, row in rows.items():
        print(
            f"{PEERS[name].title:32s} {row['images_per_second']:9,.0f} {row['images_per_second'] / fastest:7.2f} "
            f"{row['cpu_us_per_image']:13.0f} {row['first_batch_s']:14.3f} {row['start_cpu_s']:12.2f} "
            f"{row['peak_pss_mib']:8.0f} {row['peak_own_mib']:8.0f}"
        )


def prepare(folder: Path, names: list[str], images: int) -> None:
    """Write every peer's files from the same payloads."""
    from loader_peers import PEERS

    distinct = photo_patches(min(images, DISTINCT), PATCH_SIZE, seed=0)
    payloads = [distinct[index % DISTINCT] for index in range(images)]
    for name in names:
        PEERS[name].prepare(folder, payloads)


def choose_peers(asked: list[str] | None, decode: bool) -> list[str]:
    """Those that are installed; without decoding there is one of each."""
    from loader_peers import PEERS

    chosen = []
    for name in asked or PEERS:
        if not PEERS[name].is_installed:
            print(f"{name}: skipped, {PEERS[name].package} is not installed", file=sys.stderr)
        elif decode or not PEERS[name].has_own_decoder:
            chosen.append(name)
    return chosen


def main() -> None:
    from loader_peers import PEERS, Task

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--decode", action="store_true", help="read and decode (the default)")
    mode.add_argument("--read", action="store_true", help="read the bytes alone")
    parser.add_argument("--images", type=int, help="JPEG patches of 256 px; 8192 by default, to read alone 32768")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds; the median counts")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="all by default")
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    options = parser.parse_args()
    decode = not options.read
    num_images = options.images or IMAGES["decode" if decode else "read"]
    names = choose_peers(options.peers, decode)
    packages = sorted({*PACKAGES, *(PEERS[name].package for name in names)})
    result: dict[str, Any] = {"images": num_images, "batch": BATCH, "decode": decode, "workers": {}}
    print(machine(packages))
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        os.environ["DINOWDS_CACHE"] = str(folder / "cache")
        prepare(folder, names, num_images)
        for workers in options.workers:
            task = Task(str(folder), decode, workers, BATCH, seed=0)
            # One batch less for each process: webdataset's processes end with parts of batches.
            batches = num_images // BATCH - workers
            rows = compare(names, dataclasses.asdict(task), batches, options.rounds)
            show(rows, f"{'decoded' if decode else 'bytes alone'}, {workers} workers")
            result["workers"][str(workers)] = rows
    if options.json:
        append_result(options.json, "loader", result, packages)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(read_batches(*json.loads(sys.argv[2]))))
    else:
        main()
