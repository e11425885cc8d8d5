"""Pictures of an encoder: which, of what, and how much they may cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dinowds.config import load_config
from dinowds.data.dataset import Dataset
from dinowds.report import looks
from dinowds.report.page import Matrix, Plot, Text, render
from dinowds.report.run import run_page
from dinowds.report.samples import draw_ids, load_samples, unlike
from dinowds.train.loop import train
from tests.train.regions import TINY_REGION_RUN, make_region, make_regions


def test_draw_ids__are_of_the_subset_each_once_and_the_same_again(dataset: Dataset) -> None:
    ids = draw_ids(dataset, 20)
    assert len(set(ids.tolist())) == 20
    assert (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, draw_ids(dataset, 20))
    np.testing.assert_array_equal(draw_ids(dataset, 10_000), np.arange(90))


def test_draw_ids__of_large_samples_are_fewer(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = sum(sample.size for sample in dataset.samples(np.arange(90)))
    monkeypatch.setattr("dinowds.report.samples.MOST_BYTES", num_bytes // 3)
    assert 22 <= len(draw_ids(dataset, 90)) <= 30


def test_load_samples__names_and_pixels_belong_together(dataset: Dataset) -> None:
    loaded = load_samples(dataset, draw_ids(dataset, 30))
    table = dataset.columns(["key", "cohort", "slide"]).to_pylist()
    rows = {row["key"]: row for row in table}
    assert len(loaded.keys) == 30
    for place, key in enumerate(loaded.keys):
        assert loaded.names["cohort"][place] == rows[key]["cohort"]
        assert loaded.names["slide"][place] == rows[key]["slide"]
        assert loaded.contents[place].shape == (32, 32, 3)
    assert loaded.names["label"] == ["–"] * 30
    assert loaded.title(0) == loaded.names["slide"][0]


def test_load_samples__large_images_are_reduced(dataset: Dataset) -> None:
    assert {image.shape for image in load_samples(dataset, draw_ids(dataset, 5), 20).contents} == {(20, 20, 3)}


def test_unlike__as_many_slides_as_there_are(dataset: Dataset) -> None:
    loaded = load_samples(dataset, draw_ids(dataset, 90))
    chosen = loaded.of(unlike(loaded, 6))
    assert len(set(chosen.names["slide"])) == 6


def test_plane__is_the_same_each_time_and_keeps_groups_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(3, 16).repeat_interleave(20, 0) + 0.05 * torch.randn(60, 16, generator=generator)
    for features in (groups, groups[::2]):  # enough for a t-SNE, and not
        places, how, *_ = looks.plane(features)
        np.testing.assert_array_equal(places, looks.plane(features)[0])
        size = len(features) // 3
        middles = places.reshape(3, size, 2).mean(1)
        spread = np.linalg.norm(places.reshape(3, size, 2) - middles[:, None], axis=-1).mean()
        assert np.linalg.norm(middles[0] - middles[1]) > 3 * spread, how


@pytest.mark.parametrize("count", [1, 2])
def test_plane__of_very_few(count: int) -> None:
    places, how, *_ = looks.plane(torch.eye(count, 4))
    assert places.shape == (count, 2)
    assert how == "PCA"
    assert np.isfinite(places).all()


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan")])
def test_plane__of_features_that_are_all_the_same(value: float) -> None:
    places, how, *_ = looks.plane(torch.full((60, 16), value))
    assert how == "PCA"
    np.testing.assert_allclose(places, 0, atol=1e-6)


def test_evenly__first_and_last() -> None:
    paths = [Path(str(number)) for number in range(20)]
    assert [int(path.name) for path in looks.evenly(paths, 4)] == [0, 6, 13, 19]
    assert looks.evenly(paths[:3], 4) == paths[:3]


def test_run_page__of_regions_has_a_map_and_says_why_there_are_no_pictures(tmp_path: Path) -> None:
    data = make_regions(tmp_path, [make_region(seed) for seed in range(60)])
    config = load_config(None, [*TINY_REGION_RUN, "optim.max_steps=4"], "region")
    train(data, tmp_path / "run", config)
    page = run_page([tmp_path / "run"])
    blocks = [block for section in page.sections for block in section.blocks]
    assert not [block for block in blocks if isinstance(block, Matrix)]
    assert any("there are no images" in block.text for block in blocks if isinstance(block, Text))
    (plot,) = (block for block in blocks if isinstance(block, Plot) and block.title.startswith("Map of features"))
    assert plot.sprite is None
    assert len({point for trace in plot.figure["data"] for point in trace["customdata"]}) == 60
    assert render(page)
