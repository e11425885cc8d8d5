"""Regions' bytes: what is read, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from dinowds.data.grids import decode_grid
from dinowds.errors import SampleError
from dinowds.shard.sources.layouts.regions import region_payload

GRID = np.arange(4 * 4 * 3).reshape(4, 4, 3).astype("<f2")


def saved(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def changed(place: tuple[Any, ...], value: float) -> bytes:
    grid = GRID.copy()
    grid[place] = value
    return saved(grid)


@pytest.mark.parametrize("payload", [saved(GRID), region_payload(GRID)])
def test_decode_grid__every_cell_at_its_row_and_column(payload: bytes) -> None:
    grid = decode_grid(payload, 3)
    assert (grid.dtype.str, grid.shape, grid.flags.writeable) == ("<f2", (4, 4, 3), False)
    assert grid[2, 1].tolist() == [27, 28, 29]  # row 2, column 1: the tenth cell
    np.testing.assert_array_equal(grid, GRID)


def test_decode_grid__missing_cells_stay_nan() -> None:
    grid = decode_grid(changed((1, 2), np.nan))
    assert np.isnan(grid).all(axis=-1).nonzero() == (np.array([1]), np.array([2]))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (saved(np.zeros((12, 20, 3), "<f2")), "grid of 12 × 20 cells, expected a square; it is never reshaped"),
        (saved(np.zeros((250, 384), "<f2")), r"array of shape \(250, 384\), expected \[n, n, channels\]"),
        (saved(np.zeros((16, 384), "<f2")), r"array of shape \(16, 384\)"),
        (saved(np.zeros((0, 0, 3), "<f2")), r"array of shape \(0, 0, 3\)"),
        (saved(np.zeros((4, 4, 5), "<f2")), "grid whose cells have 5 features, expected 3"),
        (saved(GRID.astype("<f4")), "numbers of type <f4, rows first; expected <f2"),
        (saved(GRID.astype(">f2")), "numbers of type >f2"),
        (saved(np.asfortranarray(GRID)), "columns first"),
        (saved(np.array([[[None]]]), allow_pickle=True), r"numbers of type \|O"),
        (saved(GRID)[:-1], "95 bytes, expected those of 4 × 4 × 3 float16 numbers"),
        (saved(GRID) + b"\0\0", "98 bytes"),
        (saved(GRID).replace(b"(4, 4, 3)", b"(-4,-4,3)"), r"array of shape \(-4, -4, 3\)"),
        (saved(GRID).replace(b"(4, 4, 3)", b"exit(99) "), "not a .npy file that can be read"),
        (b"", "not a .npy file"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not a .npy file"),
        (saved(GRID)[:40], "not a .npy file"),
        (b"\x93NUMPY\x03\x00" + saved(GRID)[8:], r"not a .npy file that can be read \(version \(3, 0\)\)"),
        (changed((1, 2, 0), np.nan), "NaN in part"),
        (changed((1, 2), np.inf), "infinite"),
        (changed((), np.nan), "every cell is missing"),
    ],
)
def test_decode_grid__what_is_no_region(payload: bytes, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        decode_grid(payload, 3)
    assert "\n" not in str(caught.value)
