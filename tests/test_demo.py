"""The demo's parts, and the whole of it in a few steps."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinowds.demo.photos import (
    CELL_SIZE,
    COHORTS,
    PATCH_SIZE,
    TEST_PATCHES,
    TRAIN_PATCHES,
    photo_folder,
    photo_names,
    photo_of,
    standardise,
    write_cohorts,
    write_lattices,
)
from tests.browser import CHROMIUM, WIDE, check_drawn, opened
from tests.support import run_dinowds


def members(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Photograph → left and top of its patches."""
    places: dict[str, list[tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for name in tar.getnames():
            slide, _, rest = name.partition("/")
            x, y = rest.removesuffix(".png").split("_")
            places.setdefault(photo_of(slide), []).append((int(x), int(y)))
    return places


def test_write_cohorts__train_and_test_patches_share_no_pixel(tmp_path: Path) -> None:
    train = write_cohorts(tmp_path / "train", "train")
    test = write_cohorts(tmp_path / "test", "test")
    assert [path.name for path in train] == [path.name for path in test] == [f"{name}.tar" for name in COHORTS]
    for train_path, test_path, names in zip(train, test, COHORTS.values(), strict=True):
        seen, held_out = members(train_path), members(test_path)
        assert sorted(seen) == sorted(held_out) == sorted(Path(name).stem for name in names)
        for name in names:
            photo = Path(name).stem
            assert max(x for x, _ in seen[photo]) + PATCH_SIZE <= min(x for x, _ in held_out[photo])
            with Image.open(photo_folder() / name) as image:
                assert max(x for x, _ in held_out[photo]) + PATCH_SIZE <= image.width
            assert 0.9 * TRAIN_PATCHES <= len(seen[photo]) <= TRAIN_PATCHES  # some of a black corner
            assert 0.9 * TEST_PATCHES < len(held_out[photo]) <= TEST_PATCHES


def test_write_cohorts__same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (write_cohorts(tmp_path / name, "test") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_write_lattices__fill_both_sides_of_each_photograph(tmp_path: Path) -> None:
    for train_path, test_path in zip(
        write_lattices(tmp_path / "train", "train"), write_lattices(tmp_path / "test", "test"), strict=True
    ):
        seen, held_out = members(train_path), members(test_path)
        for photo, places in seen.items():
            columns, rows = ({place[axis] for place in places} for axis in (0, 1))
            assert 0.85 * len(columns) * len(rows) < len(places) <= len(columns) * len(rows)
            assert max(columns) == CELL_SIZE * (len(columns) - 1)
            assert max(columns) + CELL_SIZE <= min(x for x, _ in held_out[photo])


@pytest.mark.parametrize(("mean", "spread"), [(30, 5), (200, 20), (128, 70)])
def test_standardise__equal_mean_and_contrast(mean: float, spread: float) -> None:
    patch = np.random.default_rng(0).normal(mean, spread, (64, 64)).astype(np.float32)
    grey = standardise(patch)
    assert grey.mean() == pytest.approx(128, abs=2)
    assert grey.std() == pytest.approx(48, abs=3)


def test_standardise__flat_patch_is_grey() -> None:
    assert (standardise(np.full((8, 8), 77, np.float32)) == 128).all()


def test_demo__whole_way_in_a_few_steps_and_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = [
        "demo",
        "--out",
        tmp_path / "demo",
        "--json",
        "optim.max_steps=2",
        "student.depth=1",
        "speed.num_workers=0",
    ]
    first = run_dinowds(*arguments)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["num_classes"] == len(photo_names()) == 16
    for picture in result["pictures"]:
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert [Path(picture).name for picture in result["pictures"]] == ["crops.png", "ihc.png", "chelsea.png"]
    pages = [Path(page) for page in result["pages"]]
    assert [page.name for page in pages] == ["train-report.html", "report.html", "report.html"]
    if CHROMIUM is not None:
        browser = request.getfixturevalue("browser")
        for page in pages:
            with opened(browser, page) as seen:
                num_pictures = check_drawn(seen, WIDE, "light")
                assert (num_pictures > 0) == (page.parent.name != "region-run")  # regions have none
    for kind, baseline in (("patches", "raw pixels"), ("regions", "mean of cells")):
        content = result[kind]
        assert content["step"] == 2
        assert len(content["labels"]) == 16
        assert {"teacher", "student", "random", baseline} <= {found["model"] for found in content["results"]}
        assert all(1 / 32 < found["accuracy"]["value"] < 1 for found in content["results"])
    again = run_dinowds(*arguments)
    assert json.loads(again.stdout) == result
    assert "nothing left to do" in again.stderr
