"""The C library of dinowds.shard under the address and undefined-behaviour sanitizers, on mutated inputs.

`python -m tests.faults.fuzz.under_asan NAME --seconds N [--corpus DIR]`: not guided by coverage, as atheris and the
sanitizer cannot both be the first library of a process; a corpus of `run_target` makes up for it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from tests.faults.fuzz.targets import load

SOURCES = [Path(__file__).parents[3] / "dinowds" / "shard" / name for name in ("kernels.c", "sha256.c")]
NAMES = ("tar", "pax", "headers")
"""Targets that call it."""
START = 120


def available() -> str | None:
    """The sanitizer's library; None without gcc, or without it."""
    try:
        found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    path = found.stdout.strip()
    return path if Path(path).is_absolute() else None


def run(name: str, seconds: int, corpus: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Builds, and fuzzes in a process of its own. Prints the number of executions; fails at the first finding."""
    with tempfile.TemporaryDirectory(prefix="asan-") as folder:
        library = Path(folder) / "kernels.so"
        options = [
            "-std=c11",
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
        subprocess.run(["gcc", *options, "-o", str(library), *map(str, SOURCES)], check=True, timeout=START)
        environment = os.environ | {
            "LD_PRELOAD": str(available()),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "PYTHONMALLOC": "malloc",  # so that it knows of Python's memory, too
            "TMPDIR": folder,
        }
        command = [
            sys.executable,
            "-m",
            "tests.faults.fuzz.under_asan",
            name,
            "--seconds",
            seconds,
            "--library",
            library,
        ]
        command += ["--corpus", corpus] if corpus else []
        return subprocess.run(
            list(map(str, command)),
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds + START,
            check=False,
        )


def mutated(random_: random.Random, content: bytes, other: bytes) -> bytes:
    """A few bytes changed, cut, put in, or taken from another input."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 8)):
        place = random_.randrange(len(changed) + 1)
        length = random_.choice((1, 1, 2, 4, 8, 64, 512))
        kind = random_.randrange(5)
        if kind == 0:
            del changed[place : place + length]
        elif kind == 1:
            changed[place:place] = random_.randbytes(length)
        elif kind == 2:
            changed[place : place + length] = random_.choice((b"\xff", b"\0", b"7", b"\x7f", b" ")) * length
        elif kind == 3:
            start = random_.randrange(len(other) + 1)
            changed[place : place + length] = other[start : start + length]
        elif place < len(changed):
            changed[place] ^= 1 << random_.randrange(8)
    return bytes(changed[: 1 << 16])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", type=Path, help="that was built; without it, it is")
    arguments = parser.parse_args()
    if arguments.library is None:
        result = run(arguments.name, arguments.seconds, arguments.corpus)
        print(result.stdout + result.stderr)  # noqa: T201
        return result.returncode
    from dinowds.shard import kernels

    library = ctypes.CDLL(str(arguments.library))
    kernels._declare(library)
    with mock.patch.object(kernels, "_load", return_value=(library, None)):
        kernels._library.cache_clear()
        print(executions(arguments))  # noqa: T201
    return 0


def executions(arguments: argparse.Namespace) -> int:
    """How many inputs were tried."""
    target, random_ = load(arguments.name), random.Random(arguments.seed)
    inputs = [*target.seeds(), *(path.read_bytes() for path in sorted((arguments.corpus or Path("/none")).glob("*")))]
    last = Path(tempfile.gettempdir()) / "last"
    count, end = 0, time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        content = mutated(random_, random_.choice(inputs), random_.choice(inputs))
        last.write_bytes(content)
        try:
            target.run(content)
        except BaseException:
            print(f"finding: {content.hex()}", file=sys.stderr)  # noqa: T201
            raise
        count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
