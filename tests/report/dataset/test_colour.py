"""Colours, stains and sharpness of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinowds.crops.stain import concentrations
from dinowds.data.dataset import Dataset
from dinowds.report.dataset.colour import MEASURES, THUMBNAIL, measure_colours, measure_image, thumbnail
from dinowds.shard.kernels import statistics
from tests.report.dataset.support import make_listed, tinted, two_cohorts


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
