"""What the benchmarks share: the machine's description, real image payloads and dated results."""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "immunohistochemistry", "retina")
"""Photographs of scikit-image's wheel that are detailed at full size; about 15 kB a patch of 256 px at quality 85."""


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB, operating system, Python and the versions of `packages`."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    model = names.get("model name", platform.processor() or "unknown")
    flags = names.get("flags", "").split()
    extras = [name for name in ("avx2", "avx512f", "amx_tile") if name in flags]
    return f"{model} ({', '.join(extras)})" if extras else model


def photo_patches(count: int, size: int, seed: int, quality: int = 85) -> list[bytes]:
    """`count` JPEG payloads of `size` × `size` px, RGB, cut at random places of photographs, turned and flipped."""
    photos = [_load_photo(name) for name in PHOTOS]
    random = np.random.default_rng(seed)
    payloads = []
    for index in range(count):
        photo = photos[index % len(photos)]
        top, left = (int(random.integers(0, side - size + 1)) for side in photo.shape[:2])
        patch = np.rot90(photo[top : top + size, left : left + size], int(random.integers(4)))
        if random.random() < 0.5:
            patch = patch[:, ::-1]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(patch)).save(file, "JPEG", quality=quality)
        payloads.append(file.getvalue())
    return payloads


def _load_photo(name: str) -> npt.NDArray[np.uint8]:
    import skimage.data

    photo: npt.NDArray[np.uint8] = np.asarray(getattr(skimage.data, name)())
    return np.repeat(photo[..., None], 3, axis=2) if photo.ndim == 2 else photo[..., :3]


def append_result(path: Path, name: str, content: dict[str, Any], packages: Sequence[str]) -> None:
    """Add a dated result to the JSON list in `path`, with the machine and the versions of `packages`."""
    results = json.loads(path.read_text()) if path.exists() else []
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    results.append({"benchmark": name, "date": today, "machine": machine(packages), "result": content})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def process_tree(root: int) -> list[int]:
    """Ids of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [root]
    for process in tree:
        tree += children.get(process, [])
    return tree


def cpu_seconds(root: int) -> float:
    """User and system time of a process tree so far, with that of its processes that have ended and were waited for."""
    ticks = sum(int(ticks) for process in process_tree(root) for ticks in _stat_fields(process)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat_fields(process: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; none where the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def memory_mib(root: int) -> dict[str, float]:
    """Memory of a process tree, MiB: `pss` counts shared pages once; `own` is what of it is not pages of files."""
    found = {"Pss": 0, "Pss_File": 0}
    for process in process_tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for name, _, value in (line.partition(":") for line in lines):
            if name in found:
                found[name] += int(value.split()[0])
    return {"pss": found["Pss"] / 1024, "own": (found["Pss"] - found["Pss_File"]) / 1024}
