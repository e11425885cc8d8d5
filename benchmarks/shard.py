"""How fast is `dinowds shard`, against `cp` and against tarfile + webdataset.ShardWriter? And listing a tar alone?

    python benchmarks/shard.py [--json benchmarks/results/shard-DATE.json]

One tar of JPEG patches becomes shuffled shards; everything runs in this process (but `cp`), page cache warm. The ways
take turns, so that all meet the same machine. The reference shuffles too: it draws the order, reads each member through
tarfile and writes it with ShardWriter. It has no index, digests, checks of the images or fsync, and `cp` has no fsync;
`build_dataset` has all of them.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import append_result, photo_patches
from PIL import Image

SHARD_BYTES = 32 << 20
PATCH = 256
"""px."""
DISTINCT = 8000
"""Patches that differ; more samples repeat them."""


def images(count: int, across: int) -> list[bytes]:
    """JPEGs of `across` × `across` patches, which all differ."""
    patches = photo_patches(count * across**2, size=PATCH, seed=0)
    if across == 1:
        return patches
    found = []
    for start in range(0, len(patches), across**2):
        image, file = Image.new("RGB", (across * PATCH, across * PATCH)), io.BytesIO()
        for place, patch in enumerate(patches[start : start + across**2]):
            image.paste(Image.open(io.BytesIO(patch)), (place % across * PATCH, place // across * PATCH))
        image.save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def write_source(path: Path, count: int, across: int) -> None:
    payloads = images(min(count, DISTINCT // across**2), across)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            payload = payloads[index % len(payloads)]
            member = tarfile.TarInfo(f"slide{index // 500:03d}/{index % 500 * 256}_{index // 25 * 256}.jpg")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    subprocess.run(["cp", source, out / "copy.tar"], check=True)


def copy_and_sync(source: Path, out: Path) -> None:
    copy(source, out)
    with open(out / "copy.tar", "rb") as file:
        os.fsync(file.fileno())


def list_with_tarfile(source: Path, out: Path) -> None:
    out.mkdir()
    with tarfile.open(source) as tar:
        tar.getmembers()


def list_alone(source: Path, out: Path) -> None:
    """Headers alone, as tarfile does it: names, places and sizes."""
    from dinowds.shard.sources.tarscan import FileData, scan_tar

    out.mkdir()
    with open(source, "rb") as file:
        for _ in scan_tar(FileData(file.fileno()), str(source)):
            pass


def list_and_check(source: Path, out: Path) -> None:
    """What `dinowds shard` does first: the images' own headers and ends are read too."""
    from dinowds.shard.sources.check import Checks
    from dinowds.shard.sources.layouts import open_sources
    from dinowds.shard.sources.scanning import scan_sources

    out.mkdir()
    scan_sources(open_sources([source]), None, Checks(), 1, lambda _: None)


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


def core_seconds() -> float:
    """That this process and those that it has waited for have taken."""
    return sum(os.times()[:4])


def measure(
    ways: dict[str, Callable[[Path, Path], None]], source: Path, folder: Path, repeats: int
) -> dict[str, tuple[float, float]]:
    """Medians over `repeats` of each way's seconds, and of the cores' seconds; one round before is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            out = folder / "out"
            os.sync()  # what the way before has left to the disk
            began, cores_began = time.perf_counter(), core_seconds()
            run(source, out)
            seconds[name].append((time.perf_counter() - began, core_seconds() - cores_began))
            shutil.rmtree(out)
    medians = {name: np.median(found[1:], axis=0).tolist() for name, found in seconds.items()}
    return {name: (wall, cores) for name, (wall, cores) in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64_000, help="images")
    parser.add_argument("--across", type=int, default=1, help="patches of 256 px on each side of an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="append the dated result to this file")
    options = parser.parse_args()
    ways = {
        "cp": copy,
        "cp, then fsync": copy_and_sync,
        "tarfile + webdataset.ShardWriter": tarfile_and_shard_writer,
        "build_dataset, 1 worker": build(1),
        "build_dataset, 2 workers": build(2),
        "tarfile.getmembers": list_with_tarfile,
        "list": list_alone,
        "list and check": list_and_check,
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        source = folder / "patches.tar"
        write_source(source, options.count, options.across)
        num_bytes = source.stat().st_size
        seconds = measure(ways, source, folder, options.repeats)
    reference, copied = seconds["tarfile + webdataset.ShardWriter"][0], seconds["cp"][0]
    result: dict[str, Any] = {
        "samples": options.count,
        "across": options.across,
        "bytes": num_bytes,
        "shard_bytes": SHARD_BYTES,
        "ways": {},
    }
    print(f"{options.count:,} samples, {num_bytes / 1e6:,.0f} MB")
    for name, (value, cores) in seconds.items():
        figures = {
            "seconds": round(value, 4),
            "core_seconds": round(cores, 2),
            "mb_per_second": round(num_bytes / 1e6 / value, 1),
            "samples_per_second": round(options.count / value),
            "times_reference": round(reference / value, 2),
            "times_cp": round(copied / value, 2),
        }
        if "list" in name:
            figures["times_getmembers"] = round(seconds["tarfile.getmembers"][0] / value, 1)
        result["ways"][name] = figures
        print(
            f"{name:34} {value:7.3f} s {cores:6.2f} core s {figures['mb_per_second']:8,.0f} MB/s "
            f"{figures['samples_per_second']:8,} samples/s {figures['times_reference']:6.2f} × ShardWriter "
            f"{figures['times_cp']:5.2f} × cp"
            + (f" {figures['times_getmembers']:5.1f} × getmembers" if "times_getmembers" in figures else "")
        )
    if options.json:
        append_result(options.json, "shard", result, ("numpy", "pillow", "pyarrow", "webdataset"))


if __name__ == "__main__":
    main()
