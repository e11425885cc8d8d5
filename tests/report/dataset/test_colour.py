"""Colours and stains of images, and features of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from dinowds.crops.stain import STAINS, concentrations
from dinowds.data.dataset import Dataset
from dinowds.report.dataset.colour import MEASURES, THUMBNAIL, measure_colours, measure_image, thumbnail
from dinowds.report.dataset.regions import Region, colours_of_cells, measure_regions
from dinowds.shard.kernels import statistics
from tests.report.dataset.support import make_listed, tinted, two_cohorts
from tests.train.regions import make_region, make_regions


def test_concentrations__one_and_two_units_of_each_stain() -> None:
    for stain in range(3):
        for amount in (1.0, 2.0):
            pixel = 255 * np.exp(-amount * STAINS[stain])
            found = concentrations(np.rint(pixel).astype(np.uint8)[None])[0]
            assert found == pytest.approx(amount * np.eye(3)[stain], abs=0.06)
    assert concentrations(np.full((1, 3), 255, np.uint8))[0] == pytest.approx([0, 0, 0])


def test_concentrations__order_pixels_as_scikit_image() -> None:
    tissue = np.ascontiguousarray(immunohistochemistry()[:64, :64])
    ours, theirs = concentrations(tissue).reshape(-1, 3), rgb2hed(tissue).reshape(-1, 3)
    for stain in (0, 2):  # of eosin there is none, which scikit-image cuts to 0
        assert np.corrcoef(ours[:, stain], theirs[:, stain])[0, 1] > 0.95


def test_measure_image__numbers_of_a_known_image() -> None:
    pixels = np.zeros((40, 30, 3), np.uint8)
    pixels[:20] = (200, 100, 50)
    pixels[20:] = (255, 255, 255)
    found = dict(zip(MEASURES, measure_image(pixels).tolist(), strict=True))
    assert (found["red"], found["green"], found["blue"]) == (227.5, 177.5, 152.5)
    assert (found["red_std"], found["green_std"], found["blue_std"]) == (27.5, 77.5, 102.5)
    assert found["brightness"] == pytest.approx(0.299 * 227.5 + 0.587 * 177.5 + 0.114 * 152.5)
    assert (found["white"], found["black"], found["sharpness"]) == statistics(pixels)
    expected = concentrations(pixels[:1, :1])[0, 0]
    assert [found[name] for name in ("haematoxylin", "eosin", "dab")] == pytest.approx(expected, rel=1e-4)


def test_measure_image__white_has_no_stain() -> None:
    found = dict(zip(MEASURES, measure_image(np.full((8, 8, 3), 250, np.uint8)).tolist(), strict=True))
    assert np.isnan([found["haematoxylin"], found["eosin"], found["dab"]]).all()
    assert found["white"] == 1


def test_thumbnail__keeps_its_shape_and_enlarges_nothing() -> None:
    assert thumbnail(np.zeros((2 * THUMBNAIL, THUMBNAIL, 3), np.uint8)).shape == (THUMBNAIL, THUMBNAIL // 2, 3)
    assert thumbnail(np.zeros((7, 9, 3), np.uint8)).shape == (7, 9, 3)


def test_measure_colours__reads_what_can_be_read(tmp_path: Path) -> None:
    folder = make_listed(tmp_path / "listed", two_cohorts(20))
    dataset = Dataset.open(folder)
    broken = dataset[3]
    path = Path(dataset.shard_url(broken.shard))
    content = bytearray(path.read_bytes())
    content[broken.offset + 30] ^= 1
    path.write_bytes(content)
    ids = np.arange(len(dataset))
    found = measure_colours(dataset, ids, np.full((len(ids), 2), 32))
    assert [one.key for one in found.unreadable] == [broken.key]
    assert str(path) in found.unreadable[0].reason
    assert found.places.tolist() == [place for place in range(len(ids)) if place != 3]
    assert found.keys == [dataset[place].key for place in found.places.tolist()]
    assert not found.is_grey
    red, blue = found.of("red"), found.of("blue")
    assert (np.abs(np.where(red > 150, red - 200, red - 90)) < 5).all()
    assert (np.abs(np.where(red > 150, blue - 60, blue - 200)) < 5).all()


def test_measure_colours__grey_is_seen(tmp_path: Path) -> None:
    grey = np.repeat(tinted((120, 120, 120), 0)[..., :1], 3, axis=2)
    folder = make_listed(tmp_path / "listed", [("a", "s", "", 0, y, np.roll(grey, y, 0)) for y in range(3)])
    assert measure_colours(Dataset.open(folder), np.arange(3), np.full((3, 2), 32)).is_grey


def test_measure_colours__a_shard_that_is_gone(tmp_path: Path) -> None:
    folder = make_listed(tmp_path / "listed", two_cohorts(4))
    for shard in (folder / "shards").iterdir():
        shard.unlink()
    found = measure_colours(Dataset.open(folder), np.arange(5), np.full((5, 2), 32))
    assert len(found.unreadable) == 5
    assert found.values.shape == (0, len(MEASURES))


def test_measure_regions__missing_cells_and_lengths(tmp_path: Path) -> None:
    regions = [make_region(seed, missing=0.1 * seed) for seed in range(6)]
    dataset = Dataset.open(make_regions(tmp_path, regions))
    found = measure_regions(dataset, np.arange(6), [1, 4])
    assert found.sides.tolist() == [6] * 6
    assert found.channels.tolist() == [8] * 6
    shares = [float(torch.isnan(region[..., 0]).float().mean()) for region in regions]
    norms = [float(region[~torch.isnan(region[..., 0])].norm(dim=-1).mean()) for region in regions]
    numbers = [int(sample.key.split("_")[-2]) for sample in dataset]
    assert found.missing == pytest.approx([shares[i] for i in numbers])
    assert found.norms == pytest.approx([norms[i] for i in numbers], rel=1e-3)
    assert [region.place for region in found.shown] == [1, 4]


def test_colours_of_cells__alike_where_features_are() -> None:
    cells = np.full((5, 5, 8), np.nan, np.float32)
    random = np.random.default_rng(0)
    for place, direction in enumerate(random.normal(size=(4, 8))):
        cells[place] = direction + 0.01 * random.normal(size=(5, 8))
    (picture,) = colours_of_cells([Region(0, "key", cells)])
    assert picture[..., 3].tolist() == [[255] * 5] * 4 + [[0] * 5]
    colours = picture[:4, :, :3].astype(int)
    within = np.abs(colours - colours[:, :1]).max()
    between = min(np.abs(colours[i, 0] - colours[j, 0]).max() for i in range(4) for j in range(i))
    assert within < 40 < between
