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


def test_architecture_of__options_from_later_systems() -> None:
    config = load_config(None, ["student.registers=4", "student.layer_scale=1e-5"])
    expected = Architecture("image", Size(384, 12, 6), 3, 16, 14, "timm", registers=4, layer_scale=True)
    assert architecture_of(config) == expected
    region = load_config(None, ["student.input_dim=8", "student.registers=2", "student.layer_scale=0.1"], "region")
    assert architecture_of(region) == Architecture(
        "region", Size(192, 6, 6), 8, 1, 14, "timm", registers=2, layer_scale=True
    )


def test_build_pair__options_from_later_systems() -> None:
    overrides = ["out_dim=16", "embed_dim=64", "depth=2", "registers=3", "layer_scale=2", "drop_path_skips=true"]
    config = load_config(None, [f"student.{override}" for override in [*overrides, "drop_path_rate=0.5"]])
    student, teacher = build_pair(architecture_of(config), config.student)
    for model in (student, teacher):
        state = model.state_dict()
        assert state["backbone.reg_token"].shape == (1, 3, 64)
        assert (state["backbone.blocks.1.ls1.gamma"] == 2).all()
    assert type(student.backbone.blocks[1]).__name__ == "SkippingBlock"
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(teacher([images]).logits, teacher([images]).logits)
    assert not torch.equal(student([images]).logits, student([images]).logits)


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
