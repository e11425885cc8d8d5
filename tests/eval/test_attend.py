"""Sheets for image files, samples and whole regions: what is on them is what the models saw."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinowds.data.dataset import Dataset
from dinowds.data.grids import decode_grid
from dinowds.data.store.store import open_store
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.embed.encoder import Encoder
from dinowds.embed.regions.images import embed_image
from dinowds.errors import ConfigError, DatasetError
from dinowds.eval.attend.inputs import find_inputs, find_keys, spread_ids
from dinowds.eval.attend.models import Model, fitted_sides, see_grid, see_image, see_region
from dinowds.eval.attend.run import AttendOptions, attend
from dinowds.eval.attend.seen import Level, colours_of
from dinowds.eval.attention import class_attention, foreground, mass_mask, principal_colours
from dinowds.eval.pictures import Pixels, colour_map, overlay
from dinowds.model.architecture import Architecture, Size
from dinowds.model.pixels import normalise
from dinowds.model.weights import load_backbone, read_weights
from tests.embed.support import coded_image, png
from tests.eval.support import write_backbone
from tests.train.regions import make_region, make_regions

IMAGE = Architecture("image", Size(16, 2, 2), 3, 8, 4, registers=1)
REGION = Architecture("region", Size(32, 2, 4), 16, 1, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def image_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("weights") / "image.pt", IMAGE)


@pytest.fixture(scope="module")
def region_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("weights") / "region.pt", REGION, {"patch_size": 16})


def model_of(path: Path) -> Model:
    return Model(read_weights(path), CPU)


def colourful(height: int, width: int, seed: int = 0) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def attention_of(path: Path, image: Pixels) -> Tensor:
    """float32 [heads, rows, columns], of an image that fits."""
    weights = read_weights(path)
    pixels = normalise(torch.from_numpy(image)[None].permute(0, 3, 1, 2), torch.float32, weights.mean, weights.std)
    return class_attention(load_backbone(weights), pixels)[0]


def read_png(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("sides", [(32, 32, None), (30, 45, None), (3, 100, None), (100, 60, 20), (7, 7, 224)])
@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_fitted_sides__are_the_nearest_multiples(sides: tuple[int, int, int | None], patch_size: int) -> None:
    height, width, size = sides
    scale = 1 if size is None else size / min(height, width)
    for before, after in zip((height, width), fitted_sides(height, width, patch_size, size), strict=True):
        assert after % patch_size == 0
        assert after == patch_size or abs(after - before * scale) <= patch_size / 2


def test_attend__panels_of_an_image_are_what_its_model_saw(image_weights: Path, tmp_path: Path) -> None:
    image = colourful(32, 48)
    (tmp_path / "one.png").write_bytes(png(image))
    options = AttendOptions(str(image_weights), panels=True, colours="viridis", mass=0.4, alpha=0.7)
    (drawn,) = attend([str(tmp_path / "one.png")], tmp_path / "out", options)
    attention = attention_of(image_weights, image)
    canvas = image.repeat(10, axis=0).repeat(10, axis=1)
    folder = tmp_path / "out" / "one"
    assert np.array_equal(read_png(folder / "image.png"), canvas)
    colours = colour_map("viridis")
    expected = {"mean": attention.mean(0), "head-1": attention[0], "head-2": attention[1]}
    for name, values in expected.items():
        assert np.array_equal(read_png(folder / f"{name}.png"), overlay(canvas, values.numpy(), colours, 0.7)), name
    assert {path.name for path in folder.iterdir()} == {
        "image.png", "mean.png", "mask.png", "pca.png", "head-1.png", "head-2.png"
    }  # fmt: skip
    mask = mass_mask(attention.mean(0), 0.4).numpy().repeat(80, axis=0).repeat(80, axis=1)
    assert np.array_equal(read_png(folder / "mask.png")[mask], canvas[mask])
    assert (read_png(folder / "mask.png")[~mask].max(-1) == read_png(folder / "mask.png")[~mask].min(-1)).all()
    assert drawn.picture == tmp_path / "out" / "one.png"
    assert (drawn.panels, drawn.tokens) == (6, 24)
    assert drawn.tokens_in_mask == int(mass_mask(attention.mean(0), 0.4).sum())
    assert drawn.attention_on_tokens == pytest.approx(float(attention.sum() / 2), abs=1e-6)
    assert drawn.details[0] == "48 x 32 px  ·  6 x 4 tokens of 8 px"
    assert read_png(drawn.picture).shape[1] > 4 * 360


def test_attend__student_is_another_and_sizes_are_told(image_weights: Path, tmp_path: Path) -> None:
    for name, shape in (("a", (30, 45)), ("b", (64, 128))):
        (tmp_path / f"{name}.png").write_bytes(png(colourful(*shape)))
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    done: list[tuple[int, int]] = []
    report = lambda *numbers: done.append(numbers)  # noqa: E731
    teacher = attend(files, tmp_path / "teacher", AttendOptions(str(image_weights), size=32), report=report)
    student = attend(files, tmp_path / "student", AttendOptions(str(image_weights), which="student", size=32))
    assert done == [(1, 2), (2, 2)]
    assert [one.details[0] for one in teacher] == [
        "45 x 30 px, resized to 48 x 32 px  ·  6 x 4 tokens of 8 px",
        "128 x 64 px, resized to 64 x 32 px  ·  8 x 4 tokens of 8 px",
    ]
    assert teacher[0].attention_on_tokens != student[0].attention_on_tokens


def test_colours__jointly_and_alone_are_principal_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 5, 6, generator=generator)
    attention = torch.rand(2, 3, 4, 5, generator=generator)
    levels = [Level(attention[i], tokens[i], torch.ones(4, 5).bool()) for i in range(2)]
    expected = (255 * principal_colours(tokens)).round().byte().numpy()
    assert np.array_equal(np.stack(colours_of(levels, only_foreground=False)), expected)
    alone = (255 * principal_colours(tokens[1:])).round().byte().numpy()
    assert np.array_equal(colours_of(levels[1:], only_foreground=False)[0], alone[0])
    assert not np.array_equal(expected[1], alone[0])
    chosen = foreground(tokens, attention.mean(1))
    of_chosen = (255 * principal_colours(tokens, chosen)).round().byte().numpy()
    assert np.array_equal(np.stack(colours_of(levels, only_foreground=True)), of_chosen)


def test_colours__missing_tokens_are_black_and_count_for_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, attention = torch.randn(4, 5, 6, generator=generator), torch.rand(3, 4, 5, generator=generator)
    exists = torch.rand(4, 5, generator=generator) > 0.3
    for only_foreground in (False, True):
        first, second = (
            colours_of([Level(attention, tokens + wrong * ~exists[..., None], exists)], only_foreground)[0]
            for wrong in (0, 1000)
        )
        assert np.array_equal(first, second)
        assert not first[~exists.numpy()].any()
        assert first.any()


def test_attend__joint_colours_differ_from_those_of_each(image_weights: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(colourful(32, 32, ord(name))))
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    options = AttendOptions(str(image_weights), panels=True)
    attend(files, tmp_path / "each", options)
    attend(files, tmp_path / "joint", replace(options, is_joint=True))
    for name in "ab":
        each, joint = (read_png(tmp_path / how / name / "pca.png") for how in ("each", "joint"))
        assert not np.array_equal(each, joint)
        each, joint = (read_png(tmp_path / how / name / "mean.png") for how in ("each", "joint"))
        assert np.array_equal(each, joint)


def test_region__of_a_dataset_shows_its_cells_and_missing_ones(region_weights: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(make_regions(tmp_path, [make_region(seed, 4, 16, missing=0.3) for seed in range(5)]))
    sample = dataset[2]
    grid = decode_grid(open_store(dataset).read(sample))
    missing = np.isnan(grid[..., 0])
    assert 0 < missing.sum() < 16
    seen = see_grid(model_of(region_weights), grid)
    backbone = load_backbone(read_weights(region_weights))
    expected = class_attention(backbone, torch.from_numpy(grid.astype(np.float32))[None])[0]
    torch.testing.assert_close(seen.main.attention, expected)
    assert np.array_equal(seen.main.exists.numpy(), ~missing)
    options = AttendOptions(str(region_weights), panels=True)
    (drawn,) = attend([dataset.url], tmp_path / "out", options, keys=[sample.key])
    assert drawn.source == sample.key
    assert drawn.tokens == 16 - missing.sum()
    assert f"{missing.sum()} of 16 cells missing, striped" in drawn.details[0]
    stripes = missing.repeat(112, axis=0).repeat(112, axis=1)
    for name in ("cells", "mean", "mask", "pca", "head-4"):
        pixels = read_png(tmp_path / "out" / drawn.picture.stem / f"{name}.png")
        assert pixels.shape == (448, 448, 3)
        assert len(np.unique(pixels[stripes], axis=0)) == 2, name
    mean = read_png(tmp_path / "out" / drawn.picture.stem / "mean.png")[~stripes]
    assert set(map(tuple, mean.tolist())) <= set(map(tuple, colour_map("inferno").tolist()))  # no image below it


def test_region__as_an_image_joins_the_two_models(image_weights: Path, region_weights: Path) -> None:
    patch_model, region_model = model_of(image_weights), model_of(region_weights)
    image = colourful(70, 50)
    image[16:32, 32:48] = 255
    seen = see_region(region_model, patch_model, image, None, 16, drop_blank=True, most_px=1024)
    whole = image[:64, :48]
    cells = embed_image(torch.from_numpy(whole.copy()), 16, Encoder(read_weights(image_weights), CPU, "fp32"))
    cells = cells.half().float()
    cells[1, 2] = torch.nan
    of_region = class_attention(load_backbone(read_weights(region_weights)), cells[None])[0]
    torch.testing.assert_close(seen.levels["region"].attention, of_region, rtol=1e-3, atol=1e-5)
    assert seen.joined is not None
    patches, joined = seen.levels["patches"], seen.joined
    assert patches.attention.shape == (2, 8, 6)
    assert joined.attention.shape == (1, 8, 6)
    for row in range(4):
        for column in range(3):
            y, x = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
            patch = whole[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            is_missing = (row, column) == (1, 2)
            inside = attention_of(image_weights, patch) * (not is_missing)
            torch.testing.assert_close(patches.attention[:, y, x], inside)
            product = seen.levels["region"].mean[row, column] * inside.mean(0)
            torch.testing.assert_close(joined.mean[y, x], product)
            assert bool(joined.exists[y, x].all()) == bool(joined.exists[y, x].any()) == (not is_missing)
    assert seen.details[0] == (
        "50 x 70 px, cut to 48 x 64 px  ·  3 x 4 patches of 16 px  ·  1 of 12 cells missing (blank), striped"
    )
    kept = see_region(region_model, patch_model, image, None, 16, drop_blank=False, most_px=1024)
    assert kept.levels["region"].exists.all()


def test_attend__whole_region_takes_the_patch_size_of_its_model(
    image_weights: Path, region_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "region.png").write_bytes(png(colourful(64, 64)))
    options = AttendOptions(str(region_weights), str(image_weights), panels=True, only_foreground=True)
    (drawn,) = attend([str(tmp_path / "region.png")], tmp_path / "out", options)
    assert drawn.details[0] == "64 x 64 px  ·  4 x 4 patches of 16 px"
    assert drawn.tokens == 64
    names = {path.stem for path in (tmp_path / "out" / "region").iterdir()}
    heads = {f"region-head-{n}" for n in range(1, 5)} | {f"patches-head-{n}" for n in range(1, 3)}
    main = {"image", "joined", "joined-mask", "patches-pca", "region-mean", "region-mask", "region-pca", "cells"}
    assert names == main | heads | {"patches-mean"}
    (resized,) = attend(
        [str(tmp_path / "region.png")], tmp_path / "other", replace(options, panels=False, size=40, patch_size=8)
    )
    assert resized.details[0] == "64 x 64 px, resized to 40 x 40 px  ·  5 x 5 patches of 8 px"


def test_see__what_has_no_fitting_size_is_refused(image_weights: Path, region_weights: Path) -> None:
    patch_model, region_model = model_of(image_weights), model_of(region_weights)
    with pytest.raises(ConfigError, match=r"8000×800 px make 100,000 tokens, expected at most 16,384; .* --size"):
        see_image(patch_model, np.zeros((80, 800, 3), np.uint8), 800, 1024)
    whole = np.zeros((10, 300, 3), np.uint8)
    with pytest.raises(ConfigError, match="300×10 px, expected at least one patch of 16 px"):
        see_region(region_model, patch_model, whole, None, 16, False, 1024)
    with pytest.raises(ConfigError, match="every patch is blank; leave out --drop-blank"):
        see_region(region_model, patch_model, whole, None, 8, True, 1024)
    with pytest.raises(ConfigError, match=r"cells have 8 features, .* takes 16"):
        see_grid(region_model, np.zeros((2, 2, 8), np.float16))


def test_find_keys__of_a_subset_are_its_own(dataset_path: Path, tmp_path: Path) -> None:
    whole = Dataset.open(shutil.copytree(dataset_path, tmp_path / "copy"))
    subset, mask, _ = choose_subset(whole, "alpha", SubsetOptions(where="cohort == 'alpha'"))
    write_subset(whole.url, subset, mask, whole.files)
    rows = whole.columns(["key", "cohort"]).to_pylist()
    mine, others = ([row["key"] for row in rows if (row["cohort"] == "alpha") is which] for which in (True, False))
    chosen = Dataset.open(f"{whole.url}:alpha")
    assert [sample.key for sample in chosen.samples(find_keys(chosen, mine[5:2:-1]))] == mine[5:2:-1]
    with pytest.raises(DatasetError, match=f"copy, subset alpha: no sample has the key '{others[0]}'"):
        find_keys(chosen, [mine[0], others[0]])
    assert {sample.key for sample in chosen.samples(spread_ids(chosen, 100))} == set(mine)


def test_find_keys__in_their_order_each_once(dataset_path: Path, dataset: Dataset) -> None:
    keys = dataset.columns(["key"])["key"].to_pylist()
    assert find_keys(dataset, [keys[70], keys[3], keys[70], keys[89]]).tolist() == [70, 3, 89]
    with pytest.raises(DatasetError, match="no sample has the key 'nobody'; the column 'key'"):
        find_keys(dataset, [keys[0], "nobody"])
    assert spread_ids(dataset, 4).tolist() == [0, 22, 45, 67]
    assert spread_ids(dataset, 1000).tolist() == list(range(90))
    inputs = find_inputs([str(dataset_path)], [keys[5]], None)
    assert Image.open(io.BytesIO(inputs[0].read())).size == (32, 32)
    assert len(find_inputs([str(dataset_path)], [], None)) == 8


def test_find_inputs__names_are_safe_and_differ(tmp_path: Path) -> None:
    files = []
    for place in ("s1/000.jpg", "s2/000.jpg", "S3/tile_(1, 2).png", "s3/a.b.png"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(coded_image(1, 2)))
        files.append(str(path))
    found = find_inputs(files, [], None)
    assert [one.name for one in found] == ["000", "000-2", "tile__1_2_", "a.b"]
    assert [one.source for one in found] == files
