"""How long does `dinowds --help` take, beside starting Python and importing torch?

python benchmarks/help.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "dinowds --help": ["-c", "from dinowds.cli.main import run; run()", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str], rounds: int) -> float:
    """Median wall time of a fresh interpreter."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    for name, arguments in COMMANDS.items():
        print(f"{name:16s} {seconds(arguments, rounds=11):.3f} s")
