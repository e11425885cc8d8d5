from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision import transforms

from dinowds.config import CropsConfig
from dinowds.crops.recipe import Jitter, Output, Recipe, View, ViewGroup, patch_recipe, sample_generator, sample_views
from dinowds.errors import ConfigError

DRAWS = 4000
KS_LIMIT = 0.045
"""Two samples of 4,000 from one distribution exceed this once in 2,000 times; the seeds are fixed."""


def kolmogorov_smirnov(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    one, two = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    places = np.concatenate([one, two])
    shares = [np.searchsorted(values, places, side="right") / len(values) for values in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def draw(group: ViewGroup, height: int, width: int, draws: int = DRAWS) -> list[View]:
    recipe = Recipe((dataclasses.replace(group, count=8),))
    samples = range(draws // 8)
    return [view for sample in samples for view in sample_views(sample_generator(0, 0, sample), recipe, height, width)]


GROUPS = patch_recipe(CropsConfig()).groups


def test_patch_recipe__numbers_of_dino() -> None:
    recipe = patch_recipe(CropsConfig())
    assert recipe.outputs == (Output("global", 2, 224), Output("local", 8, 96))
    assert recipe.num_views == 10
    first, second, local = recipe.groups
    assert [(g.blur, g.solarize) for g in recipe.groups] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    assert first.scale == second.scale == (0.4, 1.0)
    assert local.scale == (0.05, 0.4)
    for group in recipe.groups:
        assert group.aspect == (3 / 4, 4 / 3)
        assert (group.flip, group.jitter, group.grey) == (0.5, 0.8, 0.2)
        assert (group.brightness, group.contrast, group.saturation, group.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (group.blur_radius, group.solarize_threshold) == ((0.1, 2.0), 128)


def test_patch_recipe__follows_configuration() -> None:
    crops = CropsConfig(64, [0.5, 0.9], 3, 32, [0.1, 0.5])
    recipe = patch_recipe(crops)
    assert recipe.outputs == (Output("global", 2, 64), Output("local", 3, 32))
    assert [group.scale for group in recipe.groups] == [(0.5, 0.9), (0.5, 0.9), (0.1, 0.5)]


def test_patch_recipe__no_local_views() -> None:
    recipe = patch_recipe(CropsConfig(local_crops_number=0))
    assert recipe.outputs == (Output("global", 2, 224),)
    assert len(sample_views(sample_generator(0, 0, 0), recipe, 256, 256)) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_crops_size", 0),
        ("local_crops_size", -96),
        ("local_crops_number", -1),
        ("global_crops_scale", [0.4]),
        ("global_crops_scale", [0.0, 1.0]),
        ("global_crops_scale", [0.4, 1.1]),
        ("local_crops_scale", [0.4, 0.05]),
        ("local_crops_scale", [float("nan"), 0.4]),
        ("renderer", "gpu"),
    ],
)
def test_patch_recipe__names_the_bad_key(key: str, value: object) -> None:
    crops = CropsConfig()
    setattr(crops, key, value)
    with pytest.raises(ConfigError, match=rf"^crops\.{key}: found .*, expected "):
        patch_recipe(crops)


def test_sample_views__equal_keys_equal_records() -> None:
    recipe = patch_recipe(CropsConfig())
    keys = [(seed, epoch, sample) for seed in (0, 1, 2**31) for epoch in (0, 1, 7) for sample in (0, 1, 10**9)]
    records = {key: sample_views(sample_generator(*key), recipe, 256, 256) for key in keys}
    assert len(set(records.values())) == len(keys)
    for key in reversed(keys):
        assert sample_views(sample_generator(*key), recipe, 256, 256) == records[key]


def test_sample_views__views_differ_from_each_other() -> None:
    views = sample_views(sample_generator(0, 0, 0), patch_recipe(CropsConfig()), 256, 256)
    assert len(set(views)) == 10
    assert [view.size for view in views] == [224] * 2 + [96] * 8


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 333), (40, 60), (3, 2), (1, 1), (1, 100), (1000, 9)])
def test_sample_views__box_is_inside(height: int, width: int) -> None:
    for group in GROUPS:
        for view in draw(group, height, width, draws=400):
            assert view.height >= 1
            assert view.width >= 1
            assert 0 <= view.top <= height - view.height
            assert 0 <= view.left <= width - view.width


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 333), (40, 60)])
@pytest.mark.parametrize("group", GROUPS[1:], ids=lambda group: group.name)
def test_sample_views__boxes_as_torchvision(group: ViewGroup, height: int, width: int) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get_params = transforms.RandomResizedCrop.get_params
    expected = np.array([get_params(image, list(group.scale), list(group.aspect)) for _ in range(DRAWS)])
    found = np.array([view[:4] for view in draw(group, height, width)])
    for column in range(4):
        assert kolmogorov_smirnov(found[:, column], expected[:, column]) < KS_LIMIT
    assert kolmogorov_smirnov(found[:, 2] * found[:, 3], expected[:, 2] * expected[:, 3]) < KS_LIMIT
    assert kolmogorov_smirnov(found[:, 3] / found[:, 2], expected[:, 3] / expected[:, 2]) < KS_LIMIT


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (11, 900)])
def test_sample_views__central_box_as_torchvision(height: int, width: int) -> None:
    group = GROUPS[0]
    torch.manual_seed(0)
    expected = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), list(group.scale), list(group.aspect)
    )
    assert {view[:4] for view in draw(group, height, width, draws=80)} == {expected}


def test_sample_views__jitter_as_torchvision() -> None:
    torch.manual_seed(0)
    reference = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
    ranges = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    drawn = [transforms.ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    jitters = [view.jitter for view in draw(GROUPS[2], 256, 256) if view.jitter is not None]
    for index in range(4):
        assert kolmogorov_smirnov([j[index] for j in jitters], [d[index + 1] for d in drawn]) < KS_LIMIT
    orders, counts = np.unique([j.order for j in jitters], axis=0, return_counts=True)
    assert len(orders) == 24
    mean = len(jitters) / 24
    assert np.all(np.abs(counts - mean) < 4.5 * np.sqrt(mean))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_sample_views__probabilities(group: ViewGroup) -> None:
    views = draw(group, 256, 256)
    shares = {
        "flip": np.mean([view.flip for view in views]),
        "jitter": np.mean([view.jitter is not None for view in views]),
        "grey": np.mean([view.grey for view in views]),
        "blur": np.mean([view.blur is not None for view in views]),
        "solarize": np.mean([view.solarize is not None for view in views]),
    }
    for name, share in shares.items():
        probability = getattr(group, name)
        assert abs(share - probability) <= 4.5 * np.sqrt(probability * (1 - probability) / DRAWS), name
    radii = [view.blur for view in views if view.blur is not None]
    assert kolmogorov_smirnov(radii, np.linspace(0.1, 2.0, 4000)) < 1.95 / np.sqrt(len(radii)) + 0.001
    assert {view.solarize for view in views} <= {None, 128}


def test_sample_views__numbers_are_independent() -> None:
    views = [view for view in draw(GROUPS[2], 256, 256) if view.jitter is not None and view.blur is not None]
    columns = [[v.top / (257 - v.height), v.left / (257 - v.width), v.height * v.width, v.flip, v.grey] for v in views]
    jitters = [(*view.jitter[:4], view.blur) for view in views if view.jitter is not None]
    correlations = np.corrcoef(np.hstack([np.array(columns, float), np.array(jitters, float)]).T)
    assert np.abs(correlations - np.eye(10)).max() < 4.5 / np.sqrt(len(views))


def test_sample_views__factor_is_not_negative() -> None:
    group = ViewGroup("wild", "wild", 8, 32, (0.5, 1.0), jitter=1.0, brightness=3.0)
    factors = [view.jitter.brightness for view in draw(group, 64, 64, draws=800) if isinstance(view.jitter, Jitter)]
    assert min(factors) >= 0
    assert max(factors) > 3.9
