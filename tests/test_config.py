"""Configuration: what ships, what may be changed, and what is refused."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import pytest
import yaml

import dinowds.config.sections
from dinowds.config import (
    FREE_TO_CHANGE,
    Kind,
    PatchConfig,
    RegionConfig,
    default_config_path,
    differences,
    flatten,
    kind_of,
    load_config,
    to_dict,
    to_yaml,
)
from dinowds.errors import ConfigError
from dinowds.model.architecture import POS_INTERPOLATIONS, SIZES

SHIPPED = sorted(path.stem for path in default_config_path("patch").parent.glob("*.yaml"))


def kind_of_file(name: str) -> Kind:
    return "region" if "region" in name else "image"


@pytest.mark.parametrize(("name", "config"), [("patch", PatchConfig()), ("region", RegionConfig())])
def test_yaml_of_a_kind__is_complete_and_shows_the_defaults(name: str, config: PatchConfig | RegionConfig) -> None:
    content = yaml.safe_load(default_config_path(name).read_text())
    assert flatten(content) == flatten(to_dict(config))


def test_shipped_yaml__are_all_there() -> None:
    sizes = {f"patch_vit_{size}" for size in ("tiny", "base", "large", "huge")}
    assert {"patch", "region", "demo", *sizes} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_yaml__names_every_key_and_comments_it(name: str) -> None:
    path, kind = default_config_path(name), kind_of_file(name)
    assert flatten(yaml.safe_load(path.read_text())).keys() == flatten(to_dict(load_config(None, [], kind))).keys()
    for line in path.read_text().splitlines():
        if line.startswith("  ") and not line.rstrip().endswith(":"):
            assert "  # " in line or " # " in line, line
    assert load_config(path, [], kind)


@pytest.mark.parametrize("size", ["tiny", "base", "large", "huge"])
def test_yaml_of_a_size__differs_from_patch_yaml_only_where_it_says_why(size: str) -> None:
    path = default_config_path(f"patch_vit_{size}")
    found, defaults = flatten(to_dict(load_config(path))), flatten(to_dict(PatchConfig()))
    changed = {key for key in found if found[key] != defaults[key]}
    assert found["student.arch"] == f"vit_{size}"
    plain = " ".join(default_config_path("patch").read_text().replace("#", " ").split())
    text = " ".join(path.read_text().replace("#", " ").split())
    unexplained = {"student.arch", "teacher.warmup_teacher_temp_epochs"}  # said at teacher_temp
    for key in changed - unexplained:
        name = key.rsplit(".", 1)[-1]
        assert text.count(f" {name}: ") == 1
        comment = text.partition(f" {name}: ")[2][:300]
        assert not plain.partition(f" {name}: ")[2].startswith(comment[20:])
        value = found[key]
        shown = str(value).lower() if isinstance(value, bool) else f"{value:g}"
        assert f" {shown}: " in comment or f" {shown}, " in comment or f" {shown} of " in comment, key


def test_defaults_of_regions__are_the_reference_s() -> None:
    flat = flatten(to_dict(RegionConfig()))
    reference = {
        "train.seed": 0, "train.save_every": 10, "student.arch": "hvit_xs", "student.out_dim": 65536,
        "student.norm_last_layer": False, "student.drop_path_rate": 0.1, "student.use_bn_in_head": False,
        "teacher.momentum_teacher": 0.996, "teacher.warmup_teacher_temp": 0.04, "teacher.teacher_temp": 0.04,
        "teacher.warmup_teacher_temp_epochs": 0, "optim.epochs": 125, "optim.lr": 0.0005, "optim.warmup_epochs": 10,
        "optim.clip_grad": 3.0, "optim.freeze_last_layer_epochs": 1, "optim.lr_scheduler.min_lr": 1e-6,
        "optim.lr_scheduler.weight_decay": 0.04, "optim.lr_scheduler.weight_decay_end": 0.4,
        "crops.global.count": 2, "crops.global.size": 14, "crops.local.count": 8, "crops.local.size": 6,
        "crops.flip": 0.5, "crops.symmetries": False,
    }  # fmt: skip
    assert {key: flat[key] for key in reference} == reference


def test_choices__are_those_of_the_models() -> None:
    for kind, sizes in SIZES.items():
        for arch in sizes:
            assert load_config(None, [f"student.arch={arch}"], kind).student.arch == arch
    for method in POS_INTERPOLATIONS:
        assert load_config(None, [f"student.pos_interpolation={method}"]).student.pos_interpolation == method


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.patch_size=256", "unknown key 'student.patch_size': a region's cells are as the dataset has them"),
        ("student.region_size=4096", "unknown key 'student.region_size': a region's cells are as the dataset has them"),
        ("crops.global_crops_scale=0.875", "here it is 'crops.global.size', in cells"),
        ("crops.local_crops_scale=0.375", "here it is 'crops.local.size', in cells"),
        ("crops.local_crops_number=8", "here it is 'crops.local.count'"),
        ("train.start_from_checkpoint=a.pth", "here it is 'student.init_from'"),
        ("crops.renderer=cpu", "unknown key 'crops.renderer': cells are moved, not rendered"),
        ("zzz=1", "see configs/region.yaml"),
        ("student.arch=vit_small", "student.arch is vit_small, expected one of hvit_xs, hvit_s, hvit_b"),
        ("student.input_dim=0", "student.input_dim is 0, expected at least 1"),
        ("student.pos_interpolation=cubic", "student.pos_interpolation is cubic, expected one of timm, size, dino"),
        ("crops.global.count=0", "crops.global.count is 0, expected at least 1"),
        ("crops.local.count=-1", "crops.local.count is -1, expected at least 0"),
        ("crops={global: {count: 1}, local: {count: 0}}", "crops.local.count is 0, expected at least 1"),
        ("crops.local.size=0", "crops.local.size is 0, expected at least 1"),
        ("crops.flip=1.5", "crops.flip is 1.5, expected a probability from 0 to 1"),
        ("optim.epochs=5", "optim.warmup_epochs is 10, expected less than optim.epochs"),
    ],
)
def test_load_config__bad_override_of_regions_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override], "region")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_config__regions_of_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("student: {arch: hvit_s}\ncrops:\n  global: {size: 10}\n")
    config = load_config(tmp_path / "mine.yaml", ["student.input_dim=768"], "region")
    assert (config.student.arch, config.student.input_dim) == ("hvit_s", 768)
    assert (config.crops.global_.size, config.crops.local.size) == (10, 6)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml", [], "region") == config
    assert (kind_of(to_dict(config)), kind_of(to_dict(PatchConfig())), kind_of({})) == ("region", "image", "image")


def test_defaults__are_the_reference_s() -> None:
    flat = flatten(to_dict(PatchConfig()))
    reference = {
        "train.seed": 0, "student.arch": "vit_small", "student.patch_size": 16,
        "student.out_dim": 65536, "student.norm_last_layer": False, "student.drop_path_rate": 0.1,
        "student.use_bn_in_head": False, "teacher.momentum_teacher": 0.996, "teacher.warmup_teacher_temp": 0.04,
        "teacher.teacher_temp": 0.04, "teacher.warmup_teacher_temp_epochs": 0, "optim.epochs": 50, "optim.lr": 0.0005,
        "optim.warmup_epochs": 3, "optim.clip_grad": 3.0, "optim.freeze_last_layer_epochs": 1,
        "optim.lr_scheduler.name": "cosine", "optim.lr_scheduler.min_lr": 1e-6,
        "optim.lr_scheduler.weight_decay": 0.04, "optim.lr_scheduler.weight_decay_end": 0.4,
        "crops.global.count": 2, "crops.global.size": 224, "crops.global.scale": [0.4, 1.0],
        "crops.global.blur": [1.0, 0.1], "crops.global.solarize": [0.0, 0.2], "crops.local.count": 8,
        "crops.local.size": 96, "crops.local.scale": [0.05, 0.4], "crops.local.blur": [0.5],
        "crops.local.solarize": [0.0], "crops.flip": 0.5, "crops.jitter": 0.8, "crops.brightness": 0.4,
        "crops.contrast": 0.4, "crops.saturation": 0.2, "crops.hue": 0.1, "crops.grey": 0.2,
        "crops.blur_radius": [0.1, 2.0], "crops.solarize_threshold": 128,
    }  # fmt: skip
    assert {key: flat[key] for key in reference} == reference


def test_load_config__file_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: 0.1, epochs: 7}\n")
    config = load_config(
        tmp_path / "mine.yaml", ["optim.lr=2e-3", "crops.global.scale=[0.3, 0.9]", "student.depth=null"]
    )
    assert (config.optim.lr, config.optim.epochs, config.optim.clip_grad) == (0.002, 7, 3.0)
    assert config.crops.global_.scale == [0.3, 0.9]


def test_to_yaml__loads_back(tmp_path: Path) -> None:
    config = load_config(None, ["optim.lr=1e-5", "student.depth=3", "crops.global.size=48", "crops.local.count=0"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    content = yaml.safe_load(to_yaml(config))
    assert content == to_dict(config)
    assert (content["crops"]["global"]["size"], content["crops"]["local"]["count"]) == (48, 0)
    assert list(content["crops"]) == list(yaml.safe_load(default_config_path("patch").read_text())["crops"])


def test_crops__of_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("crops:\n  global: {count: 4, blur: [1.0, 0.5, 0.1]}\n  local:\n    inside_global: true\n")
    crops = load_config(file, ["crops.global.count=3", "crops={local: {size: 32}, quarter_turns: true}"]).crops
    assert (crops.global_.count, crops.global_.size, crops.global_.blur) == (3, 224, [1.0, 0.5, 0.1])
    assert (crops.local.inside_global, crops.local.size, crops.quarter_turns) == (True, 32, True)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("global_crops_size", "global.size"),
        ("global_crops_scale", "global.scale"),
        ("local_crops_number", "local.count"),
        ("local_crops_size", "local.size"),
        ("local_crops_scale", "local.scale"),
    ],
)
def test_crops__earlier_name_is_told_the_new_one(tmp_path: Path, earlier: str, now: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key 'crops\.{earlier}'; here it is 'crops\.{now}'$"):
        load_config(None, [f"crops.{earlier}=8"])
    (tmp_path / "old.yaml").write_text(f"crops: {{{earlier}: 8}}")
    with pytest.raises(ConfigError, match=rf"here it is 'crops\.{now}'$"):
        load_config(tmp_path / "old.yaml")
    assert f"crops.{now}" in flatten(to_dict(PatchConfig()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'optim.lr'?"),
        ("zzz=1", "unknown key 'zzz'; see configs/patch.yaml"),
        ("optim=1", "'optim', which is a section: set one of its keys, such as optim.epochs"),
        ("optim.lr=fast", "optim.lr: Value 'fast'"),
        ("optim.epochs=1.5", "optim.epochs: Value '1.5'"),
        ("optim.lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("train.batch_size=0", "train.batch_size is 0, expected at least 1"),
        ("student.input_dim=3", "unknown key 'student.input_dim': a key of regions; images have 3 channels"),
        ("train.start_from_checkpoint=a.pth", "here it is 'student.init_from'"),
        ("student.arch=resnet", "student.arch is resnet, expected one of vit_tiny, vit_small"),
        ("student.drop_path_rate=1.0", "student.drop_path_rate is 1,"),
        ("optim.max_steps=0", "optim.max_steps is 0, expected at least 1"),
        ("student.depth=0", "student.depth is 0, expected at least 1"),
        ("data.partitions=0", "data.partitions is 0, expected at least 1"),
        ("data.chunk_size=0", "data.chunk_size is 0, expected at least 1"),
        ("optim.lr=${nothing}", "Interpolation"),
        ("optim.warmup_epochs=50", "optim.warmup_epochs is 50, expected less than optim.epochs"),
        ("crops.local.size=100", "crops.local.size is 100, expected a multiple of student.patch_size, 16"),
        ("crops.global.size=0", "crops.global.size is 0, expected a multiple of student.patch_size, 16"),
        ("crops.global.size=big", "crops.global.size: Value 'big'"),
        ("crops.local.inside_global=3.5", "crops.local.inside_global: Value '3.5'"),
        ("crops.global.scale=0.4", "crops.global.scale: expected a list, such as [0.4, 1.0]"),
        ("crops.global=3", "'crops.global', which is a section: set one of its keys, such as crops.global.count"),
        ("crops.global_.size=3", "unknown key 'crops.global_.size'; did you mean 'crops.global.size'?"),
        ("crops.flips=1", "unknown key 'crops.flips'; did you mean 'crops.flip'?"),
        ("data.weights.global_a=much", "data.weights.global_a: "),
        ("teacher.teacher_temp=0", "teacher.teacher_temp is 0, expected above 0"),
        ("teacher.teacher_temp=.inf", "teacher.teacher_temp is inf, expected a finite number"),
        ("optim.lr_scheduler.weight_decay=.nan", "optim.lr_scheduler.weight_decay is nan, expected a finite number"),
        ("student.out_dim=1", "student.out_dim is 1, expected a number of at least 2, or auto"),
        ("student.out_dim=many", "student.out_dim is many, expected a number of at least 2, or auto"),
        ("data.weights=3", "data.weights: expected COHORT: WEIGHT pairs, such as"),
        ("data.weights=alpha", "data.weights: expected COHORT: WEIGHT pairs, such as"),
        ("data.weights=[1, 2]", "found [1, 2]"),
        ("data.weights.tcga.v2=1", "found {'tcga': {'v2': 1}}"),
        ("data.weights={a: [1]}", "found {'a': [1]}"),
        ("data.weights.a=null", "data.weights.a"),
        ("data.cache_gib=-1", "data.cache_gib is -1, expected 0 or more"),
        ("data.cache_gib=.nan", "data.cache_gib is nan, expected a finite number"),
        ("data.cache_gib=.inf", "data.cache_gib is inf, expected a finite number"),
        ("speed.precision=fp8", "speed.precision is fp8, expected one of auto, bf16, fp16, fp32"),
        ("train.seed=0x_", "override 'train.seed=0x_': "),
        ("train.seed={[1]: 2}", "override 'train.seed={[1]: 2}'"),
    ],
)
def test_load_config__bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: [", "cannot be read as YAML"),
        ("- a\n- b\n", "expected sections"),
        ("optim: {momentum: 0.9}", "unknown key 'optim.momentum'"),
        ("optim: 3", "unknown key 'optim', which is a section"),
        ("1: 2", "unknown key '1'"),
        ("data:\n  weights: 3", "data.weights: expected COHORT: WEIGHT pairs"),
        ("train: {seed: 2001-99-99}", "cannot be read as YAML (month must be in 1..12)"),
        ("train: {seed: 0x_}", "cannot be read as YAML"),
        ("train: {seed: !!float ''}", "cannot be read as YAML"),
        ("train: {seed: !!bool x}", "cannot be read as YAML"),
        ("train: {seed: !!timestamp x}", "cannot be read as YAML"),
        ("train: &a {seed: *a}", "has more than 10,000 values, counting those of aliases, or sections deeper than 32"),
        ("a: " + "[" * 3000, "cannot be read as YAML"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
            "has more than 10,000 values, counting those of aliases, or sections deeper than 32",
        ),
    ],
)
def test_load_config__bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_config__empty_section(tmp_path: Path) -> None:
    text = "optim:\n  # lr: 0.1\ntrain: {seed: 3}\ncrops:\n  global:\n    # size: 32\n  local: {size: 32}\n"
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(tmp_path / "mine.yaml")
    assert (config.train.seed, config.crops.local.size) == (3, 32)
    assert (config.optim, config.crops.global_) == (PatchConfig().optim, PatchConfig().crops.global_)


def test_differences__batch_norm_and_koleo_tie_the_parts_of_a_batch() -> None:
    changed = ["train.max_batch_per_device=64"]
    assert differences(to_dict(PatchConfig()), load_config(None, changed)) == []
    for together in ("student.use_bn_in_head=true", "loss.koleo_weight=0.1"):
        saved = to_dict(load_config(None, [together]))
        assert differences(saved, load_config(None, [*changed, together]))


def test_load_config__missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such configuration file"):
        load_config(tmp_path / "nothing.yaml")


def test_differences__of_keys_that_decide_what_is_computed() -> None:
    saved = to_dict(PatchConfig())
    assert differences(saved, PatchConfig()) == []
    assert differences(saved, load_config(None, ["optim.lr=1"])) == ["optim.lr: 0.0005 → 1.0"]
    assert differences(saved, load_config(None, ["train.log_every=3", "optim.max_steps=9"])) == []


def test_differences__a_key_that_is_younger_than_the_run_had_its_default() -> None:
    saved = to_dict(PatchConfig())
    for key in ("pos_interpolation", "init_from"):
        del saved["student"][key]
    assert differences(saved, PatchConfig()) == []
    changed = load_config(None, ["student.pos_interpolation=dino", "student.init_from=a.pth"])
    assert differences(saved, changed) == ["student.init_from: None → a.pth", "student.pos_interpolation: timm → dino"]
    assert differences({}, load_config(None, ["optim.lr=1"])) == ["optim.lr: 0.0005 → 1.0"]


def test_free_to_change__are_keys() -> None:
    assert flatten(to_dict(PatchConfig())).keys() >= FREE_TO_CHANGE


def test_every_field__has_a_string_that_explains_it() -> None:
    documented = set()
    for node in ast.walk(ast.parse(inspect.getsource(dinowds.config.sections))):
        if isinstance(node, ast.ClassDef):
            for statement, following in itertools.pairwise(node.body):
                if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                    documented.add((node.name, ast.unparse(statement.target)))
    for config in (PatchConfig(), RegionConfig()):
        sections = [getattr(config, field.name) for field in dataclasses.fields(config)]
        for section in [*sections, config.optim.lr_scheduler, config.crops.global_, config.crops.local]:
            names = [of.__name__ for of in type(section).__mro__]
            for field in dataclasses.fields(section):
                if not dataclasses.is_dataclass(getattr(section, field.name)):
                    assert any((name, field.name) in documented for name in names), field.name


def test_weights__of_any_cohort_in_files_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  weights: {tcga.v2: 2, gtex: 1}\n")
    assert load_config(file).data.weights == {"tcga.v2": 2.0, "gtex": 1.0}
    assert load_config(None, ["data.weights.a-b=2", "data.weights={c: 1}"]).data.weights == {"a-b": 2.0, "c": 1.0}
    assert differences(to_dict(load_config(file)), PatchConfig()) == [
        "data.weights: {'tcga.v2': 2.0, 'gtex': 1.0} → {}"
    ]
    with pytest.raises(ConfigError, match=r"data.weights.a: .*could not be converted to Float"):
        load_config(None, ["data.weights.a=much"])
    with pytest.raises(ConfigError, match=r"did you mean 'data.weights'"):
        load_config(None, ["data.wieghts.a=1"])


def test_weights__of_a_cohort_called_global(tmp_path: Path) -> None:
    """Which is also the name of a section that Python cannot spell."""
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  weights: {global: 2, global_: 1, crops: 3}\ncrops:\n  global: {size: 32}\n")
    config = load_config(file, ["data.weights.local=5"])
    assert config.data.weights == {"global": 2.0, "global_": 1.0, "crops": 3.0, "local": 5.0}
    assert config.crops.global_.size == 32
    assert to_dict(config)["data"]["weights"] == config.data.weights
    file.write_text(to_yaml(config))
    assert load_config(file) == config
    assert differences(to_dict(config), load_config(file, ["data.weights.global=9"]))[0].startswith("data.weights: ")


@pytest.mark.parametrize(
    "text", ["data:\n  weights:\n    # alpha: 2\n  chunk_size: 8\n", "data: {weights: null, chunk_size: 8}"]
)
def test_weights__none_are_written(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    config = load_config(file)
    assert (config.data.weights, config.data.chunk_size) == ({}, 8)


def test_weights__null_takes_a_file_s_away(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {weights: {alpha: 2}}")
    assert load_config(file, ["data.weights=null"]).data.weights == {}
    assert load_config(file, ["data.weights=null", "data.weights.beta=1"]).data.weights == {"beta": 1.0}
