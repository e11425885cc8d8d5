"""Exports load with their consumer's own calls, and come back as they were."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dinowds.errors import CheckpointError, ConfigError, OutputError
from dinowds.files import TEMPORARY_SUFFIX
from dinowds.model.architecture import SIZES, Architecture, Size
from dinowds.model.pixels import normalise
from dinowds.model.weights import (
    Weights,
    check,
    export,
    export_weights,
    fold_normalization,
    load_backbone,
    read_weights,
    with_mpp,
)
from dinowds.model.weights.card import how_to_load, model_card, timm_call, timm_config
from dinowds.model.weights.export import To
from dinowds.model.weights.weights import shapes_of, shapes_of_backbone
from tests.model.weights.files import assert_equal, head_state, image_state, original_dino, region_state, save, wrap

pytestmark = pytest.mark.usefixtures("tiny")

HALF = (0.5, 0.5, 0.5)
ABOUT = {
    "name": "two | <b>cohorts</b>",
    "samples": 9,
    "cohorts": {"a\nb": 4, "c": 5},
    "metadata": {"cohorts": {"c": {"mpp": 0.5, "tile_size": 256}, "a\nb": {"mpp": {"0.25": 1, "0.5": 3}}}},
}


@pytest.fixture
def images(tmp_path: Path) -> Weights:
    model = wrap(image_state(), "backbone.") | wrap(head_state(12, use_bn=True), "head.")
    weights = read_weights(save(tmp_path / "image.pth", original_dino(model, model)))
    return replace(weights, about=dict(ABOUT))


@pytest.fixture
def regions(tmp_path: Path) -> Weights:
    weights = read_weights(save(tmp_path / "region.pth", {"teacher": region_state()}), pos_interpolation="size")
    return replace(weights, about=dict(ABOUT))


def newer(tmp_path: Path, registers: int, layer_scale: bool) -> Weights:
    """Of a later architecture, that interpolates as timm."""
    state = image_state(registers=registers, layer_scale=layer_scale)
    return read_weights(save(tmp_path / "newer.pth", state), pos_interpolation="timm")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the other process, which takes seconds, where a test is not about it."""
    monkeypatch.setattr(export, "check_export", lambda *_: 0.0)


def _assert_same(found: Weights, written: Weights) -> None:
    assert replace(found, path="", backbone={}, head=None) == replace(written, path="", backbone={}, head=None)
    assert_equal(found.backbone, written.backbone)


@pytest.mark.usefixtures("_no_network")
def test_export_weights__timm_folder(tmp_path: Path, images: Weights) -> None:
    out = tmp_path / "new" / "hub"
    done = export_weights(with_mpp(images, 0.5), out, "timm", normalization=(HALF, HALF))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["hub"]
    assert done.difference < 1e-5
    _assert_same(read_weights(out), done.weights)
    _assert_same(read_weights(out / "model.safetensors"), done.weights)
    assert read_weights(out).about == ABOUT | {"mpp": 0.5}

    inputs = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = load_backbone(images)(normalise(inputs))
    hub = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    name, arguments = timm_call(images.architecture)
    file = timm.create_model(name, num_classes=0, checkpoint_path=str(out / "model.safetensors"), **arguments).eval()
    config = timm.data.resolve_model_data_config(hub)
    assert (tuple(config["mean"]), tuple(config["std"]), config["crop_pct"]) == (HALF, HALF, 1.0)
    assert tuple(config["input_size"]) == (3, 12, 12)
    for model in (hub, file):
        found = model(normalise(inputs, torch.float32, HALF, HALF))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert done.note.startswith("on another grid than 3 × 3 tokens features differ")


@pytest.mark.usefixtures("_no_network")
def test_export_weights__timm_with_registers_and_layer_scale(tmp_path: Path) -> None:
    out, weights = tmp_path / "hub", newer(tmp_path, registers=4, layer_scale=True)
    done = export_weights(weights, out, "timm")
    assert done.difference < 1e-5
    again = read_weights(out)
    _assert_same(again, done.weights)
    assert (again.architecture, again.fingerprint) == (weights.architecture, weights.fingerprint)
    assert not again.backbone["pos_embed"][:, 0].any()  # where timm has none, it is added to the class token
    assert weights.backbone["pos_embed"][:, 0].all()

    inputs = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    expected = load_backbone(weights).forward_features(inputs)
    assert torch.equal(load_backbone(again).forward_features(inputs), expected)
    hub = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    tokens = hub.forward_features(inputs)
    torch.testing.assert_close(hub(inputs), expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, 5:], expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert "reg_tokens=4, no_embed_class=True, init_values=1e-05" in done.calls[1]
    assert "| register tokens | 4 |" in (out / "README.md").read_text()


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(("registers", "layer_scale"), [(2, False), (0, True)])
def test_export_weights__timm_with_one_of_both(tmp_path: Path, registers: int, layer_scale: bool) -> None:
    weights = newer(tmp_path, registers, layer_scale)
    done = export_weights(weights, tmp_path / "hub", "timm", normalization=(HALF, HALF))
    _assert_same(read_weights(tmp_path / "hub"), done.weights)
    inputs = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    hub = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    found = hub(normalise(inputs, torch.float32, HALF, HALF))
    torch.testing.assert_close(found, load_backbone(weights)(normalise(inputs)), rtol=1e-5, atol=1e-5)


def test_export_weights__dino_gets_layer_scale_folded(tmp_path: Path) -> None:
    weights = newer(tmp_path, registers=0, layer_scale=True)
    done = export_weights(weights, tmp_path / "a.pth", "dino")
    assert torch.load(tmp_path / "a.pth", weights_only=True).keys() == image_state().keys()
    assert 0 < done.difference < 1e-5
    _assert_same(read_weights(tmp_path / "a.pth"), done.weights)


def test_export_weights__registers_have_no_place_in_dino_and_hipt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 3 register tokens, which dino knows nothing of; take timm$"):
        export_weights(newer(tmp_path, 3, layer_scale=False), tmp_path / "a.pth", "dino")
    regions = read_weights(save(tmp_path / "region.pth", region_state(registers=2)))
    with pytest.raises(ConfigError, match=r"has 2 register tokens, which hipt knows nothing of; take the run itself"):
        export_weights(regions, tmp_path / "a.pth", "hipt")
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.usefixtures("_no_network", "_unchecked")
def test_export_weights__timm_gives_the_same_on_other_grids_where_it_interpolates_alike(
    tmp_path: Path, images: Weights
) -> None:
    inputs = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    differences = {}
    for method in ("timm", "size", "dino"):
        weights = replace(images, architecture=replace(images.architecture, pos_interpolation=method))
        done = export_weights(weights, tmp_path / method, "timm")
        assert (done.note == "") == (method == "timm")
        hub = timm.create_model(f"local-dir:{tmp_path / method}", pretrained=True).eval()
        differences[method] = (hub(inputs) - load_backbone(weights)(inputs)).abs().max().item()
    assert differences["timm"] < 1e-5
    assert min(differences["size"], differences["dino"]) > 1e-3


def test_export_weights__the_check_sees_how_the_consumer_interpolates(
    tmp_path: Path, images: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that keeps quiet about another interpolation is refused."""
    told = replace(images, architecture=replace(images.architecture, pos_interpolation="timm"))
    monkeypatch.setattr(check, "load_backbone", lambda _: load_backbone(images))
    with pytest.raises(OutputError, match="a consumer of its export gets other features"):
        export_weights(told, tmp_path / "hub", "timm")


@pytest.mark.usefixtures("_unchecked")
def test_export_weights__says_which_model_it_is(tmp_path: Path, images: Weights) -> None:
    student = replace(images, which="student")
    export_weights(student, tmp_path / "a.pth", "dino", with_head=True)
    export_weights(student, tmp_path / "hub", "timm")
    export_weights(images, tmp_path / "teacher.pth", "dino")
    for path in (tmp_path / "a.pth", tmp_path / "hub"):
        for asked in ("teacher", "student"):
            assert read_weights(path, asked).which == "student"
    with pytest.raises(CheckpointError, match="holds no student, only a teacher"):
        read_weights(tmp_path / "teacher.pth", "student")


def test_export_weights__dino_backbone(tmp_path: Path, images: Weights) -> None:
    done = export_weights(images, tmp_path / "a.pth", "dino")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_equal(dict(content), image_state())
    _assert_same(read_weights(tmp_path / "a.pth"), done.weights)
    assert done.weights.fingerprint == images.fingerprint
    assert done.difference < 1e-5


@pytest.mark.usefixtures("_unchecked")
def test_export_weights__dino_with_head(tmp_path: Path, images: Weights) -> None:
    export_weights(images, tmp_path / "a.pth", "dino", with_head=True)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == ["teacher"]
    assert_equal(content["teacher"], wrap(image_state(), "backbone.") | wrap(head_state(12, use_bn=True), "head."))
    again = read_weights(tmp_path / "a.pth")
    _assert_same(again, images)
    assert_equal(again.head, head_state(12, use_bn=True))


def test_export_weights__hipt(tmp_path: Path, regions: Weights) -> None:
    export_weights(regions, tmp_path / "a.pth", "hipt")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_equal(content["teacher"], wrap(region_state(), "backbone."))
    _assert_same(read_weights(tmp_path / "a.pth"), regions)


@pytest.mark.usefixtures("_unchecked")
def test_export_weights__hipt_calls_build_the_model_that_was_written(tmp_path: Path, regions: Weights) -> None:
    done = export_weights(regions, tmp_path / "a.pth", "hipt")
    assert "hipt interpolates positions as 'dino', this model as 'size'" in done.note
    assert (
        "VisionTransformer4K(img_size=[48], input_embed_dim=10, output_embed_dim=8, depth=2, num_heads=2,"
        in done.calls[0]
    )
    known = replace(regions.architecture, size=SIZES["region"]["hvit_xs"], in_dim=384, grid=14)
    assert how_to_load(replace(regions, architecture=known), "hipt", 'a"b', False) == [
        'get_vit4k(pretrained_weights="a\\"b")'
    ]
    for change in ({"grid": 12}, {"in_dim": 768}, {"size": SIZES["region"]["hvit_xs"]._replace(depth=8)}):
        other = replace(known, **change)
        assert "get_vit4k" not in how_to_load(replace(regions, architecture=other), "hipt", "a", False)[0]


def test_export_weights__other_features_are_an_error_and_nothing_is_left(
    tmp_path: Path, images: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hub"
    out.mkdir()
    (out / "config.json").write_text("old")

    def wrong(weights: Weights) -> dict[str, Any]:
        content = timm_config(weights)
        content["pretrained_cfg"]["mean"] = list(HALF)
        return content

    monkeypatch.setattr(export, "timm_config", wrong)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"image\.pth: a consumer of its export gets other features \(local-dir: "):
        export_weights(images, out, "timm", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("config.json", "old")]


def test_export_weights__what_a_consumer_cannot_load_is_not_written(
    tmp_path: Path, images: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "timm_call", lambda _: ("vit_of_none", {}))
    with pytest.raises(
        OutputError, match=r"a consumer cannot load its export \(RuntimeError: Unknown model \(vit_of_none"
    ):
        export_weights(images, tmp_path / "hub", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["image.pth"]


def test_export_weights__replaces_only_exports(tmp_path: Path, images: Weights, regions: Weights) -> None:
    out = tmp_path / "hub"
    out.mkdir()
    with pytest.raises(OutputError, match="exists; give another place, or --overwrite"):
        export_weights(images, out, "timm")
    (out / "config.json").write_text("{}")
    (out / ".git").mkdir()
    with pytest.raises(OutputError, match=r"holds \.git, which no export does"):
        export_weights(images, out, "timm", overwrite=True)
    with pytest.raises(OutputError, match="is a folder, expected the other"):
        export_weights(regions, out, "hipt", overwrite=True)
    with pytest.raises(OutputError, match="is a file, expected the other"):
        export_weights(images, tmp_path / "image.pth", "timm", overwrite=True)
    before = (tmp_path / "image.pth").read_bytes()
    with pytest.raises(OutputError, match=r"image\.pth: is not an export of dinowds"):
        export_weights(images, tmp_path / "image.pth", "dino", overwrite=True)
    assert (tmp_path / "image.pth").read_bytes() == before


@pytest.mark.usefixtures("_unchecked")
def test_export_weights__overwrites_exports(tmp_path: Path, images: Weights) -> None:
    folded = fold_normalization(images, HALF, HALF)
    (tmp_path / "link").symlink_to("hub")
    to: To
    for name, to in (("a.pth", "dino"), ("hub", "timm"), ("link", "timm")):
        export_weights(images, tmp_path / name, to, overwrite=True)
        export_weights(folded, tmp_path / name, to, overwrite=True)
        assert read_weights(tmp_path / name).fingerprint == folded.fingerprint
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "hub", "image.pth", "link"]


@pytest.mark.usefixtures("_unchecked")
def test_export_weights__interrupted_between_old_and_new_keeps_the_old(
    tmp_path: Path, images: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hub"
    out.mkdir()
    (out / "config.json").write_text("old")
    rename = Path.rename

    def interrupt(path: Path, target: Path) -> Path:
        if path.name.endswith(TEMPORARY_SUFFIX):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_weights(images, out, "timm", overwrite=True)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("config.json", "old")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "image.pth"]


def test_export_weights__what_does_not_fit(tmp_path: Path, images: Weights, regions: Weights) -> None:
    out = tmp_path / "a"
    to: To
    for to in ("timm", "dino"):
        with pytest.raises(ConfigError, match=f"a model of regions cannot be written for {to}; take one of hipt"):
            export_weights(regions, out, to)
    with pytest.raises(ConfigError, match="a model of images cannot be written for hipt; take one of timm, dino"):
        export_weights(images, out, "hipt")
    with pytest.raises(ConfigError, match="timm has no place for a head"):
        export_weights(images, out, "timm", with_head=True)
    with pytest.raises(ConfigError, match="has no head to write"):
        export_weights(replace(images, head=None), out, "dino", with_head=True)
    with pytest.raises(ConfigError, match="a model of regions has no normalisation"):
        export_weights(regions, out, "hipt", normalization=(HALF, HALF))
    assert not out.exists()


def test_export_weights__a_place_that_cannot_be_written(tmp_path: Path, images: Weights) -> None:
    with pytest.raises(OutputError, match=r"a: cannot be written \(File exists\)"):
        export_weights(images, tmp_path / "image.pth" / "a", "timm")


def test_with_mpp__must_be_possible_and_the_same(images: Weights) -> None:
    assert with_mpp(with_mpp(images, 0.5), 0.5).about["mpp"] == 0.5
    with pytest.raises(ConfigError, match=r"says mpp 0\.5 of its images, not 0\.25"):
        with_mpp(with_mpp(images, 0.5), 0.25)
    with pytest.raises(ConfigError, match=r"says mpp 0\.5 of c, not 0\.25"):
        with_mpp(images, 0.25)
    for mpp in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mpp is"):
            with_mpp(images, mpp)


@pytest.mark.parametrize("size", [*(SIZES["image"].values()), Size(48, 2, 4)])
@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
@pytest.mark.parametrize("grid", [3, 14])
def test_timm_call__builds_the_same_shapes(size: Size, patch_size: int, grid: int) -> None:
    architecture = Architecture("image", size._replace(depth=1), 3, patch_size, grid)
    name, arguments = timm_call(architecture)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **arguments)
    assert shapes_of(model) == shapes_of_backbone(architecture)
    assert model.blocks[0].attn.num_heads == size.num_heads


@pytest.mark.parametrize(
    ("name", "patch_size", "expected"),
    [
        ("vit_tiny", 16, "vit_tiny_patch16_224"),
        ("vit_small", 16, "vit_small_patch16_224"),
        ("vit_base", 8, "vit_base_patch8_224"),
        ("vit_huge", 14, "vit_huge_patch14_224"),
    ],
)
def test_timm_call__standard_models_need_no_shapes(name: str, patch_size: int, expected: str) -> None:
    """TRIDENT and eva give `timm.create_model` the name and the file alone."""
    architecture = Architecture("image", SIZES["image"][name], 3, patch_size, 224 // patch_size)
    assert timm_call(architecture) == (expected, {"dynamic_img_size": True})


def test_model_card__says_what_users_need_and_escapes_names(images: Weights) -> None:
    card = model_card(with_mpp(images, 0.5))
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "license:" not in card.split("---")[1]
    for row in (
        "| resolution | 0.5 µm per px |",
        "| images | 9 |",
        "| cohort a b | 4 images; mpp {'0.25': 1, '0.5': 3} |",
        "| cohort c | 5 images; mpp 0.5; tile&#95;size 256 |",
        "| patch | 4 px |",
    ):
        assert row in card
    assert "| mean | 0.485, 0.456, 0.406 |" in card
    assert "<b>" not in card
    assert "Mind: on another grid than 3 × 3 tokens features differ: timm interpolates positions as 'timm', " in card
    assert "Mind: " not in model_card(
        replace(images, architecture=replace(images.architecture, pos_interpolation="timm"))
    )
