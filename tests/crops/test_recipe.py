"""What is drawn for each view: distributions, reproducibility, independence, and values that are refused."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision import transforms

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops.recipe import (
    MAX_BLUR,
    NEVER_SOLARIZED,
    RENDERERS,
    VIEW,
    Output,
    Recipe,
    ViewGroup,
    Views,
    patch_recipe,
    plain_view,
    sample_batch,
    sample_generator,
    sample_views,
    uniform_numbers,
)
from dinowds.crops.stain import STAINS
from dinowds.errors import ConfigError

DRAWS = 4000
KS_LIMIT = 0.045
"""Two samples of 4,000 from one distribution exceed this once in 2,000 times; the seeds are fixed."""

RECIPE = patch_recipe(CropsConfig())
ALL_ON = patch_recipe(
    CropsConfig(
        flip=0.3, vertical_flip=0.4, quarter_turns=True, stain=0.6, stain_strength=0.2, jitter=0.7, grey=0.25,
        global_=GlobalCropsConfig(count=3, blur=[0.8, 0.3], solarize=[0.1, 0.4, 0.2]),
        local=LocalCropsConfig(count=5, blur=[0.6, 0.2], solarize=[0.35], inside_global=True),
    )
)  # fmt: skip
SHAPES = [(256, 256), (200, 333), (40, 60), (3, 2), (1, 1), (1, 1000), (1000, 1), (5000, 3), (1000, 9)]


def kolmogorov_smirnov(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    one, two = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    places = np.concatenate([one, two])
    shares = [np.searchsorted(values, places, side="right") / len(values) for values in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def uniformity(values: npt.ArrayLike, least: float, most: float) -> float:
    """Kolmogorov and Smirnov's distance to the uniform distribution, in units of what chance exceeds once in 10⁵."""
    found = np.sort((np.asarray(values, float) - least) / (most - least))
    steps = np.arange(len(found) + 1) / len(found)
    return float(max(np.abs(steps[1:] - found).max(), np.abs(found - steps[:-1]).max()) * np.sqrt(len(found)) / 2.47)


def draw(recipe: Recipe, draws: int, height: int = 256, width: int = 256, seed: int = 0) -> Views:
    """[draws, V] records."""
    return sample_batch(seed, [0] * draws, range(draws), recipe, [height] * draws, [width] * draws)


def draw_group(group: ViewGroup, height: int, width: int, draws: int = DRAWS) -> Views:
    """[draws] records of views that are drawn alike."""
    return draw(Recipe((dataclasses.replace(group, count=8),)), draws // 8, height, width).ravel()


def boxes(views: Views) -> npt.NDArray[np.int64]:
    """[…, 4]: top, left, height, width."""
    return np.stack([views[name] for name in ("top", "left", "height", "width")], axis=-1).astype(np.int64)


def test_view__has_fields_of_four_bytes() -> None:
    assert VIEW.itemsize == 132
    kinds = [VIEW[name].base.str for name in VIEW.names or ()]
    assert set(kinds) == {"<i4", "<f4"}


def test_patch_recipe__numbers_of_dino() -> None:
    assert RECIPE.outputs == (Output("global", 2, 224), Output("local", 8, 96))
    assert RECIPE.num_views == 10
    assert [(group.name, group.count) for group in RECIPE.groups] == [("global_1", 1), ("global_2", 1), ("local", 8)]
    assert [(group.blur, group.solarize) for group in RECIPE.groups] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    assert [group.scale for group in RECIPE.groups] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    for group in RECIPE.groups:
        assert group.aspect == (3 / 4, 4 / 3)
        assert (group.flip, group.jitter, group.grey) == (0.5, 0.8, 0.2)
        assert (group.brightness, group.contrast, group.saturation, group.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (group.blur_radius, group.solarize_threshold) == ((0.1, 2.0), 128)
        assert (group.vertical_flip, group.quarter_turns, group.stain, group.inside) == (0.0, False, 0.0, None)


def test_patch_recipe__follows_configuration() -> None:
    crops = CropsConfig(
        global_=GlobalCropsConfig(count=1, size=64, scale=[0.5, 0.9], aspect=[0.5, 2], blur=[0.3], solarize=[0.2]),
        local=LocalCropsConfig(count=3, size=32, scale=[0.1, 0.5], aspect=[1, 1], inside_global=True),
        flip=0.1, vertical_flip=0.2, quarter_turns=True, stain=0.3, stain_strength=0.4, jitter=0.5, brightness=0.6,
        contrast=0.7, saturation=0.8, hue=0.05, grey=0.9, blur_radius=[0.5, 0.6], solarize_threshold=200,
    )  # fmt: skip
    common: dict[str, Any] = {
        "flip": 0.1, "vertical_flip": 0.2, "quarter_turns": True, "stain": 0.3, "stain_strength": 0.4, "jitter": 0.5,
        "brightness": 0.6, "contrast": 0.7, "saturation": 0.8, "hue": 0.05, "grey": 0.9, "blur_radius": (0.5, 0.6),
        "solarize_threshold": 200,
    }  # fmt: skip
    assert patch_recipe(crops).groups == (
        ViewGroup("global", "global", 1, 64, (0.5, 0.9), (0.5, 2.0), blur=0.3, solarize=0.2, **common),
        ViewGroup("local", "local", 3, 32, (0.1, 0.5), (1.0, 1.0), "global", blur=0.5, solarize=0.0, **common),
    )


def test_patch_recipe__last_probability_holds_for_the_views_after_it() -> None:
    of_global = GlobalCropsConfig(count=5, blur=[1.0, 0.1], solarize=[0.0, 0.0, 0.2])
    of_local = LocalCropsConfig(count=2, blur=[0.5, 0.4, 0.3], solarize=[0.0])
    recipe = patch_recipe(CropsConfig(global_=of_global, local=of_local))
    assert [(g.name, g.count, g.blur, g.solarize) for g in recipe.groups] == [
        ("global_1", 1, 1.0, 0.0),
        ("global_2", 1, 0.1, 0.0),
        ("global_3", 3, 0.1, 0.2),
        ("local_1", 1, 0.5, 0.0),
        ("local_2", 1, 0.4, 0.0),
    ]
    assert recipe.outputs == (Output("global", 5, 224), Output("local", 2, 96))


def test_patch_recipe__no_local_views() -> None:
    recipe = patch_recipe(CropsConfig(local=LocalCropsConfig(count=0, inside_global=True)))
    assert recipe.outputs == (Output("global", 2, 224),)
    assert len(sample_views(sample_generator(0, 0, 0), recipe, 256, 256)) == 2


NAN = float("nan")
AREA = "two shares of the area, 0 < least <= most <= 1, like [0.4, 1.0]"
RATIO = "two ratios of width to height, 0 < least <= most, like [0.75, 1.33]"
EACH = "one or more probabilities from 0 to 1, like [1.0, 0.1]"
CHANCE = "a probability from 0 to 1"
RADIUS = f"two numbers of px, 0 < least <= most <= {MAX_BLUR}, like [0.1, 2.0]"


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("global.count", [0, -1], "a whole number of at least 1"),
        ("local.count", [-1], "a whole number of at least 0"),
        *((f"{of}.size", [0, -96], "a whole number of at least 1") for of in ("global", "local")),
        *(
            (f"{of}.scale", [[0.5, 0.1], [], [0.4], [0.1, 0.2, 0.3], [0, 1], [-0.1, 1], [0.4, 1.1], [NAN, 0.4]], AREA)
            for of in ("global", "local")
        ),
        *(
            (f"{of}.aspect", [[2.0, 1.0], [1.0], [0.0, 1.0], [1.0, float("inf")], [0.5, NAN]], RATIO)
            for of in ("global", "local")
        ),
        *(
            (f"{of}.{key}", [[], [1.1], [0.5, -0.1], [NAN]], EACH)
            for of in ("global", "local")
            for key in ("blur", "solarize")
        ),
        *((key, [-0.1, 1.1, NAN], CHANCE) for key in ("flip", "vertical_flip", "stain", "jitter", "grey")),
        *(
            (key, [-0.1, NAN, float("inf")], "a finite number, 0 or more")
            for key in ("stain_strength", "brightness", "contrast", "saturation")
        ),
        ("hue", [-0.1, 0.6, NAN], "0 to 0.5"),
        ("blur_radius", [[0.0, 1.0], [2.0, 1.0], [1.0], [0.1, MAX_BLUR + 1], [NAN, 1.0]], RADIUS),
        ("solarize_threshold", [-1, 257], "0 to 256"),
        ("renderer", ["gpu", ""], f"one of {', '.join(RENDERERS)}"),
    ],
)  # fmt: skip
def test_patch_recipe__names_the_bad_key(key: str, values: list[object], expected: str) -> None:
    for value in values:
        crops = CropsConfig()
        section, _, name = key.rpartition(".")
        setattr({"": crops, "global": crops.global_, "local": crops.local}[section], name, value)
        message = f"crops.{key}: found {value!r}, expected {expected}"
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            patch_recipe(crops)


def test_patch_recipe__single_view_is_refused() -> None:
    crops = CropsConfig(global_=GlobalCropsConfig(count=1), local=LocalCropsConfig(count=0))
    with pytest.raises(ConfigError, match=r"^crops\.local\.count: found 0, expected at least 1 beside a single global"):
        patch_recipe(crops)
    assert patch_recipe(dataclasses.replace(crops, local=LocalCropsConfig(count=1))).num_views == 2


def test_patch_recipe__takes_values_at_the_edges() -> None:
    edges = GlobalCropsConfig(1, 1, [1.0, 1.0], [1.0, 1.0], [0.0], [1.0])
    recipe = patch_recipe(CropsConfig(global_=edges, hue=0.5, blur_radius=[MAX_BLUR, MAX_BLUR], solarize_threshold=256))
    views = draw(recipe, 50, 32, 32)
    assert np.all(boxes(views[:, 0]) == [0, 0, 32, 32])
    assert set(views["solarize"].ravel().tolist()) == {NEVER_SOLARIZED}
    assert set(views["blur"][:, 0].tolist()) == {0.0}
    assert set(views["blur"][:, 1:].ravel().tolist()) == {0.0, MAX_BLUR}


def test_sample_views__equal_keys_equal_records() -> None:
    keys = [(seed, visit, sample) for seed in (0, 1, 2**31) for visit in (0, 1, 7) for sample in (0, 1, 10**9)]
    records = {key: sample_views(sample_generator(*key), RECIPE, 256, 256) for key in keys}
    assert len({views.tobytes() for views in records.values()}) == len(keys)
    for key in reversed(keys):
        assert np.array_equal(sample_views(sample_generator(*key), RECIPE, 256, 256), records[key])


def test_sample_views__views_differ_from_each_other() -> None:
    views = sample_views(sample_generator(0, 0, 0), RECIPE, 256, 256)
    assert views.dtype == VIEW
    assert len({view.tobytes() for view in views}) == 10
    assert views["size"].tolist() == [224] * 2 + [96] * 8


@pytest.mark.parametrize("recipe", [RECIPE, ALL_ON], ids=["dino", "all on"])
def test_sample_batch__is_each_sample_alone(recipe: Recipe) -> None:
    """Whatever the batch, its order, and the sizes of the other images."""
    samples = [5, 0, 2**40, 7, 5, 123]
    visits = [0, 0, 3, 1, 2, 0]
    heights, widths = [256, 1, 200, 5000, 256, 64], [256, 1000, 333, 3, 256, 48]
    alone = np.stack(
        [
            sample_views(sample_generator(11, visit, sample), recipe, height, width)
            for visit, sample, height, width in zip(visits, samples, heights, widths, strict=True)
        ]
    )
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [2], [4, 0]):
        numbers = ([values[place] for place in order] for values in (visits, samples, heights, widths))
        some_visits, some_samples, *sizes = numbers
        found = sample_batch(11, some_visits, some_samples, recipe, *sizes)
        assert found.dtype == VIEW
        assert found.tobytes() == alone[order].tobytes()


def test_uniform_numbers__are_those_of_the_generators() -> None:
    found = uniform_numbers(3, [0, 1], [8, 9], (2, 5))
    assert np.array_equal(found[1], sample_generator(3, 1, 9).random((2, 5)))
    assert uniform_numbers(3, [], [], (2, 5)).shape == (0, 2, 5)


def test_sample_views__takes_the_same_amount_whatever_is_on() -> None:
    places = []
    for recipe, height, width in ((RECIPE, 256, 256), (RECIPE, 1, 1000), (patch_recipe(CropsConfig(stain=1.0)), 9, 9)):
        rng = sample_generator(0, 0, 0)
        sample_views(rng, recipe, height, width)
        places.append(rng.random())
    assert len(set(places)) == 1


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("recipe", [RECIPE, ALL_ON], ids=["anywhere", "inside global"])
def test_boxes__are_inside_the_image(recipe: Recipe, height: int, width: int) -> None:
    found = boxes(draw(recipe, 200, height, width))
    assert found[..., 2:].min() >= 1
    assert found[..., :2].min() >= 0
    assert np.all(found[..., 0] + found[..., 2] <= height)
    assert np.all(found[..., 1] + found[..., 3] <= width)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 333), (40, 60), (4, 7)])
@pytest.mark.parametrize("place", [1, 2], ids=["global", "local"])
def test_boxes__as_torchvision(place: int, height: int, width: int) -> None:
    group = RECIPE.groups[place]
    if height == 200:
        group = dataclasses.replace(group, aspect=(0.4, 3.0))
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get_params = transforms.RandomResizedCrop.get_params
    expected = np.array([get_params(image, list(group.scale), list(group.aspect)) for _ in range(DRAWS)])
    found = boxes(draw_group(group, height, width))
    for column in range(4):
        assert kolmogorov_smirnov(found[:, column], expected[:, column]) < KS_LIMIT
    assert kolmogorov_smirnov(found[:, 2] * found[:, 3], expected[:, 2] * expected[:, 3]) < KS_LIMIT
    assert kolmogorov_smirnov(found[:, 3] / found[:, 2], expected[:, 3] / expected[:, 2]) < KS_LIMIT


@pytest.mark.parametrize("aspect", [(3 / 4, 4 / 3), (0.9, 1.1), (1.5, 3.0), (2.5, 3.0), (0.3, 0.4)])
@pytest.mark.parametrize(
    ("height", "width"), [(10, 1000), (1000, 10), (11, 900), (1, 1000), (1000, 1), (5000, 3), (2, 77), (301, 6)]
)
def test_boxes__central_one_as_torchvision(height: int, width: int, aspect: tuple[float, float]) -> None:
    group = dataclasses.replace(RECIPE.groups[0], aspect=aspect)
    torch.manual_seed(0)
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), list(group.scale), list(aspect))
    found = {tuple(box) for box in boxes(draw_group(group, height, width, draws=80)).tolist()}
    # A box of no pixels, which torchvision gives of a thin image where the aspect is far from 1, is one of one.
    box_height, box_width = max(1, expected[2]), max(1, expected[3])
    assert found == {((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)}
    if min(expected[2:]) > 0:
        assert found == {tuple(expected)}


def test_boxes__central_one_of_a_whole_image() -> None:
    """No box of the allowed share fits, and the image's own aspect is allowed."""
    group = ViewGroup("all", "all", 8, 32, (1.0, 1.0), (0.5, 1.9))
    views = boxes(draw_group(dataclasses.replace(group, aspect=(1.8, 1.9)), 100, 100, draws=80))
    torch.manual_seed(0)
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, 100, 100), [1.0, 1.0], [1.8, 1.9])
    assert {tuple(box) for box in views.tolist()} == {tuple(expected)}


@pytest.mark.parametrize(("num_global", "num_local"), [(1, 4), (2, 8), (3, 5), (4, 2)])
def test_inside_global__local_box_in_that_of_its_view(num_global: int, num_local: int) -> None:
    crops = CropsConfig(
        global_=GlobalCropsConfig(count=num_global, scale=[0.4, 0.6]),
        local=LocalCropsConfig(count=num_local, inside_global=True),
    )
    found = boxes(draw(patch_recipe(crops), 400, 200, 280))
    for view in range(num_local):
        outer, inner = found[:, view % num_global], found[:, num_global + view]
        assert np.all(inner[:, :2] >= outer[:, :2])
        assert np.all(inner[:, :2] + inner[:, 2:] <= outer[:, :2] + outer[:, 2:])
    if num_global > 1 and num_local > 1:  # and not in that of another one
        outer, inner = found[:, 0], found[:, num_global + 1]
        assert not np.all(inner[:, :2] >= outer[:, :2])


def test_inside_global__whole_image_is_anywhere() -> None:
    """Local views have numbers of their own, whatever they lie in."""
    whole = GlobalCropsConfig(scale=[1.0, 1.0], aspect=[1.0, 1.0])
    inside, anywhere = (
        draw(patch_recipe(CropsConfig(global_=whole, local=LocalCropsConfig(inside_global=option))), 100)
        for option in (True, False)
    )
    assert np.array_equal(inside, anywhere)


def test_inside_global__scale_is_a_share_of_the_image() -> None:
    shares, places = [], []
    for inside in (False, True):
        local = LocalCropsConfig(scale=[0.05, 0.2], inside_global=inside)
        found = boxes(draw(patch_recipe(CropsConfig(local=local)), 500, 300, 300))
        shares.append((found[:, 2:, 2] * found[:, 2:, 3]).ravel() / 300**2)
        outer, inner = found[:, [0, 1] * 4], found[:, 2:]
        places.append(((inner - outer)[..., 0] / np.maximum(1, outer[..., 2] - inner[..., 2])).ravel())
    assert kolmogorov_smirnov(*shares) < KS_LIMIT
    assert shares[1].min() > 0.048
    assert 0.19 < shares[1].max() < 0.203
    assert abs(places[1].mean() - 0.5) < 0.02  # anywhere in the global box
    assert places[1].std() == pytest.approx(np.sqrt(1 / 12), rel=0.05)


def test_inside_global__moves_no_other_number() -> None:
    plain, inside = (
        draw(patch_recipe(CropsConfig(local=LocalCropsConfig(inside_global=value))), 50) for value in (False, True)
    )
    assert np.array_equal(plain[:, :2], inside[:, :2])
    for name in set(VIEW.names or ()) - {"top", "left", "height", "width"}:
        assert np.array_equal(plain[name], inside[name])
    assert not np.array_equal(plain["top"], inside["top"])


def test_jitter__as_torchvision() -> None:
    torch.manual_seed(0)
    reference = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
    ranges = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    drawn = [transforms.ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    views = draw_group(RECIPE.groups[2], 256, 256)
    jittered = views[views["jitter"] == 1]
    for index, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert kolmogorov_smirnov(jittered[name], [values[index + 1] for values in drawn]) < KS_LIMIT
    orders, counts = np.unique(jittered["order"], axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.all(np.sort(orders, axis=1) == [0, 1, 2, 3])
    mean = len(jittered) / 24
    assert np.all(np.abs(counts - mean) < 4.5 * np.sqrt(mean))


def test_jitter__record_of_a_view_without_says_that_nothing_changes() -> None:
    views = draw(ALL_ON, 100)
    without = views[views["jitter"] == 0]
    assert len(without)
    for name, neutral in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        assert np.all(without[name] == neutral)
    assert np.all(views[views["stain"] == 0]["stain_map"] == 0)


def test_jitter__factor_is_not_negative() -> None:
    group = ViewGroup("wild", "wild", 8, 32, (0.5, 1.0), jitter=1.0, brightness=3.0, contrast=1.5, saturation=2.0)
    views = draw_group(group, 64, 64)
    for name, most in (("brightness", 4.0), ("contrast", 2.5), ("saturation", 3.0)):
        assert uniformity(views[name], 0, most) < 1
        assert views[name].min() >= 0


@pytest.mark.parametrize("recipe", [RECIPE, ALL_ON], ids=["dino", "all on"])
def test_probabilities__are_those_of_each_view(recipe: Recipe) -> None:
    views = draw(recipe, DRAWS)
    place = 0
    for group in recipe.groups:
        for _ in range(group.count):
            of = views[:, place]
            shares = {name: of[name].mean() for name in ("flip", "vertical_flip", "stain", "jitter", "grey")}
            shares |= {"blur": (of["blur"] > 0).mean(), "solarize": (of["solarize"] != NEVER_SOLARIZED).mean()}
            for name, share in shares.items():
                probability = getattr(group, name)
                assert abs(share - probability) <= 4.5 * np.sqrt(probability * (1 - probability) / DRAWS), name
            place += 1
    assert place == recipe.num_views
    assert set(views["solarize"].ravel().tolist()) == {NEVER_SOLARIZED, 128}
    radii = views["blur"][views["blur"] > 0][:DRAWS]
    assert uniformity(radii, 0.1, 2.0) < 1


def test_turns__are_equally_likely() -> None:
    turns, counts = np.unique(draw(ALL_ON, 1000)["turns"], return_counts=True)
    assert turns.tolist() == [0, 1, 2, 3]
    assert np.abs(counts - counts.mean()).max() < 4.5 * np.sqrt(counts.mean())
    assert not draw(RECIPE, 100)["turns"].any()


@pytest.mark.parametrize("strength", [0.05, 0.2])
def test_stain__factors_and_shifts_are_uniform(strength: float) -> None:
    recipe = patch_recipe(CropsConfig(stain=0.5, stain_strength=strength))
    views = draw(recipe, 500)
    maps = views[views["stain"] == 1]["stain_map"].astype(np.float64)
    # In stains instead of colours the map is: each stain's amount times its factor, plus its shift.
    of_stains = np.linalg.inv(STAINS).T @ maps[:, :, :3] @ STAINS.T
    factors = np.diagonal(of_stains, axis1=1, axis2=2)
    assert np.abs(of_stains - factors[:, None, :] * np.eye(3)).max() < 1e-5
    shifts = maps[:, :, 3] @ np.linalg.inv(STAINS)
    for stain in range(3):
        assert uniformity(factors[:, stain], 1 - strength, 1 + strength) < 1
        assert uniformity(shifts[:, stain], -strength, strength) < 1
    assert largest_correlation(*factors.T, *shifts.T) < 4.8


NAMES_OF = {
    "flip": {"flip"}, "vertical_flip": {"vertical_flip"}, "quarter_turns": {"turns"}, "stain": {"stain", "stain_map"},
    "jitter": {"jitter", "brightness", "contrast", "saturation", "hue", "order"}, "grey": {"grey"},
    "hue": {"hue"}, "blur_radius": {"blur"}, "solarize_threshold": {"solarize"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("flip", 1.0), ("vertical_flip", 0.5), ("quarter_turns", True), ("stain", 0.5), ("jitter", 0.3), ("grey", 0.9),
     ("hue", 0.3), ("blur_radius", [1.0, 3.0]), ("solarize_threshold", 17)],
)  # fmt: skip
def test_options__leave_the_numbers_of_the_others_as_they_are(key: str, value: Any) -> None:
    before, after = draw(RECIPE, 60), draw(patch_recipe(CropsConfig(**{key: value})), 60)
    for name in VIEW.names or ():
        assert np.array_equal(before[name], after[name]) == (name not in NAMES_OF[key]), name


def columns_of(views: Views) -> list[npt.NDArray[np.float64]]:
    """What was drawn for one view of each of many samples, as columns of numbers."""
    spare = [np.maximum(1, 257 - views[side]) for side in ("height", "width")]
    numbers = [views["top"] / spare[0], views["left"] / spare[1], views["height"] * views["width"]]
    numbers += [views["width"] / views["height"], views["stain_map"][:, 0, 0], views["stain_map"][:, 0, 3]]
    names = (
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "flip",
        "vertical_flip",
        "turns",
        "grey",
        "blur",
        "solarize",
    )
    return [np.asarray(column, np.float64) for column in (*numbers, *(views[name] for name in names))]


ALWAYS = patch_recipe(
    CropsConfig(
        local=LocalCropsConfig(blur=[0.5], solarize=[0.5]), jitter=1.0, stain=1.0, grey=0.5, vertical_flip=0.5,
        quarter_turns=True,
    )
)  # fmt: skip


def largest_correlation(*columns: npt.NDArray[np.float64]) -> float:
    """Of different columns of many independent rows; in units of what chance alone gives."""
    found = np.asarray(np.corrcoef(np.array(columns)))
    return float(np.abs(found - np.eye(len(found))).max() * np.sqrt(len(columns[0])))


def test_numbers__of_views_are_independent() -> None:
    views = draw(ALWAYS, DRAWS)
    of_three = [column for view in (2, 3, 9) for column in columns_of(views[:, view])]
    assert largest_correlation(*of_three) < 4.8


@pytest.mark.parametrize("neighbour", ["sample", "visit", "seed"])
def test_numbers__of_neighbours_are_independent(neighbour: str) -> None:
    columns = []
    for step in range(3):
        seed, visit, first = (step if neighbour == name else 0 for name in ("seed", "visit", "sample"))
        samples = range(first, first + 3 * DRAWS, 3)
        views = sample_batch(seed, [visit] * DRAWS, samples, ALWAYS, [256] * DRAWS, [256] * DRAWS)
        columns += columns_of(views[:, 2])
    assert largest_correlation(*columns) < 4.8


def test_numbers__sums_of_the_keys_do_not_collide() -> None:
    """(seed, visit, sample) and a neighbour with the same sum or the parts exchanged."""
    keys = [(0, 0, 2), (0, 2, 0), (2, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    first = [float(sample_generator(*key).random()) for key in keys]
    assert len(set(first)) == len(keys)


def test_plain_view__changes_nothing_but_what_is_named() -> None:
    view = plain_view(1, 2, 30, 40, 20)
    assert boxes(view).tolist() == [1, 2, 30, 40]
    assert (view["size"], view["solarize"], view["blur"], view["jitter"]) == (20, NEVER_SOLARIZED, 0, 0)
    assert plain_view(1, 2, 30, 40, 20, hue=0.1)["jitter"] == 1
    assert plain_view(1, 2, 30, 40, 20, blur=0.5)["jitter"] == 0
