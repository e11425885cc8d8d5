"""Which values can work."""

from __future__ import annotations

import math

from dinowds.config.keys import flatten, to_dict
from dinowds.config.sections import PatchConfig, RegionConfig, RunConfig
from dinowds.errors import ConfigError

_Rule = tuple[str, object, bool, str]
"""Key, value, whether it can work, and what is expected."""


def check_config(config: RunConfig) -> None:
    """Raise ConfigError for the first value that cannot work, whatever the dataset."""
    rules = [*_finite(config), *_rules(config)]
    if isinstance(config, PatchConfig):
        rules += _patch_rules(config)
    if isinstance(config, RegionConfig):
        rules += _region_rules(config)
    for key, value, holds, expected in rules:
        if not holds:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(f"{key} is {shown}, expected {expected}")


def _finite(config: RunConfig) -> list[_Rule]:
    """YAML and overrides know .inf and .nan, with which no number here means anything."""
    numbers = {key: value for key, value in flatten(to_dict(config)).items() if isinstance(value, float)}
    return [(key, value, math.isfinite(value), "a finite number") for key, value in numbers.items()]


def _rules(config: RunConfig) -> list[_Rule]:
    train, student, teacher, optim, data, speed, tune = (
        config.train, config.student, config.teacher, config.optim, config.data, config.speed, config.tune
    )  # fmt: skip
    at_least_one = {
        "train.batch_size": train.batch_size,
        "train.max_batch_per_device": train.max_batch_per_device,
        "train.save_every": train.save_every,
        "train.keep_checkpoints": train.keep_checkpoints,
        "train.log_every": train.log_every,
        "train.max_bad_steps": train.max_bad_steps,
        "student.depth": student.depth,
        "optim.epochs": optim.epochs,
        "optim.max_steps": optim.max_steps,
        "data.chunk_size": data.chunk_size,
        "data.window_chunks": data.window_chunks,
        "data.partitions": data.partitions,
        "data.max_per_slide": data.max_per_slide,
        "speed.prefetch_factor": speed.prefetch_factor,
        "tune.knn.nb_knn": tune.knn.nb_knn,
        "tune.knn.batch_size_per_gpu": tune.knn.batch_size_per_gpu,
        "tune.knn.image_size": tune.knn.image_size,
        "tune.early_stopping.patience": tune.early_stopping.patience,
    }
    not_negative = {
        "train.save_every_steps": train.save_every_steps,
        "train.seed": train.seed,
        "teacher.warmup_teacher_temp_epochs": teacher.warmup_teacher_temp_epochs,
        "optim.lr": optim.lr,
        "optim.warmup_epochs": optim.warmup_epochs,
        "optim.clip_grad": optim.clip_grad,
        "optim.freeze_last_layer_epochs": optim.freeze_last_layer_epochs,
        "data.max_bad_samples": data.max_bad_samples,
        "data.read_ahead": data.read_ahead,
        "data.cache_gib": data.cache_gib,
        "speed.num_workers": 0 if speed.num_workers is None else speed.num_workers,
        "student.registers": student.registers,
        "loss.koleo_weight": config.loss.koleo_weight,
        "tune.tune_every": tune.tune_every,
        "tune.tune_every_steps": tune.tune_every_steps,
        "tune.early_stopping.min_epoch": tune.early_stopping.min_epoch,
    }
    return [
        *_at_least_one(at_least_one),
        *((key, value, value >= 0, "0 or more") for key, value in not_negative.items()),
        _one_of("student.pos_interpolation", student.pos_interpolation, "timm", "size", "dino"),
        _one_of("optim.lr_scheduler.name", optim.lr_scheduler.name, "cosine"),
        _one_of("speed.precision", speed.precision, "auto", "bf16", "fp16", "fp32"),
        _one_of("speed.sharding", speed.sharding, "none", "fsdp"),
        _one_of("loss.centering", config.loss.centering, "ema", "sinkhorn_knopp"),
        _one_of("optim.lr_scaling", optim.lr_scaling, "linear", "sqrt"),
        _one_of("optim.clip", optim.clip, "tensor", "global"),
        _one_of("tune.knn.overlap", tune.knn.overlap, "refuse", "warn"),
        _one_of("tune.early_stopping.tracking", tune.early_stopping.tracking, "auc", "acc", "balanced_acc"),
        _one_of("tune.early_stopping.min_max", tune.early_stopping.min_max, "max", "min"),
        _one_of("wandb.mode", config.wandb.mode, "offline", "online"),
        (
            "student.out_dim",
            student.out_dim,
            student.out_dim == "auto" or (isinstance(student.out_dim, int) and student.out_dim > 1),
            "a number of at least 2, or auto",
        ),
        ("student.layer_scale", student.layer_scale, student.layer_scale is None or student.layer_scale > 0, "above 0"),
        ("optim.layer_decay", optim.layer_decay, 0 < optim.layer_decay <= 1, "above 0, at most 1"),
        ("tune.knn.temperature", tune.knn.temperature, tune.knn.temperature > 0, "above 0"),
        ("student.drop_path_rate", student.drop_path_rate, 0 <= student.drop_path_rate < 1, "0 ≤ rate < 1"),
        ("teacher.momentum_teacher", teacher.momentum_teacher, 0 <= teacher.momentum_teacher <= 1, "0 to 1"),
        (
            "teacher.final_momentum_teacher",
            teacher.final_momentum_teacher,
            0 <= teacher.final_momentum_teacher <= 1,
            "0 to 1",
        ),
        ("teacher.teacher_temp", teacher.teacher_temp, teacher.teacher_temp > 0, "above 0"),
        ("teacher.warmup_teacher_temp", teacher.warmup_teacher_temp, teacher.warmup_teacher_temp > 0, "above 0"),
        ("optim.warmup_epochs", optim.warmup_epochs, optim.warmup_epochs < optim.epochs, "less than optim.epochs"),
    ]


def _patch_rules(config: PatchConfig) -> list[_Rule]:
    """Those of the crops are `recipe.patch_recipe`'s."""
    student, crops = config.student, config.crops
    expected = f"a multiple of student.patch_size, {student.patch_size}"
    return [
        *_at_least_one({"student.patch_size": student.patch_size}),
        _one_of("student.arch", student.arch, "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"),
        *(
            (f"crops.{name}.size", side, side >= 1 and side % student.patch_size == 0, expected)
            for name, side in (("global", crops.global_.size), ("local", crops.local.size))
        ),
    ]


def _region_rules(config: RegionConfig) -> list[_Rule]:
    student, crops = config.student, config.crops
    at_least_one = {
        "student.input_dim": student.input_dim,
        "crops.global.count": crops.global_.count,
        "crops.global.size": crops.global_.size,
        "crops.local.size": crops.local.size,
    }
    fewest = 0 if crops.global_.count > 1 else 1
    return [
        _one_of("student.arch", student.arch, "hvit_xs", "hvit_s", "hvit_b"),
        *_at_least_one(at_least_one),
        ("crops.local.count", crops.local.count, crops.local.count >= fewest, f"at least {fewest}"),
        ("crops.flip", crops.flip, 0 <= crops.flip <= 1, "a probability from 0 to 1"),
    ]


def _at_least_one(values: dict[str, int | None]) -> list[_Rule]:
    """null is a default."""
    return [(key, value, value is None or value >= 1, "at least 1") for key, value in values.items()]


def _one_of(key: str, value: str, *choices: str) -> _Rule:
    return key, value, value in choices, f"one of {', '.join(choices)}"
