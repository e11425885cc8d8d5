"""YAML files of the reference: what each key becomes here, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dinowds.config import Kind, LoadedRun, PatchConfig, RegionConfig, flatten, load_config, load_run, to_dict
from dinowds.config.earlier import EARLIER_NAMES
from dinowds.errors import ConfigError

PATCH = """
train:
  dataset_path: PathologyFoundation:root=/root/data:subset=fold_0
  batch_size_per_gpu: 32
  pct:
  output_dir: 'output/${train.experiment_name}'
  experiment_name: 'patch'
  save_every: 5
  seed: 3
  resume: false
  resume_from_checkpoint:
tune:
  tune_every: 2
  early_stopping: {enable: true, tracking: 'auc', min_max: "max", patience: 7, min_epoch: 11}
  knn:
    nb_knn: 10
    temperature: 0.1
    query_dataset_path: KNN:root=/root/data:split=query
    test_dataset_path: KNN:root=/root/data:split=test
    batch_size_per_gpu: 128
    num_workers: 8
    save_features: false
    use_cuda: true
student:
  {arch: vit_base, patch_size: 8, out_dim: 1024, norm_last_layer: true, drop_path_rate: 0.2, use_bn_in_head: true}
teacher: {momentum_teacher: 0.9995, warmup_teacher_temp: 0.03, teacher_temp: 0.07, warmup_teacher_temp_epochs: 30}
optim:
  epochs: 100
  lr: 0.001
  weight_decay: 1e-5
  warmup_epochs: 4
  clip_grad: 1.0
  freeze_last_layer_epochs: 2
  lr_scheduler: {name: cosine, min_lr: 1e-7, weight_decay: 0.05, weight_decay_end: 0.5}
crops:
  global_crops_scale:
    - 0.32
    - 1.
  local_crops_number: 10
  local_crops_scale: [0.04, 0.32]
  global_crops_size: 256
  local_crops_size: 112
speed: {use_fp16: true, num_workers: 4}
wandb:
  enable: true
  project: 'vision'
  username: 'me'
  exp_name: '${train.experiment_name}'
  tags: ['dino', '${model.arch}']
  group:
hydra:
  run:
    dir: /tmp/hydra_output
"""

REGION = """
train:
  dataset_path: /data/regions
  batch_size_per_gpu: 128
  output_dir: output
  start_from_checkpoint: weights.pth
student: {arch: hvit_xs, region_size: 4096, patch_size: 256}
crops: {global_crops_scale: 0.875, local_crops_number: 6, local_crops_scale: 0.375}
speed: {use_fp16: false, num_workers: 8}
"""


def load(
    folder: Path,
    content: str | dict[str, Any],
    overrides: list[str] | None = None,
    kind: Kind = "image",
    ranks: int = 1,
) -> LoadedRun:
    path = folder / "ref.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_run(path, overrides or [], kind, ranks)


def changed(loaded: LoadedRun) -> dict[str, Any]:
    defaults = flatten(to_dict(PatchConfig() if loaded.config.kind == "image" else RegionConfig()))
    return {key: value for key, value in flatten(to_dict(loaded.config)).items() if value != defaults[key]}


def test_patch__every_key_is_mapped(tmp_path: Path) -> None:
    loaded = load(tmp_path, PATCH, ranks=2)
    assert changed(loaded) == {
        "train.batch_size": 64, "train.max_batch_per_device": 32, "train.save_every": 5, "train.seed": 3,
        "tune.tune_every": 2, "tune.early_stopping.enable": True, "tune.early_stopping.patience": 7,
        "tune.early_stopping.min_epoch": 11, "tune.knn.nb_knn": 10, "tune.knn.temperature": 0.1,
        "tune.knn.query_dataset_path": "KNN:root=/root/data:split=query",
        "tune.knn.test_dataset_path": "KNN:root=/root/data:split=test", "tune.knn.batch_size_per_gpu": 128,
        "student.arch": "vit_base", "student.patch_size": 8, "student.out_dim": 1024, "student.norm_last_layer": True,
        "student.drop_path_rate": 0.2, "student.use_bn_in_head": True,
        "teacher.momentum_teacher": 0.9995, "teacher.warmup_teacher_temp": 0.03, "teacher.teacher_temp": 0.07,
        "teacher.warmup_teacher_temp_epochs": 30, "optim.epochs": 100, "optim.lr": 0.001, "optim.warmup_epochs": 4.0,
        "optim.clip_grad": 1.0, "optim.freeze_last_layer_epochs": 2, "optim.lr_scheduler.min_lr": 1e-7,
        "optim.lr_scheduler.weight_decay": 0.05, "optim.lr_scheduler.weight_decay_end": 0.5,
        "crops.global.scale": [0.32, 1.0], "crops.local.count": 10, "crops.local.scale": [0.04, 0.32],
        "crops.global.size": 256, "crops.local.size": 112, "speed.num_workers": 4,
        "wandb.enable": True, "wandb.project": "vision",
    }  # fmt: skip
    assert (loaded.data, loaded.out) == ("PathologyFoundation:root=/root/data:subset=fold_0", "output/patch")


def test_notices__say_what_was_computed_and_what_is_not_used(tmp_path: Path) -> None:
    of, unused = load(tmp_path, PATCH, ranks=2).notices
    assert of == (
        f"{tmp_path}/ref.yaml: is of the reference system; here speed.precision is auto (bf16 where the device "
        "computes in it; fp16 if asked for), train.batch_size is 64 (32 for each of 2 processes)"
    )
    assert unused == (
        f"{tmp_path}/ref.yaml: not used: train.experiment_name, tune.knn.num_workers, tune.knn.save_features, "
        "tune.knn.use_cuda, optim.weight_decay, wandb.username, wandb.exp_name, wandb.tags, hydra.run.dir"
    )


def test_notices__do_not_claim_what_an_override_changed(tmp_path: Path) -> None:
    loaded = load(tmp_path, PATCH, ["train.batch_size=12", "speed={precision: fp32}"])
    assert (loaded.config.train.batch_size, loaded.config.speed.precision) == (12, "fp32")
    assert loaded.notices[0] == f"{tmp_path}/ref.yaml: is of the reference system"
    assert len(load(tmp_path, {"train": {"output_dir": "x"}}).notices) == 1


def test_region__every_key_is_mapped(tmp_path: Path) -> None:
    loaded = load(tmp_path, REGION, kind="region", ranks=4)
    assert changed(loaded) == {
        "train.batch_size": 512, "student.init_from": "weights.pth", "crops.local.count": 6, "speed.num_workers": 8,
        "speed.precision": "fp32",
    }  # fmt: skip
    assert (loaded.data, loaded.out) == ("/data/regions", "output")
    assert loaded.notices == (
        f"{tmp_path}/ref.yaml: is of the reference system; here speed.precision is fp32 (no fp16), train.batch_size is "
        "512 (128 for each of 4 processes), crops.global.size is 14 (0.875 of 16 cells), crops.local.size is 6 (0.375 "
        "of 16 cells)",
    )


@pytest.mark.parametrize(
    ("student", "crops", "sizes"),
    [
        ({}, {}, (14, 6)),
        ({"region_size": 2048}, {}, (7, 3)),
        ({"patch_size": 512}, {"global_crops_scale": 1}, (8, 3)),
        ({}, {"global_crops_scale": 0.5, "local_crops_scale": 0.49}, (8, 7)),
        ({}, {"global": {"size": 10}}, (10, 6)),
    ],
)
def test_region__views_are_whole_cells(
    tmp_path: Path, student: dict[str, Any], crops: dict[str, Any], sizes: tuple[int, int]
) -> None:
    content = {"train": {"dataset_path": "x"}, "student": student, "crops": crops}
    found = load(tmp_path, content, kind="region").config.crops
    assert (found.global_.size, found.local.size) == sizes


@pytest.mark.parametrize("kind", ["image", "region"])
def test_defaults__are_the_reference_s(tmp_path: Path, kind: Kind) -> None:
    """A file that names nothing but its data is merged with the reference's own defaults."""
    loaded = load(tmp_path, {"train": {"dataset_path": "x"}}, kind=kind, ranks=3)
    assert changed(loaded) == {"train.batch_size": 384}


def test_tuning__left_blank_is_none(tmp_path: Path) -> None:
    content = yaml.safe_load(PATCH)
    content["tune"]["tune_every"] = None
    tune = load(tmp_path, content).config.tune
    assert (tune.tune_every, tune.knn.query_dataset_path, tune.knn.test_dataset_path) == (0, None, None)


def test_commented_out_and_empty__say_nothing(tmp_path: Path) -> None:
    text = "train:\n  dataset_path: x\n  start_from_checkpoint: ''\ntune:\nwandb:\n  project: ''\nhydra:\ncrops:\n"
    loaded = load(tmp_path, text)
    assert changed(loaded) == {"train.batch_size": 128}
    assert len(loaded.notices) == 1


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("train", "pct", 0.05, "train.pct (a part of a dataset is a subset, see 'dinowds subset')"),
        ("train", "pct", 1.0, None),
        ("train", "resume", True, None),
        ("train", "resume_from_checkpoint", "a.pth", "train.resume_from_checkpoint (the same command goes on"),
        ("wandb", "key", "secret", "wandb.key (log in with 'wandb login', or set WANDB_API_KEY)"),
        ("wandb", "anything", 1, "wandb.anything"),
        ("tune", "knn", {"use_cuda": False}, "tune.knn.use_cuda"),
    ],
)
def test_unused__is_named_where_it_says_something(
    tmp_path: Path, section: str, key: str, value: object, named: str | None
) -> None:
    content = {"train": {"dataset_path": "x"}}
    content.setdefault(section, {})[key] = value  # type: ignore[assignment]
    notices = load(tmp_path, content).notices[1:]
    assert not any("secret" in line for line in notices)
    assert len(notices) == (named is not None)
    assert all(named is not None and named in line for line in notices)


def test_keys_of_dinowds__stand_beside_those_of_the_reference(tmp_path: Path) -> None:
    content = {
        "train": {"dataset_path": "x", "batch_size": 96, "compile": True},
        "data": {"weights": {"a": 2}, "chunk_size": 8},
        "monitor": {"stop": True},
    }
    assert changed(load(tmp_path, content, ranks=2)) == {
        "train.batch_size": 96, "train.compile": True, "data.weights": {"a": 2.0}, "data.chunk_size": 8,
        "monitor.stop": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"datset_path": "x"}}, "unknown key 'train.datset_path'; did you mean 'train.dataset_path'?"),
        (
            {"train": {"batch_size_per_gpus": 1}},
            "unknown key 'train.batch_size_per_gpus'; did you mean 'train.batch_size_",
        ),
        ({"optim": {"lrr": 1}}, "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ({"tune": {"knn": {"use_cude": 1}}}, "unknown key 'tune.knn.use_cude'; did you mean 'tune.knn.use_cuda'?"),
        ({"crops": {"local_crop_scale": 1}}, "unknown key 'crops.local_crop_scale'; did you mean 'crops.local_crops_"),
        ({"dino": {"koleo_loss_weight": 1}}, "unknown key 'dino.koleo_loss_weight'"),
        ({"optim": 3}, "unknown key 'optim', which is a section"),
        ({"student": {"region_size": 4096}}, "unknown key 'student.region_size': a key of regions"),
        (
            {"train": {"batch_size": 8, "batch_size_per_gpu": 8}},
            "has both 'train.batch_size_per_gpu' and 'train.batch_",
        ),
        ({"train": {"batch_size_per_gpu": 0}}, "train.batch_size_per_gpu is 0, expected a whole number, at least 1"),
        ({"train": {"batch_size_per_gpu": "many"}}, "train.batch_size_per_gpu is 'many', expected a whole number"),
        ({"speed": {"use_fp16": "yes please"}}, "speed.use_fp16 is 'yes please', expected true or false"),
        ({"crops": {"global_crops_scale": 0.4}}, "crops.global.scale: "),
        ({"student": {"arch": "vit_giant"}}, "student.arch is vit_giant, expected one of vit_tiny"),
        ({"train": {"output_dir": "${nothing}"}}, "train.output_dir: Interpolation key 'nothing' not found"),
        ({"optim": {"lr": "fast"}}, "optim.lr: Value 'fast'"),
    ],
)
def test_mistake__in_a_file_of_the_reference_is_named(
    tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    content: dict[str, Any] = {"train": {"dataset_path": "x"}}
    for section, keys in change.items():
        content[section] = {**content.get(section, {}), **keys} if isinstance(keys, dict) else keys
    with pytest.raises(ConfigError) as error:
        load(tmp_path, content)
    assert message in str(error.value)
    assert "ref.yaml" in str(error.value) or "student.arch" in message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (
            {"global_crops_scale": [0.4, 1.0]},
            "crops.global_crops_scale is [0.4, 1.0], expected a share of the region's",
        ),
        ({"local_crops_scale": 6}, "crops.local_crops_scale is 6, expected a share of the region's side"),
        ({"local_crops_scale": 0.01}, "crops.local.size is 0, expected at least 1"),
        ({"global_crops_size": 224}, "unknown key 'crops.global_crops_size'"),
    ],
)
def test_mistake__in_a_file_of_regions_is_named(tmp_path: Path, crops: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, {"train": {"dataset_path": "x"}, "crops": crops}, kind="region")
    assert message in str(error.value)


def test_file_of_dinowds__is_told_the_new_names_as_before(tmp_path: Path) -> None:
    for key, new in EARLIER_NAMES["image"].items():
        section, name = key.split(".")
        if key == "train.batch_size_per_gpu":  # which makes it a file of the reference
            continue
        with pytest.raises(ConfigError, match=f"unknown key '{key}'; here it is '{new}'"):
            load(tmp_path, {section: {name: 1}, "data": {"chunk_size": 4}})


@pytest.mark.parametrize(
    "key", ["train.dataset_path", "train.batch_size_per_gpu", "train.output_dir", "optim.weight_decay"]
)
def test_override__of_an_earlier_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        load(tmp_path, PATCH, [f"{key}=1"])


def test_load_config__takes_them_as_one_process(tmp_path: Path) -> None:
    load(tmp_path, PATCH)
    assert load_config(tmp_path / "ref.yaml").train.batch_size == 32
