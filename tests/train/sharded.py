"""Steps by hand, replicated and sharded: what each of two ranks does for `test_sharding.py`. Argument: its folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinowds.model.architecture import Architecture, size_of
from dinowds.model.dino import DinoModel
from dinowds.model.head import DinoHead
from dinowds.model.vit import build_backbone
from dinowds.train import dist, sharding
from dinowds.train.loss import dino_loss, teacher_targets
from dinowds.train.optim import apply, build_optimizer, clip, set_rates, update_teacher
from dinowds.world import World

CPU = torch.device("cpu")
NUM_RANKS, NUM_MICRO_BATCHES, BATCH = 2, 2, 3
ARCHITECTURE = Architecture("image", size_of("image", "vit_tiny", 64, 2), 3, 8, 3, "timm")
OUT_DIM = 65
"""Odd: the ranks' shares differ."""


def build_model() -> DinoModel:
    return DinoModel(build_backbone(ARCHITECTURE), DinoHead(ARCHITECTURE.size.embed_dim, OUT_DIM, norm_last_layer=True))


def views(step: int, rank: int, part: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + part)
    return [torch.randn(number * BATCH, 3, side, side, generator=generator) for number, side in ((2, 24), (3, 16))]


@dataclass
class Pair:
    student: DinoModel
    teacher: DinoModel
    replicated: nn.Module
    optimizer: torch.optim.Optimizer

    def state(self) -> dict[str, Any]:
        return {
            "student": sharding.full_model_state(self.student),
            "teacher": sharding.full_model_state(self.teacher),
            "optimizer": sharding.full_optimizer_state(self.optimizer),
        }

    def load(self, state: dict[str, Any]) -> None:
        sharding.load_full_model_state(self.student, state["student"])
        sharding.load_full_model_state(self.teacher, state["teacher"])
        sharding.load_full_optimizer_state(self.optimizer, state["optimizer"])


def build_pair(sharded: bool) -> Pair:
    torch.manual_seed(0)
    student, teacher = build_model(), build_model()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    if sharded:
        for model in (student, teacher):
            sharding.shard(model, CPU)
    optimizer = build_optimizer(student)
    sharding.shard_optimizer(optimizer)
    return Pair(student, teacher, student if sharded else dist.replicate(student, CPU), optimizer)


def train(
    pair: Pair, steps: range, ranks: list[int], how: str = "tensor", dtype: torch.dtype | None = None, bad: int = -1
) -> tuple[list[float], list[Tensor]]:
    """Losses and norms of gradients of each step, of the samples that would be those of `ranks`."""
    losses, all_norms = [], []
    for step in steps:
        set_rates(pair.optimizer, lr=1e-4, weight_decay=0.1)
        parts = [views(step, rank, part) for rank in ranks for part in range(NUM_MICRO_BATCHES)]
        total = torch.zeros(())
        for number, part in enumerate(parts):
            with dist.synchronised(pair.replicated, last=number == len(parts) - 1):
                with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                    with torch.no_grad():
                        logits = pair.teacher(part[:1]).logits.float().unflatten(0, (2, BATCH))
                    student_logits = pair.replicated(part).logits.unflatten(0, (-1, BATCH))
                loss = dino_loss(student_logits, teacher_targets(logits, torch.zeros(OUT_DIM), 0.04)) / len(parts)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        parameters = [parameter for parameter in pair.student.parameters() if parameter.grad is not None]
        gradients = sharding.local(parameter.grad for parameter in parameters if parameter.grad is not None)
        norms = clip(gradients, 0.05, how, dist.all_reduce_sum if sharding.is_sharded(pair.student) else None)
        if step == 0:
            for parameter in pair.student.head.last_layer.parameters():
                parameter.grad = None
        is_bad = torch.tensor(float(step == bad))
        apply(pair.optimizer, is_bad)
        pair.optimizer.zero_grad()
        update_teacher(
            sharding.local(pair.teacher.parameters()), sharding.local(pair.student.parameters()), 0.9, is_bad
        )
        losses.append(float(dist.all_reduce_sum(total)) / (NUM_RANKS // len(ranks)))
        all_norms.append(norms)
    return losses, all_norms


def main() -> None:
    world, folder = World.from_environment(), Path(sys.argv[1])
    results: dict[str, Any] = {}
    with dist.process_group(world, CPU):
        for name, sharded in (("replicated", False), ("sharded", True)):
            pair = build_pair(sharded)
            first = train(pair, range(3), [world.rank])
            middle = copied(pair.state())
            second = train(pair, range(3, 6), [world.rank], "global", bad=4)
            with torch.no_grad():
                features = pair.teacher.eval().backbone(views(0, world.rank, 0)[0])
            results[name] = {
                "losses": first[0] + second[0],
                "norms": first[1] + second[1],
                "middle": middle,
                "end": pair.state(),
                "features": features,
                "bf16": train(build_pair(sharded), range(1), [world.rank], dtype=torch.bfloat16),
            }
        middle = dist.on_rank_0(lambda: results["replicated"]["middle"])
        pair = build_pair(sharded=True)
        pair.load(copied(middle))
        results["resumed"] = {
            "start": copied(pair.state()),
            "losses": train(pair, range(3, 6), [world.rank], "global", bad=4)[0],
        }
    if world.rank == 0:
        torch.save(results, folder / "results.pt")


def copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


if __name__ == "__main__":
    main()
