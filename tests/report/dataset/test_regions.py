"""What is measured of regions, and the colours of their cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dinowds.data.dataset import Dataset
from dinowds.report.dataset.regions import Region, colours_of_cells, measure_regions
from tests.train.regions import make_region, make_regions


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
