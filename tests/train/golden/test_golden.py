"""Fifty steps of both trainers against `plain`, which knows nothing of the package."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinowds.config import RunConfig, load_config
from dinowds.train import loop
from dinowds.train.learner import Learner, initial_models
from dinowds.train.step import train_step
from tests.train.golden.plain import Plain, Recipe
from tests.train.test_resume import losses

STEPS = 50
OF_BOTH = (
    "student.depth=2", "student.out_dim=200", "student.drop_path_rate=0",
    "train.batch_size=12", "train.max_batch_per_device=12", "train.log_every=1", "train.save_every_steps=0",
    "optim.warmup_epochs=2", "optim.lr=0.004", "optim.clip_grad=0.2",
    "teacher.momentum_teacher=0.97", "teacher.teacher_temp=0.07", "teacher.warmup_teacher_temp_epochs=4",
    f"optim.max_steps={STEPS}", "speed.num_workers=0", "speed.precision=fp32",
)  # fmt: skip
OF_PATCHES = (
    *OF_BOTH, "student.arch=vit_tiny", "student.embed_dim=64", "student.patch_size=8", "optim.epochs=8",
    "crops.global.size=24", "crops.local.size=16", "crops.local.count=3",
)  # fmt: skip
OF_REGIONS = (
    *OF_BOTH, "student.arch=hvit_xs", "student.embed_dim=64", "optim.epochs=11",
    "crops.global.size=5", "crops.local.size=3", "crops.local.count=3",
)  # fmt: skip


class Recorder:
    """`train_step`, of which it keeps the views, and which residual branches were dropped."""

    def __init__(self) -> None:
        self.views: list[list[Tensor]] = []
        self.paths: list[deque[Tensor]] = []
        self.learner: Learner | None = None

    def __call__(self, learner: Learner, settings: Any, views: dict[str, Tensor], *rest: Any) -> dict[str, Tensor]:
        if self.learner is None:
            self.learner = learner
            for block in learner.student.backbone.blocks:
                for branch in (block.drop_path1, block.drop_path2):
                    branch.register_forward_hook(self._keep_path)
        self.views.append([group.clone() for group in views.values()])
        self.paths.append(deque())
        return train_step(learner, settings, views, *rest)

    def _keep_path(self, _module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        before, after = (x.detach().flatten(1).norm(dim=1) for x in (inputs[0], output))
        self.paths[-1].append(after / before)


def recipe_of(config: RunConfig, steps_per_epoch: int, num_heads: int) -> Recipe:
    optim, teacher = config.optim, config.teacher
    return Recipe(
        num_heads=num_heads,
        depth=2,
        patch_size=getattr(config.student, "patch_size", None),
        lr=optim.lr,
        batch_size=12,
        steps_per_epoch=steps_per_epoch,
        epochs=optim.epochs,
        warmup_epochs=2,
        min_lr=1e-6,
        weight_decay=0.04,
        weight_decay_end=0.4,
        momentum=teacher.momentum_teacher,
        warmup_temperature=0.04,
        temperature=0.07,
        warmup_temperature_epochs=4,
        freeze_last_layer_epochs=1,
        clip=0.2,
    )


def far_off(ours: dict[str, Tensor], theirs: dict[str, Tensor], begin: dict[str, Tensor]) -> dict[str, float]:
    """Tensors that differ by more than 1e-4 of their norm, and by how much.

    A key's bias changes nothing but rounding: softmax does not see it. AdamW moves it all the same.
    """
    assert ours.keys() == theirs.keys()
    off = {}
    for name, value in theirs.items():
        mine, exact = ours[name].double(), value.detach()
        if name.endswith("attn.qkv.bias"):
            mine, exact = (torch.cat([x[: len(x) // 3], x[2 * len(x) // 3 :]]) for x in (mine, exact))
        difference = float((mine - exact).norm() / exact.norm())
        assert not torch.equal(mine, begin[name].double()[: len(mine)]), f"{name} never moved"
        if difference > 1e-4:
            off[name] = difference
    return off


@pytest.mark.parametrize(
    ("kind", "overrides", "steps_per_epoch", "num_heads"),
    [
        ("image", OF_PATCHES, 7, 1),
        ("region", OF_REGIONS, 5, 2),
        ("image", (*OF_PATCHES, "student.drop_path_rate=0.3"), 7, 1),
    ],
)
def test_fifty_steps__are_those_of_the_formulae(
    kind: Any,
    overrides: tuple[str, ...],
    steps_per_epoch: int,
    num_heads: int,
    dataset_path: Path,
    regions_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(None, overrides, kind)
    recorder = Recorder()
    monkeypatch.setattr(loop, "train_step", recorder)
    outcome = loop.train(dataset_path if kind == "image" else regions_path, tmp_path / "run", config)
    resolved = config if kind == "image" else load_config(None, [*overrides, "student.input_dim=8"], kind)
    begin = initial_models(resolved)[0].state_dict()
    plain = Plain.of(recipe_of(config, steps_per_epoch, num_heads), begin)
    expected = []
    for views, plain.paths in zip(recorder.views, recorder.paths, strict=True):
        expected.append(plain.step(views))
        assert not plain.paths
    found = losses(tmp_path / "run")
    assert len(expected) == STEPS
    assert [found[step] for step in range(1, STEPS + 1)] == pytest.approx(expected, rel=1e-5)
    assert min(expected) < 0.9 * max(expected)
    assert far_off(outcome.student.state_dict(), plain.student, begin) == {}
    assert far_off(outcome.teacher.state_dict(), plain.teacher, begin) == {}
    assert recorder.learner is not None
    torch.testing.assert_close(recorder.learner.centre.double(), plain.centre, rtol=1e-4, atol=1e-6)
