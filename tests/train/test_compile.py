"""What `train.compile` compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from dinowds.config import load_config
from dinowds.train.learner import models_on

OPTIONS = ("train.compile=true", "student.arch=vit_tiny", "student.embed_dim=64", "student.depth=6",
           "student.out_dim=16", "student.patch_size=8", "crops.global.size=24", "crops.local.size=16")  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own look at it
def test_models_on__every_block_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six rates of dropped paths and two sizes of views are more kernels than torch allows by itself."""
    num_graphs = 0

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        nonlocal num_graphs
        num_graphs += 1
        return graph.forward

    monkeypatch.setattr(dynamo, "recompile_limit", 8)
    torch._dynamo.reset()
    counters.clear()
    student, teacher = models_on(load_config(None, OPTIONS), torch.device("cpu"))
    for block in (*student.backbone.blocks, *teacher.backbone.blocks):
        block.compile(backend=count)
    for views in ([torch.rand(4, 3, 24, 24), torch.rand(8, 3, 16, 16)], [torch.rand(2, 3, 24, 24)]):
        with torch.no_grad():
            teacher(views[:1])
        student(views)
    assert num_graphs > 8
    assert not counters["unimplemented"]
