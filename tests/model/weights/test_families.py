"""Files of all families load by name, whatever they are wrapped in."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from dinowds.errors import CheckpointError, ConfigError
from dinowds.model.architecture import SIZES, Architecture
from dinowds.model.head import DinoHead
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD
from dinowds.model.vit import build_backbone
from dinowds.model.weights import load_backbone, read_weights
from tests.model.weights.files import (
    TINY_IMAGE,
    TINY_REGION,
    State,
    assert_equal,
    full,
    head_state,
    image_state,
    original_dino,
    reference,
    region_state,
    save,
    wrap,
)

Checkpoint = Callable[[State, State], dict[str, Any]]


def _about(kind: str = "image", **others: Any) -> dict[str, Any]:
    size = TINY_IMAGE if kind == "image" else TINY_REGION
    shape = {"in_dim": 3, "patch_size": 4} if kind == "image" else {"in_dim": 10, "patch_size": 1}
    return {
        "architecture": {"kind": kind, **size._asdict(), **shape, "grid": 3, "pos_interpolation": "size"},
        "mean": [0.7, 0.6, 0.5] if kind == "image" else None,
        "std": [0.1, 0.2, 0.3] if kind == "image" else None,
        "dataset": {"name": "two", "samples": 9, "cohorts": {"a": 4, "b": 5}, "metadata": {"mpp": 0.5}},
        **others,
    }


def _dinowds(teacher: State, student: State, **others: Any) -> dict[str, Any]:
    return full(teacher, student, format_version=1, step=3, config={}, **others) | {"student": student}


# --- the real sizes, once ---


def test_read_weights__vit_small_of_the_original_dino(tmp_path: Path) -> None:
    state = image_state(SIZES["image"]["vit_small"], 16, 14)
    assert len(state) == 150
    assert sum(value.numel() for value in state.values()) == 21_665_664
    weights = read_weights(save(tmp_path / "dino.pth", state))
    assert weights.architecture == Architecture("image", SIZES["image"]["vit_small"], 3, 16, 14, "dino")
    assert (weights.family, weights.which, weights.head, weights.about) == ("dino", "teacher", None, {})
    assert (weights.mean, weights.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert_equal(weights.backbone, state)


def test_read_weights__vit4k_of_hipt(tmp_path: Path) -> None:
    state = region_state(SIZES["region"]["hvit_xs"], 384, 14)
    assert len(state) == 78
    assert sum(value.numel() for value in state.values()) == 2_781_504
    weights = read_weights(save(tmp_path / "vit4k_xs.pth", {"teacher": wrap(state, "module.backbone.")}))
    assert weights.architecture == Architecture("region", SIZES["region"]["hvit_xs"], 384, 1, 14, "dino")
    assert weights.family == "hipt"
    assert_equal(weights.backbone, state)


def test_read_weights__head_of_real_size(tmp_path: Path) -> None:
    backbone, head = image_state(SIZES["image"]["vit_tiny"], 16, 2), head_state(192, 64, hidden=2048, bottleneck=256)
    weights = read_weights(save(tmp_path / "full.pth", wrap(backbone, "backbone.") | wrap(head, "head.")))
    assert_equal(weights.head, head)
    DinoHead(192, 64).load_state_dict(head)


# --- families and wrappers ---

FAMILIES = [
    ("dino", image_state, original_dino, "dino"),
    ("hipt", region_state, original_dino, "dino"),
    ("reference", image_state, reference, "size"),
    ("reference", region_state, reference, "size"),
    ("dinowds", image_state, lambda t, s: _dinowds(t, s, about=_about()), "size"),
    ("dinowds", region_state, lambda t, s: _dinowds(t, s, about=_about("region")), "size"),
]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("family", "make", "checkpoint", "interpolation"), FAMILIES)
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_read_weights__full_checkpoint(
    tmp_path: Path,
    family: str,
    make: Callable[..., State],
    checkpoint: Checkpoint,
    interpolation: str,
    which: Any,
) -> None:
    backbones = {"teacher": make(seed=1), "student": make(seed=2)}
    width = backbones["teacher"]["norm.bias"].numel()
    heads = {"teacher": head_state(width, seed=3), "student": head_state(width, seed=4)}
    models = {name: wrap(backbones[name], "backbone.") | wrap(heads[name], "head.") for name in backbones}
    path = save(tmp_path / "checkpoint.pth", checkpoint(models["teacher"], models["student"]))
    weights = read_weights(path, which)
    assert (weights.family, weights.which, weights.path) == (family, which, str(path))
    assert weights.architecture.pos_interpolation == interpolation
    assert_equal(weights.backbone, backbones[which])
    assert_equal(weights.head, heads[which])
    assert load_backbone(weights).pos_interpolation == interpolation


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.module.", "module._orig_mod.backbone."]
)
def test_read_weights__prefixes_in_any_order(tmp_path: Path, prefix: str) -> None:
    state = image_state()
    assert_equal(read_weights(save(tmp_path / "a.pth", wrap(state, prefix))).backbone, state)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("prefix", ["head.", "module.head.", "_orig_mod.module.head.", "head._orig_mod."])
@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("names", ["plain", "parametrized", "old"])
def test_read_weights__heads_of_all_names(tmp_path: Path, prefix: str, use_bn: bool, names: str) -> None:
    renames = {
        "plain": {},
        "parametrized": {
            "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
            "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
        },
        "old": {"mlp.": "projection_head.", "last_layer.": "prototypes."},
    }[names]
    head = head_state(TINY_IMAGE.embed_dim, use_bn=use_bn)
    written = dict(head)
    for new, old in renames.items():
        written = {name.replace(new, old): value for name, value in written.items()}
    content = wrap(image_state(), "module.backbone.") | wrap(written, prefix)
    assert_equal(read_weights(save(tmp_path / "a.pth", {"teacher": content})).head, head)


@pytest.mark.usefixtures("tiny")
def test_read_weights__old_head_without_head(tmp_path: Path) -> None:
    """`projection_head` beside the backbone, not within a `head`."""
    head = head_state(TINY_IMAGE.embed_dim)
    old = {
        name.replace("mlp.", "projection_head.").replace("last_layer.", "prototypes."): v for name, v in head.items()
    }
    assert_equal(read_weights(save(tmp_path / "a.pth", wrap(image_state() | old, "module."))).head, head)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_read_weights__half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in image_state().items()}
    weights = read_weights(save(tmp_path / "a.pth", state))
    assert {value.dtype for value in weights.backbone.values()} == {torch.float32}
    assert_equal(weights.backbone, state)


@pytest.mark.usefixtures("tiny")
def test_read_weights__before_torch_wrote_zips(tmp_path: Path) -> None:
    state = image_state()
    torch.save({"teacher": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_equal(read_weights(tmp_path / "a.pth").backbone, state)


# --- dinowds ---


@pytest.mark.usefixtures("tiny")
def test_read_weights__run_says_what_it_is(tmp_path: Path) -> None:
    state = image_state()
    weights = read_weights(save(tmp_path / "a.pt", _dinowds(wrap(state, "backbone."), state, about=_about())))
    assert (weights.mean, weights.std) == ((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
    assert weights.about["cohorts"] == {"a": 4, "b": 5}
    assert weights.architecture == Architecture("image", TINY_IMAGE, 3, 4, 3, "size")


def test_read_weights__heads_come_from_the_run(tmp_path: Path) -> None:
    """Not known by width and depth: the fixture `tiny` is not in use."""
    state = image_state()
    path = save(tmp_path / "a.pt", _dinowds(wrap(state, "backbone."), state, about=_about()))
    assert read_weights(path).architecture.size == TINY_IMAGE


def test_read_weights__run_from_before_it_said_so(tmp_path: Path) -> None:
    size = SIZES["image"]["vit_tiny"]._replace(depth=1)
    state = image_state(size, 4, 3)
    content = _dinowds(state, state) | {"config": {"student": {"arch": "vit_tiny", "depth": 1, "embed_dim": None}}}
    weights = read_weights(save(tmp_path / "a.pt", content))
    assert weights.architecture == Architecture("image", size, 3, 4, 3, "timm")
    assert weights.about == {}


@pytest.mark.usefixtures("tiny")
def test_read_weights__run_folder_gives_its_newest_whole_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    states = [image_state(seed=seed) for seed in range(3)]
    for step, state in enumerate(states):
        save(folder / f"step-{step:08d}.pt", _dinowds(state, state, about=_about()))
    assert_equal(read_weights(tmp_path / "run").backbone, states[2])
    newest = folder / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING):
        assert_equal(read_weights(tmp_path / "run").backbone, states[1])
    assert "step-00000002.pt" in caplog.text
    assert newest.exists()
    for path in folder.iterdir():
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        read_weights(tmp_path / "run")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "says depth 3, its tensors say 2"),
        ({"kind": "region"}, "says kind region"),
        ({"grid": 4}, "says grid 4"),
        ({"num_heads": 5}, "5 heads cannot share a width of 12"),
        ({"num_heads": "3"}, "num_heads '3'"),
        ({"num_heads": True}, "num_heads True"),
        ({"pos_interpolation": "best"}, "pos_interpolation 'best'"),
    ],
)
def test_read_weights__run_that_says_something_else(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    about = _about()
    about["architecture"] |= change
    path = save(tmp_path / "a.pt", _dinowds(image_state(), image_state(), about=about))
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5, 0.5, float("nan")], "abc", [1, 1, 0], [True, 1, 1]])
def test_read_weights__std_that_cannot_be(tmp_path: Path, value: Any) -> None:
    path = save(tmp_path / "a.pt", _dinowds(image_state(), image_state(), about=_about(std=value)))
    with pytest.raises(CheckpointError, match=r"a\.pt: std is"):
        read_weights(path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "change",
    [
        {"about": _about(dataset={"name": torch.zeros(3)})},
        {"about": _about(dataset=[1])},
        {"about": {}},
        {"format_version": torch.zeros(3)},
        {"config": 7},
        {"config": {"student": {"arch": ["vit_tiny"]}}},
    ],
)
def test_read_weights__run_that_says_what_cannot_be(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save(tmp_path / "a.pt", _dinowds(image_state(), image_state()) | change)
    with pytest.raises(CheckpointError, match=r"a\.pt: (what it says|format_version|its config)"):
        read_weights(path)


@pytest.mark.usefixtures("tiny")
def test_read_weights__later_format_is_refused(tmp_path: Path) -> None:
    content = _dinowds(image_state(), image_state(), about=_about()) | {"format_version": 2}
    with pytest.raises(CheckpointError, match="format_version is 2, this dinowds reads 1"):
        read_weights(save(tmp_path / "a.pt", content))


# --- timm and safetensors ---


def _timm_folder(folder: Path, state: State, **config: Any) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    content = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 0,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.usefixtures("tiny")
def test_read_weights__timm_folder(tmp_path: Path) -> None:
    folder = _timm_folder(tmp_path / "hub", image_state())
    for path in (folder, folder / "model.safetensors"):
        weights = read_weights(path)
        assert (weights.family, weights.architecture.pos_interpolation) == ("timm", "timm")
        assert (weights.mean, weights.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        assert_equal(weights.backbone, image_state())


def test_read_weights__timm_says_its_heads(tmp_path: Path) -> None:
    folder = _timm_folder(tmp_path / "hub", image_state(), model_args={"num_heads": 4, "img_size": 12})
    assert read_weights(folder).architecture.size.num_heads == 4


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"])
def test_read_weights__timms_own_model_with_registers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 42, "depth": 2, "num_heads": 6}
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # far from its initial zeros and ones
            parameter.add_(0.02 * torch.randn_like(parameter))
    config = {"architecture": name + ".lvd142m", "model_args": arguments}
    weights = read_weights(_timm_folder(tmp_path / "hub", theirs.state_dict(), **config))
    registers = 4 if "reg4" in name else 0
    size = SIZES["image"]["vit_small"]._replace(depth=2)
    assert weights.architecture == Architecture("image", size, 3, 14, 3, "timm", registers, layer_scale=True)
    for side in (42, 56):
        images = torch.randn(2, 3, side, side)
        expected = theirs.forward_features(images)
        found = load_backbone(weights).forward_features(images)
        assert found.shape == (2, 1 + (side // 14) ** 2, 384)
        torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[:, 1:], expected[:, 1 + registers :], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_read_weights__later_options_show_in_names(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"a.{suffix}", image_state(registers=5, layer_scale=True)
    if suffix == "pth":
        save(path, state)
    else:
        save_file(state, path)
    weights = read_weights(path)
    assert weights.family == "timm"  # the original has neither
    assert (weights.architecture.registers, weights.architecture.layer_scale) == (5, True)
    assert_equal(weights.backbone, state)


@pytest.mark.usefixtures("tiny")
def test_read_weights__run_says_its_later_options(tmp_path: Path) -> None:
    state, about = image_state(registers=5, layer_scale=True), _about()
    assert read_weights(save(tmp_path / "old.pt", _dinowds(state, state, about=about))).architecture.registers == 5
    about["architecture"] |= {"registers": 5, "layer_scale": True}
    assert_equal(read_weights(save(tmp_path / "a.pt", _dinowds(state, state, about=about))).backbone, state)
    for change in ({"registers": 4}, {"layer_scale": False}):
        wrong = {**about, "architecture": about["architecture"] | change}
        with pytest.raises(CheckpointError, match=rf"says {next(iter(change))} .*, its tensors say"):
            read_weights(save(tmp_path / "b.pt", _dinowds(state, state, about=wrong)))


@pytest.mark.usefixtures("tiny")
def test_read_weights__timm_classifier_only_where_it_is_declared(tmp_path: Path) -> None:
    state = image_state() | {"head.weight": torch.zeros(7, 12), "head.bias": torch.zeros(7)}
    weights = read_weights(_timm_folder(tmp_path / "declared", state, num_classes=7))
    assert weights.head is None
    assert_equal(weights.backbone, image_state())
    with pytest.raises(CheckpointError, match=r"2 unexpected: head\.bias, head\.weight"):
        read_weights(_timm_folder(tmp_path / "not", state))
    with pytest.raises(CheckpointError, match=r"2 unexpected: head\.bias, head\.weight"):
        read_weights(save(tmp_path / "a.pth", state))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vit_small_patch16_quickgelu"}, "architecture is vit_small_patch16_quickgelu"),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "architecture is vit_base_patch16_clip_quick"),
        ({"global_pool": "avg"}, "global_pool is avg"),
        ({"model_args": {"act_layer": "relu"}}, "act_layer is relu"),
        ({"model_args": {"reg_tokens": 4}}, "no_embed_class is False"),
        ({"model_args": {"no_embed_class": True}}, "no_embed_class is True"),
        ({"architecture": "vit_small_patch14_reg4_dinov2", "model_args": {"reg_tokens": 0}}, "no_embed_class is True"),
        ({"architecture": "vit_base_patch16_reg4_gap_256"}, "architecture is vit_base_patch16_reg4_gap"),
        ({"model_args": {"num_heads": "2"}}, "num_heads is 2, expected a number"),
        ({"model_args": []}, "model_args is a list"),
        ({"pretrained_cfg": {"mean": None}}, "mean is None"),
    ],
)
def test_read_weights__timm_model_that_is_no_plain_vit(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_weights(_timm_folder(tmp_path / "hub", image_state(), **config))


def test_read_weights__timm_folder_whose_files_disagree(tmp_path: Path) -> None:
    folder = _timm_folder(tmp_path / "hub", image_state())
    said = {"dinowds": json.dumps(_about(mean=[0.5] * 3, std=[0.25] * 3))}
    save_file(image_state(), folder / "model.safetensors", said)
    assert read_weights(folder).about["cohorts"] == {"a": 4, "b": 5}
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("0.25", "0.26"))
    with pytest.raises(CheckpointError, match=r"config\.json says another mean or std than the file of weights"):
        read_weights(folder)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("prefix", "family"), [("", "timm"), ("backbone.", "dino"), ("teacher.backbone.", "dino"), ("teacher.", "timm")]
)
def test_read_weights__safetensors(tmp_path: Path, prefix: str, family: str) -> None:
    save_file(wrap(image_state(), prefix), tmp_path / "a.safetensors")
    weights = read_weights(tmp_path / "a.safetensors")
    assert weights.family == family
    assert_equal(weights.backbone, image_state())


@pytest.mark.usefixtures("tiny")
def test_read_weights__regions_in_safetensors_are_hipts(tmp_path: Path) -> None:
    save_file(region_state(), tmp_path / "a.safetensors")
    weights = read_weights(tmp_path / "a.safetensors")
    assert (weights.family, weights.architecture.pos_interpolation) == ("hipt", "dino")


# --- options ---


@pytest.mark.usefixtures("tiny")
def test_read_weights__position_interpolation_can_be_chosen(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", image_state())
    chosen = read_weights(path, pos_interpolation="timm")
    assert chosen.architecture.pos_interpolation == "timm"
    assert chosen.fingerprint != read_weights(path).fingerprint
    with pytest.raises(ConfigError, match="pos_interpolation is 'best', expected one of timm, size, dino"):
        read_weights(path, pos_interpolation="best")


@pytest.mark.usefixtures("tiny")
def test_read_weights__model_that_is_not_there(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"teacher": image_state()})
    with pytest.raises(CheckpointError, match="holds no student, only a teacher"):
        read_weights(path, "student")
    with pytest.raises(ConfigError, match="which is 'both'"):
        read_weights(path, "both")  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny")
def test_fingerprint__depends_on_all_that_features_depend_on(tmp_path: Path) -> None:
    state = image_state()
    moved = {**state, "norm.bias": state["norm.bias"] + 1e-6}
    swapped = {**state, "norm.bias": state["norm.weight"], "norm.weight": state["norm.bias"]}
    plain = [read_weights(save(tmp_path / "a.pth", s)).fingerprint for s in (state, state, moved, swapped)]
    normalised = [
        read_weights(save(tmp_path / "b.pt", _dinowds(state, state, about=_about(mean=mean)))).fingerprint
        for mean in ([0.7, 0.6, 0.5], [0.7, 0.6, 0.4])
    ]
    assert plain[0] == plain[1]
    assert len({*plain, *normalised}) == 5


@pytest.mark.usefixtures("tiny")
def test_fingerprint__is_what_it_was_before_later_options(tmp_path: Path) -> None:
    state, digest = image_state(), hashlib.sha256()
    digest.update(json.dumps([3, "dino", list(IMAGENET_MEAN), list(IMAGENET_STD)]).encode())
    for name in sorted(state):
        digest.update(json.dumps([name, list(state[name].shape)]).encode())
        digest.update(state[name].numpy().tobytes())
    assert read_weights(save(tmp_path / "a.pth", state)).fingerprint == digest.hexdigest()


@pytest.mark.usefixtures("tiny")
def test_fingerprint__covers_later_options(tmp_path: Path) -> None:
    state = image_state(registers=2, layer_scale=True)
    changed = [
        {**state, name: state[name] + 1} for name in ("reg_token", "blocks.1.ls2.gamma", "cls_token", "pos_embed")
    ]
    together = {**state, "cls_token": state["cls_token"] + state["pos_embed"][:, :1]}
    together["pos_embed"] = torch.cat([torch.zeros(1, 1, 12), state["pos_embed"][:, 1:]], 1)
    first, *others, same = [
        read_weights(save(tmp_path / "a.pth", s)).fingerprint for s in (state, image_state(), *changed, together)
    ]
    assert len({first, *others}) == 6
    assert same == first  # gives the same features, to the last bit


def test_load_backbone__is_strict_frozen_and_draws_nothing(tmp_path: Path) -> None:
    architecture = Architecture("image", SIZES["image"]["vit_tiny"], 3, 16, 2)
    weights = read_weights(save(tmp_path / "a.pth", build_backbone(architecture).state_dict()))
    before = torch.get_rng_state()
    backbone = load_backbone(weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.cls_token.fill_(7.0)
    assert not (weights.backbone["cls_token"] == 7).any()
