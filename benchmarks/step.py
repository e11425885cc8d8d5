"""How fast is a training step, against one as the reference writes it?

    python benchmarks/step.py [--precisions fp32 bf16] [--batch 4] [--rounds 5] [--threads 2] [--device cpu]
                              [--compile] [--json FILE]

ViT-S/16, 2 × 224 + 8 × 96 px, K = 65,536; both start with the same weights and see the same views, uint8 for dinowds
and already normalised for the plain step (plain.py). All take turns in one process, and the fastest of each counts:
other work on the machine only ever adds time.

Also: the share of the rate at which this machine multiplies large float32 matrices that each reaches, counted by
`step_flops`. What is left to 100 % is the most that any float32 step could gain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from common import append_result, machine
from plain import DTYPES, plain_trainer, plain_views
from torch import Tensor

from dinowds.config import PatchConfig
from dinowds.model.dino import architecture_of
from dinowds.train.devices import numerics
from dinowds.train.diagnostics import step_flops
from dinowds.train.learner import Learner, build_learner, models_on
from dinowds.train.schedule import values_at
from dinowds.train.step import StepSettings, train_step

PACKAGES = ("numpy", "timm", "torch")
STEPS_PER_EPOCH = 1000
WARM_ROUNDS = 1
MATRIX_SIDE = 2048
NUM_PROTOTYPES = 65536

T = TypeVar("T")
Step = Callable[[int], float]
"""Index of the step → its loss."""


def random_views(batch: int, device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.randint(0, 256, (count, batch, 3, side, side), dtype=torch.uint8, device=device)
        for name, count, side in (("global", 2, 224), ("local", 8, 96))
    }


def make_config(batch: int, precision: str, is_compiled: bool) -> PatchConfig:
    config = PatchConfig()
    return replace(
        config,
        train=replace(config.train, batch_size=batch, compile=is_compiled),
        speed=replace(config.speed, precision=precision),
    )


def dinowds_step(learner: Learner, config: PatchConfig, views: dict[str, Tensor]) -> Step:
    batch, device = config.train.batch_size, learner.centre.device
    settings = StepSettings(device, DTYPES[config.speed.precision], batch, batch, config.optim.clip_grad, 0, 0)
    return lambda step: float(
        train_step(learner, settings, views, step, values_at(config, STEPS_PER_EPOCH, step))["loss"]
    )


def plain_step(learner: Learner, config: PatchConfig, views: dict[str, Tensor]) -> Step:
    trainer = plain_trainer(learner.student.state_dict(), config, learner.centre.device)
    normalised = plain_views(views)
    return lambda step: trainer.step(normalised, values_at(config, STEPS_PER_EPOCH, step))


def contestants(options: argparse.Namespace, device: torch.device) -> dict[str, Step]:
    views = random_views(options.batch, device)
    steps: dict[str, Step] = {}
    for precision in options.precisions:
        config = make_config(options.batch, precision, options.compile)
        learner = build_learner(config, *models_on(config, device), device)
        steps[f"plain {precision}"] = plain_step(learner, config, views)
        steps[f"dinowds {precision}"] = dinowds_step(learner, config, views)
    return steps


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds, and what it gives."""
    wait_for(device)
    began = time.perf_counter()
    found = work()
    wait_for(device)
    return time.perf_counter() - began, found


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_flops(device: torch.device) -> float:
    """FLOP/s of a large float32 product, at best."""
    a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device) for _ in range(2))
    return 2.0 * MATRIX_SIDE**3 / min(timed(lambda: a @ b, device)[0] for _ in range(5))


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    steps = contestants(options, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    fastest_product = 0.0
    for index in range(WARM_ROUNDS + options.rounds):
        losses = {}
        for name, step in steps.items():
            spent, losses[name] = timed(partial(step, index), device)
            times[name].append(spent)
        fastest_product = max(fastest_product, product_flops(device))
        if index == 0:
            check_losses(losses)
    config = make_config(options.batch, "fp32", options.compile)
    flops = step_flops(architecture_of(config), config, NUM_PROTOTYPES) * options.batch
    return {
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "compile": options.compile,
        "flops": flops,
        "float32_product_flops_per_s": fastest_product,
        "seconds": {name: found[WARM_ROUNDS:] for name, found in times.items()},
        "fastest": {name: min(found[WARM_ROUNDS:]) for name, found in times.items()},
    }


def check_losses(losses: dict[str, float]) -> None:
    """All do the same work: dropped paths alone differ."""
    first = next(iter(losses.values()))
    if any(abs(loss - first) > 0.02 * first for loss in losses.values()):
        raise RuntimeError(f"the first losses differ: {losses}")


def report(result: dict[str, Any], precisions: list[str]) -> dict[str, float]:
    """Print a table; the ratios."""
    fastest = result["fastest"]
    for name, best in fastest.items():
        share = result["flops"] / best / result["float32_product_flops_per_s"]
        rate = result["batch"] / best
        print(f"{name:14s} {best * 1e3:8.0f} ms {rate:9.2f} images/s {share:6.0%} of a float32 product's FLOP/s")
    ratios = {
        f"{ours} / plain {theirs}": fastest[f"plain {theirs}"] / fastest[f"dinowds {ours}"]
        for ours in precisions
        for theirs in precisions
    }
    for name, ratio in ratios.items():
        print(f"dinowds {name}: {ratio:.2f} ×")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="dinowds' blocks with torch.compile")
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine(PACKAGES))
    device = torch.device(options.device)
    with numerics(device, tf32=True, deterministic=False):
        result = measure(options, device)
    ratios = report(result, options.precisions)
    if options.json:
        append_result(options.json, "step", {**result, "ratios": ratios}, PACKAGES)


if __name__ == "__main__":
    main()
