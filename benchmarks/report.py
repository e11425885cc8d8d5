"""How long does the page of a long run take, beside reading its figures line by line with Python's json?

python benchmarks/report.py [--lines 1000000] [--results benchmarks/results/report-DATE.json]

A line has the figures of a ViT-S/16 run: 12 blocks, about 1.3 kB. The run has no checkpoints: pictures cost the same
for a run of any length.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import append_result

from dinowds.config import PatchConfig, to_yaml
from dinowds.report.make import make_report

KINDS = 64
"""Different lines but for step and loss."""


def write_run(folder: Path, num_lines: int) -> None:
    """A run folder with a configuration and so many lines of figures."""
    (folder / "config.yaml").write_text(to_yaml(PatchConfig()))
    random = np.random.default_rng(0)
    tails = [json.dumps(_figures(random))[1:] for _ in range(KINDS)]
    noise = random.normal(0, 0.05, num_lines).tolist()
    with (folder / "metrics.jsonl").open("w") as file:
        for number in range(num_lines):
            loss = 11.09 - 6 * number / num_lines + noise[number]
            file.write(f'{{"step": {(number + 1) * 10}, "loss": {loss}, {tails[number % KINDS]}\n')


def _figures(random: np.random.Generator) -> dict[str, float | None]:
    parts = ["all", "embed", *(f"blocks.{block}" for block in range(12)), "norm", "head.mlp", "head.last_layer"]
    names = [
        "teacher_entropy", "koleo", "output_entropy", "output_perplexity", "prototypes_in_use", "student_std",
        "teacher_std", "centre_norm", *(f"gradient_norm/{part}" for part in parts), "teacher_distance", "loss_share",
        "kl", "lr", "weight_decay", "momentum", "teacher_temperature", "epoch", "images_per_second", "waiting_share",
    ]  # fmt: skip
    values = random.uniform(0.5, 1.5, len(names)).tolist()
    figures = {**dict(zip(names, values, strict=True)), "output_perplexity": 900.0, "teacher_entropy": 6.0}
    return {**figures, "mfu": None, "peak_memory_gib": 20.0, "bad_samples": 0, "bad_steps": 0}


def line_by_line(path: Path) -> None:
    """The reference: the largest and the least loss, as Python reads them."""
    least, most = math.inf, -math.inf
    with path.open() as file:
        for line in file:
            loss = json.loads(line)["loss"]
            least, most = min(least, loss), max(most, loss)


def timed(act: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock, and of processors: on a machine that others use too, these say more."""
    wall, processors = time.perf_counter(), time.process_time()
    act()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processors}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_run(run, options.lines)
        page = timed(lambda: make_report([folder]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        reference = timed(lambda: line_by_line(run / "metrics.jsonl"))
        result = {
            "lines": options.lines,
            "metrics_mb": (run / "metrics.jsonl").stat().st_size / 1e6,
            "page": page,
            "page_mb": (run / "report.html").stat().st_size / 1e6,
            "peak_memory_mib": memory,
            "line_by_line": reference,
            "cpu_ratio": page["cpu_s"] / reference["cpu_s"],
        }
    print(json.dumps(result, indent=1))
    if options.results:
        append_result(options.results, "report", result, ["numpy", "plotly", "pyarrow"])


if __name__ == "__main__":
    main()
