"""Is this machine ready? Each check looks at one thing and says what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dinowds
from dinowds.world import available_cores

Status = Literal["ok", "warning", "problem"]

PACKAGES = (
    "torch", "torchvision", "timm", "webdataset", "numpy", "pillow", "simplejpeg", "pyarrow", "xxhash",
    "omegaconf", "typer", "rich", "tensorboard", "safetensors", "fsspec",
)  # fmt: skip
_MIN_SHARED_MEMORY = 1 << 30  # a batch of 128 of 2×224 + 8×96 px views is 67 MB, and several are under way
_MIN_FREE_DISK = 10 << 30  # a checkpoint of ViT-B with 65,536 prototypes is 1.7 GB, and three are kept


@dataclass(frozen=True)
class Finding:
    """What one check found. `advice` is empty where nothing needs doing."""

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """All checks, in order; `folder` is where runs and datasets will be written."""
    yield from _versions()
    pair = _torch_pair()
    yield pair
    if pair.status == "ok":  # else torch itself may not import
        yield _devices()
        yield _precision()
    yield from _compiled()
    yield _cores()
    yield _shared_memory(Path("/dev/shm"))
    yield from _output(folder)


def _versions() -> Iterator[Finding]:
    yield Finding(
        "dinowds", "ok", f"{dinowds.__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", f"pip install {name}")


def _torch_pair() -> Finding:
    """torch and torchvision must come from one build: imported in a process of its own, since a bad pair can crash."""
    command = [sys.executable, "-c", "import torchvision"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return judge_pair(result.returncode, result.stderr)


def judge_pair(exit_code: int, stderr: str) -> Finding:
    """The finding for an `import torchvision` that ended so."""
    name = "torch + torchvision"
    if exit_code == 0:
        return Finding(name, "ok", "work together")
    reason = (stderr.strip().splitlines() or [f"exit code {exit_code}"])[-1]
    advice = "pip uninstall -y torch torchvision && pip install torch torchvision"
    if "torchvision::nms" in stderr or "undefined symbol" in stderr:
        reason = f"come from different builds ({reason})"
        advice += "  (both from the same index: a CPU-only torch does not work with PyPI's torchvision)"
    return Finding(name, "problem", reason, advice)


def _devices() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("devices", "warning", "no GPU: training runs on the CPU", "fine for the demo; pretrain on a GPU")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} ({device.total_memory >> 30} GiB)" for device in names)
    return Finding("devices", "ok", found)


def _precision() -> Finding:
    import torch

    from dinowds.train.devices import computes_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Finding("precision", "ok", f"auto means {'bf16' if computes_bf16(device) else 'fp32'} here")


def _compiled() -> Iterator[Finding]:
    """The C libraries, without which crops and sharding take several times as long."""
    from dinowds.crops import cpu
    from dinowds.shard import kernels

    for name, reason in (("crops", cpu.missing()), ("sharding", kernels.missing())):
        if reason is None:
            yield Finding(name, "ok", "compiled")
        else:
            found, _, advice = reason.rpartition(": ")
            yield Finding(name, "warning", found, advice)


def _cores() -> Finding:
    usable, total = available_cores(), os.cpu_count() or 1
    if usable < total:
        return Finding("cores", "warning", f"{usable} of {total} usable", "a Slurm job gets more with --cpus-per-task")
    return Finding("cores", "ok", f"{usable}")


def _shared_memory(folder: Path) -> Finding:
    """Where loader processes hand batches over that do not fit into the few they keep."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", "not a separate file system here")
    size = shutil.disk_usage(folder).total
    if size < _MIN_SHARED_MEMORY:
        return Finding(
            "shared memory", "problem", f"{folder} has {size >> 20} MiB",
            "start the container with --shm-size=8g (or --ipc=host), or set speed.num_workers=0",
        )  # fmt: skip
    return Finding("shared memory", "ok", f"{folder} has {size / (1 << 30):.1f} GiB")


def _output(folder: Path) -> Iterator[Finding]:
    """Can files be written, renamed and locked in `folder`?"""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _try_files(Path(scratch))
    except OSError as error:
        yield Finding("write access", "problem", f"{folder}: {error.strerror}", "choose a folder that you can write to")
        return
    yield Finding("write access", "ok", f"{folder.resolve()}")
    free = shutil.disk_usage(folder).free
    status: Status = "ok" if free >= _MIN_FREE_DISK else "warning"
    advice = "" if status == "ok" else "checkpoints of a large ViT take gigabytes: free some, or write elsewhere"
    yield Finding("free disk", status, f"{free / (1 << 30):.1f} GiB", advice)


def _try_files(scratch: Path) -> None:
    import fcntl

    from dinowds.files import write_atomic

    write_atomic(scratch / "file", b"content")
    with open(scratch / "file", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def worst(findings: list[Finding]) -> Status:
    """The worst status among `findings`."""
    found = {finding.status for finding in findings}
    return next((status for status in ("problem", "warning") if status in found), "ok")
