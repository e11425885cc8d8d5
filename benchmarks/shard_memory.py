"""How much memory does `dinowds shard` take, and how often does it read its source?

    python benchmarks/shard_memory.py entries [--count 5000000]      millions of small images
    python benchmarks/shard_memory.py bytes [--gigabytes 10] [--memory 512MiB]      a source larger than --memory

The command runs as its own process; its largest resident set is the system's figure (`ru_maxrss`), which counts the
Python interpreter and all libraries. Bytes that it asked the system for come from /proc: those of the source, those
that it wrote to its buckets and reads again, and the index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import append_result, photo_patches
from PIL import Image

BLOCK = 512
BATCH = 50_000


def small_images(count: int) -> list[bytes]:
    """JPEGs of 16 px, that differ."""
    images = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).resize((16, 16)).save(content, "JPEG", quality=50)
        images.append(content.getvalue())
    return images


def make_source(path: Path, what: str, count: int, gigabytes: float) -> None:
    payloads = small_images(200) if what == "entries" else photo_patches(4000, size=256, seed=0)
    if what == "bytes":
        count = int(gigabytes * 1e9 / (np.mean([len(payload) for payload in payloads]) + 768))
    write_source(path, payloads, count)


def write_source(path: Path, payloads: list[bytes], count: int) -> None:
    """A tar of `count` members, written in large pieces."""
    from dinowds.shard.kernels import tar_headers

    padded = [payload + bytes(-len(payload) % BLOCK) for payload in payloads]
    with open(path, "wb") as file:
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            names = [b"slide_%05d/%d_%d.jpg" % (row // 5000, row % 5000 * 256, row // 70 * 256) for row in rows]
            headers = tar_headers(names, [len(payloads[row % len(payloads)]) for row in rows])
            file.write(b"".join(headers[row - start].tobytes() + padded[row % len(payloads)] for row in rows))
        file.write(bytes(2 * BLOCK))


def run(arguments: list[str]) -> dict[str, Any]:
    """Run `dinowds shard` and say what it took."""
    began = time.perf_counter()
    process = subprocess.Popen([Path(sys.executable).with_name("dinowds"), *arguments], stderr=subprocess.DEVNULL)
    counters: dict[str, int] = {}
    while True:
        try:
            lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
            counters = {name: int(value) for name, value in (line.split(": ") for line in lines)} or counters
        except (OSError, ValueError):
            pass
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    if status:
        raise SystemExit(f"the command failed: {arguments}")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "bytes_asked_for": counters.get("rchar", 0),
        "bytes_from_disk": counters.get("read_bytes", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("entries", "bytes"))
    parser.add_argument("--count", type=int, default=5_000_000, help="of small images")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="append the dated result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        source, out = Path(temporary) / "source.tar", Path(temporary) / "out"
        # In a process of its own: the system counts what its parent holds as the command's, too.
        making = get_context("spawn").Process(
            target=make_source, args=(source, options.what, options.count, options.gigabytes)
        )
        making.start()
        making.join()
        os.sync()
        more = ["--memory", options.memory] if options.what == "bytes" else ["--memory", "0"]
        figures = run(["shard", str(source), "--out", str(out), "--workers", "2", *more])
        num_bytes = source.stat().st_size
        shards = json.loads((out / "manifest.json").read_bytes())["shardlist"]
        count = sum(shard["nsamples"] for shard in shards)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
    result = {
        "what": options.what,
        "samples": count,
        "bytes": num_bytes,
        "bytes_of_dataset": written,
        "arguments": more,
    }
    result |= figures
    print(
        f"{count:,} samples, {num_bytes / 1e9:.1f} GB: {figures['seconds']} s, peak {figures['peak_mb']} MB, "
        f"asked for {figures['bytes_asked_for'] / num_bytes:.2f} × the source's bytes"
    )
    if options.json:
        append_result(options.json, "shard_memory", result, ("numpy", "pyarrow"))


if __name__ == "__main__":
    main()
