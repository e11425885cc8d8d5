from __future__ import annotations

import torch

from dinowds.eval.baselines import MeanCell, MeanColour, RawCells, RawPixels, untrained
from tests.embed.support import TINY


def test_of_images__mean_colour_and_pixels_of_a_smaller_image() -> None:
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(MeanColour()(images), images.mean((2, 3)))
    found = RawPixels()(images)
    assert found.shape == (2, RawPixels.embed_dim)
    torch.testing.assert_close(found.view(2, 3, 16, 16), images.view(2, 3, 16, 2, 16, 3).mean((3, 5)))


def test_of_regions__missing_cells_do_not_count() -> None:
    regions = torch.randn(2, 8, 8, 5)
    regions[0, 3, 3] = regions[0, 2, 3] = torch.nan
    regions[1, :2, :2] = torch.nan
    for region, found in zip(regions, MeanCell(5)(regions), strict=True):
        torch.testing.assert_close(found, region[~region[..., 0].isnan()].mean(0))
    raw = RawCells(5)(regions)
    assert raw.shape == (2, RawCells(5).embed_dim)
    cells = raw.view(2, 5, 4, 4)
    torch.testing.assert_close(cells[0, :, 1, 1], regions[0, 2:4, 2].mean(0))
    assert (cells[1, :, 0, 0] == 0).all()
    assert RawCells(5)(torch.randn(3, 5, 5, 5)).shape == raw[:1].expand(3, -1).shape


def test_untrained__the_same_for_a_seed_and_draws_nothing_of_others() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second, other = (untrained(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])
