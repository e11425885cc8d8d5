"""What the tests share: small real inputs, a tiny run, and the command as a user calls it."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinowds.data.manifest import own_sha256
from dinowds.shard.build import ShardOptions, build_dataset


def jpeg_patch(seed: int, size: int = 32) -> bytes:
    """A smooth colourful JPEG, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def lossless_jpeg() -> bytes:
    """20 × 17 px. Its pixels are coded one by one; all are 128 where all differences are zero, a code of one zero bit
    each.
    """

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    frame = struct.pack(">BHHB", 8, 17, 20, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    codes = b"\0\1" + bytes(15) + b"\0"
    scan = bytes([3, 1, 0, 2, 0, 3, 0, 1, 0, 0])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, codes) + segment(0xDA, scan) + bytes(128) + b"\xff\xd9"


def write_cohort(path: Path, num_patches: int, first_seed: int = 0) -> Path:
    """A tar of `num_patches` patches in folders of ten: `slideN/X_Y.jpg`."""
    with tarfile.open(path, "w") as tar:
        for i in range(num_patches):
            payload = jpeg_patch(first_seed + i)
            member = tarfile.TarInfo(f"slide{i // 10}/{i}_{i * 2}.jpg")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return path


def make_dataset(folder: Path, num_patches: int = 90, max_count: int = 25) -> Path:
    """A dataset of two cohorts in several shards."""
    folder.mkdir(parents=True, exist_ok=True)
    first = num_patches * 2 // 3
    sources = [
        write_cohort(folder / "alpha.tar", first),
        write_cohort(folder / "beta.tar", num_patches - first, first_seed=1000),
    ]
    build_dataset(sources, folder / "dataset", ShardOptions(max_count=max_count))
    return folder / "dataset"


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """A changed manifest, or description of a subset, with its own sha256 made anew, as who knows the format would."""
    content.get("dinowds", content)["sha256"] = own_sha256(content)
    return content


TINY_RUN = (
    "student.arch=vit_tiny", "student.depth=2", "student.patch_size=8", "student.out_dim=128",
    "crops.global.size=24", "crops.local.size=16", "crops.local.count=2",
    "train.batch_size=12", "train.save_every_steps=4", "train.log_every=1", "train.save_every=100",
    "optim.epochs=3", "optim.warmup_epochs=1", "optim.max_steps=20", "speed.num_workers=0", "speed.precision=fp32",
    "data.chunk_size=4", "data.window_chunks=3", "data.partitions=4",
)  # fmt: skip
"""Overrides that make a run of 20 steps over 3 epochs of the test dataset take seconds."""


def dinowds_command(*arguments: object) -> list[str]:
    """The `dinowds` command in this environment."""
    return [sys.executable, "-c", "from dinowds.cli.main import run; run()", *map(str, arguments)]


def run_dinowds(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `dinowds` as a user would; output is captured as text."""
    return subprocess.run(dinowds_command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


@contextmanager
def started(command: Sequence[object], limit: float = 180, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text pipes that is killed after `limit` seconds, or when the block fails: nothing waits for it for
    ever.
    """
    with subprocess.Popen([str(part) for part in command], text=True, **options) as process:
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()


def free_port() -> int:
    """A port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_gone(mark: str, seconds: float = 30) -> None:
    """Wait until no process has `mark` in its command line; fail if one stays."""
    deadline = time.monotonic() + seconds
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]:
        assert time.monotonic() < deadline, f"still running: {[_read(path) for path in left]}"


def processes_of(pid: int) -> set[int]:
    """It, its children and theirs, at this moment."""
    found, new = set(), {pid}
    while new:
        found |= new
        lists = [path for one in new for path in Path(f"/proc/{one}/task").glob("*/children")]
        new = {int(child) for path in lists for child in _read(path).split()} - found
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended meanwhile
        return b""
