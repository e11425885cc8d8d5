"""How fast is `dinowds shard`, against copying the file and against tarfile + webdataset.ShardWriter?

    python benchmarks/shard.py [--json benchmarks/results/shard-DATE.json]

One tar of JPEG patches becomes shuffled shards; everything runs in this process (workers apart), page cache warm.
The reference shuffles too: it draws the order, reads each member through tarfile and writes it with ShardWriter.
It has no index, digests, checks of the images or fsync; `build_dataset` has.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import append_result, photo_patches

SHARD_BYTES = 32 << 20
DISTINCT = 8000
"""Patches that differ; more samples repeat them."""


def write_source(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        payloads = photo_patches(min(count, DISTINCT), size=256, seed=0)
        for index in range(count):
            payload = payloads[index % DISTINCT]
            member = tarfile.TarInfo(f"slide{index // 500:03d}/{index % 500 * 256}_{index // 25 * 256}.jpg")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    shutil.copyfile(source, out / "copy.tar")


def tarfile_and_shard_writer(source: Path, out: Path) -> None:
    import webdataset

    out.mkdir()
    with (
        tarfile.open(source) as tar,
        webdataset.ShardWriter(str(out / "shard-%06d.tar"), maxsize=SHARD_BYTES, maxcount=1 << 30, verbose=0) as writer,
    ):
        members = [member for member in tar.getmembers() if member.isreg()]
        for index in np.random.default_rng(0).permutation(len(members)).tolist():
            member = members[index]
            file = tar.extractfile(member)
            assert file is not None
            writer.write({"__key__": member.name.removesuffix(".jpg"), "jpg": file.read()})


def build(workers: int) -> Callable[[Path, Path], None]:
    from dinowds.shard.build import ShardOptions, build_dataset

    options = ShardOptions(shard_size=SHARD_BYTES, workers=workers)

    def run(source: Path, out: Path) -> None:
        build_dataset([source], out, options)

    return run


def measure(run: Callable[[Path, Path], None], source: Path, folder: Path, repeats: int) -> float:
    """Median seconds over `repeats`, after one run that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        out = folder / "out"
        began = time.perf_counter()
        run(source, out)
        seconds.append(time.perf_counter() - began)
        shutil.rmtree(out)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8000, help="patches of 256 px")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="append the dated result to this file")
    options = parser.parse_args()
    ways = {
        "cp": copy,
        "tarfile + webdataset.ShardWriter": tarfile_and_shard_writer,
        "build_dataset, 1 worker": build(1),
        "build_dataset, 2 workers": build(2),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        source = folder / "patches.tar"
        write_source(source, options.count)
        num_bytes = source.stat().st_size
        seconds = {name: measure(run, source, folder, options.repeats) for name, run in ways.items()}
    reference = seconds["tarfile + webdataset.ShardWriter"]
    result: dict[str, Any] = {"samples": options.count, "bytes": num_bytes, "shard_bytes": SHARD_BYTES, "ways": {}}
    print(f"{options.count:,} samples, {num_bytes / 1e6:,.0f} MB")
    for name, value in seconds.items():
        figures = {
            "seconds": round(value, 4),
            "mb_per_second": round(num_bytes / 1e6 / value, 1),
            "samples_per_second": round(options.count / value),
            "times_reference": round(reference / value, 2),
        }
        result["ways"][name] = figures
        print(
            f"{name:34} {value:7.3f} s {figures['mb_per_second']:8,.0f} MB/s "
            f"{figures['samples_per_second']:8,} samples/s {figures['times_reference']:6.2f} × ShardWriter"
        )
    if options.json:
        append_result(options.json, "shard", result, ("numpy", "pillow", "pyarrow", "webdataset"))


if __name__ == "__main__":
    main()
