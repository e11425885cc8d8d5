"""Tiny labelled datasets whose classes are colours, so that even features of random weights tell them apart."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinowds.config import RunConfig, load_config
from dinowds.eval.tune import Tune, evaluation_of
from dinowds.model.architecture import Architecture, describe_architecture
from dinowds.model.dino import DinoModel
from dinowds.model.vit import ImageViT, build_backbone
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.choice import Choice
from dinowds.train.learner import initial_models
from tests.embed.support import write_tar
from tests.support import TINY_RUN
from tests.train.regions import TINY_REGION_RUN

COLOURS = {"fat": (240, 230, 150), "gland": (120, 40, 160), "stroma": (230, 120, 170)}
KEYS = ("tune.knn.query_dataset_path", "tune.knn.test_dataset_path")


def coloured_image(label: str, seed: int, side: int = 32) -> bytes:
    """A noisy PNG of a class's colour; of grey for a class without one."""
    noise = np.random.default_rng(seed).normal(0, 40, (side, side, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(noise + COLOURS.get(label, (128, 128, 128)), 0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def make_labelled(
    folder: Path, slides: Mapping[str, str | None], each: int = 6, seed: int = 0, with_slides: bool = True
) -> Path:
    """A dataset of `each` images of each slide, all of its label; None for a slide without. In shards of 7, shuffled.

    `with_slides`: else the samples' slides are unknown, while labels stay.
    """
    folder.mkdir(parents=True)
    members, rows = {}, []
    for number, (slide, label) in enumerate(slides.items()):
        for place in range(each):
            name = f"{slide}/{place}_{2 * place}" if with_slides else f"{slide}-{place}"
            members[f"{name}.png"] = coloured_image(label or "", seed + 1000 * number + place)
            rows += [f"{name}.png,{label}"] if label else []
    source = write_tar(folder / f"{folder.name}.tar", members)
    choice = Choice()
    if rows:
        (folder / "labels.csv").write_text("\n".join(["name,label", *rows, ""]))
        choice = Choice(labels=folder / "labels.csv")
    build_dataset([source], folder / "dataset", ShardOptions(max_count=7, choice=choice))
    return folder / "dataset"


def make_labelled_regions(
    folder: Path, labels: Mapping[str, str], sides: tuple[int, ...] = (6, 5), channels: int = 8, seed: int = 0
) -> Path:
    """A dataset of two regions of each side of each slide, whose cells are about a vector of their label."""
    (folder / "source").mkdir(parents=True)
    for number, (slide, label) in enumerate(labels.items()):
        generator = torch.Generator().manual_seed(seed + number)
        middle = torch.randn(channels, generator=torch.Generator().manual_seed(len(label)))
        for place in range(2 * len(sides)):
            side = sides[place % len(sides)]
            region = 3 * middle + torch.randn(side, side, channels, generator=generator)
            region[torch.rand(side, side, generator=generator) < 0.2] = torch.nan
            torch.save(region, folder / "source" / f"{slide}_{place}_{2 * place}.pt")
    (folder / "labels.csv").write_text(
        "\n".join(["name,label", *(f"{slide},{label}" for slide, label in labels.items()), ""])
    )
    options = ShardOptions(max_count=5, choice=Choice(labels=folder / "labels.csv"))
    build_dataset([folder / "source"], folder / "dataset", options)
    return folder / "dataset"


def config_for(query: object, test: object, *overrides: str) -> RunConfig:
    """Of a tiny run on images."""
    paths = [f"{key}={path}" for key, path in zip(KEYS, (query, test), strict=True)]
    return load_config(None, [*TINY_RUN, *paths, "tune.knn.batch_size_per_gpu=5", *overrides])


def region_config_for(query: object, test: object, *overrides: str) -> RunConfig:
    paths = [f"{key}={path}" for key, path in zip(KEYS, (query, test), strict=True)]
    return load_config(None, [*TINY_REGION_RUN, *paths, "tune.knn.batch_size_per_gpu=3", *overrides], "region")


def tune_of(config: RunConfig, data: Path | str) -> tuple[Tune, list[str]]:
    """An evaluation and the notices that it gives."""
    notices: list[str] = []
    tune = evaluation_of(config, data, notices.append)
    assert tune is not None
    return tune, notices


def models_of(config: RunConfig) -> tuple[DinoModel, DinoModel]:
    """Student and teacher, with different weights that are large enough for features to differ."""
    student, teacher = initial_models(config)
    for model in (student, teacher):
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return student, teacher


def shaken_backbone(architecture: Architecture, amount: float = 0.3, seed: int = 0) -> ImageViT:
    """In evaluation mode, far from its initial zeros and ones: attention is uneven."""
    torch.manual_seed(seed)
    backbone = build_backbone(architecture, initial_scale=1.0)
    backbone.eval().requires_grad_(False)
    for parameter in backbone.parameters():
        parameter.add_(amount * torch.randn_like(parameter))
    return backbone


def write_backbone(path: Path, architecture: Architecture, metadata: Mapping[str, object] | None = None) -> Path:
    """A checkpoint whose teacher is `shaken_backbone` and whose student is another one."""
    models = {
        which: {
            f"backbone.{name}": value for name, value in shaken_backbone(architecture, seed=seed).state_dict().items()
        }
        for seed, which in enumerate(("teacher", "student"))
    }
    dataset = {"name": "tiny", "samples": 1, "cohorts": {"a": 1}, "metadata": dict(metadata or {})}
    about = {"architecture": describe_architecture(architecture), "dataset": dataset}
    torch.save({"format_version": 1, "about": about, **models}, path)
    return path
