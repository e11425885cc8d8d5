"""From a configuration to a pair of models."""

from __future__ import annotations

import pytest
import torch

from dinowds.config import load_config
from dinowds.errors import ConfigError
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import architecture_of, build_pair


def test_architecture_of__the_defaults() -> None:
    assert architecture_of(load_config()) == Architecture("image", Size(384, 12, 6), 3, 16, 14, "timm")
    region = load_config(None, ["student.input_dim=384"], "region")
    assert architecture_of(region) == Architecture("region", Size(192, 6, 6), 384, 1, 14, "timm")


def test_architecture_of__as_asked_for() -> None:
    overrides = ["student.patch_size=8", "crops.global.size=48", "crops.local.size=16", "student.embed_dim=128"]
    config = load_config(None, [*overrides, "student.depth=3", "student.pos_interpolation=dino"])
    assert architecture_of(config) == Architecture("image", Size(128, 3, 2), 3, 8, 6, "dino")


def test_architecture_of__regions_of_unknown_features() -> None:
    with pytest.raises(ConfigError, match=r"student\.input_dim is null"):
        architecture_of(load_config(None, [], "region"))


@pytest.mark.parametrize("kind", ["image", "region"])
def test_model__concatenates_views_of_two_sizes(kind: str) -> None:
    torch.manual_seed(0)
    dims = (3, 8) if kind == "image" else (5, 1)
    shape = Architecture(kind, Size(64, 1, 2), *dims, 4)  # type: ignore[arg-type]
    student, _ = build_pair(shape, load_config(None, ["student.out_dim=16"]).student)
    views = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 16, 16)]
    if kind == "region":
        views = [torch.randn(2, 4, 4, 5), torch.randn(3, 2, 2, 5)]
    apart = torch.cat([student([one[None]]).logits for group in views for one in group])
    torch.testing.assert_close(student(views).logits, apart, rtol=1e-4, atol=1e-5)
