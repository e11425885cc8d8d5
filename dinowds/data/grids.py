"""Region bytes (KEY.npy) → grids of features."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.errors import SampleError

_FLOAT16 = np.dtype("<f2")


def decode_grid(payload: bytes, channels: int | None = None) -> NDArray[np.float16]:
    """A region's .npy file → float16 [n, n, C], row-major, on the bytes themselves: read only. Never reshaped.

    A cell that does not exist is NaN in all channels. Nothing in the file is run.

    Args:
        channels: that are expected; None for any number.

    Raises:
        SampleError: not such a file, cut short, another type or shape, infinite values, cells that are NaN in part, or
            no cell at all. The message names no file; the caller knows it.
    """
    shape, start = _read_header(payload)
    if len(shape) != 3 or min(shape) < 1:
        raise SampleError(f"array of shape {shape}, expected [n, n, channels]; such a region is never reshaped")
    rows, columns, found = shape
    if rows != columns:
        raise SampleError(f"grid of {rows} × {columns} cells, expected a square; it is never reshaped")
    if channels is not None and found != channels:
        raise SampleError(f"grid whose cells have {found} features, expected {channels}")
    if len(payload) - start != _FLOAT16.itemsize * rows * columns * found:
        raise SampleError(
            f"{len(payload) - start} bytes, expected those of {rows} × {columns} × {found} float16 numbers"
        )
    grid = np.frombuffer(payload, _FLOAT16, offset=start).reshape(shape)
    check_cells(grid)
    return grid


def _read_header(payload: bytes) -> tuple[tuple[int, ...], int]:
    """Shape, and where the numbers begin."""
    file = io.BytesIO(payload)
    try:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"version {version}")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy raises whatever the header leads it to
        raise SampleError(f"not a .npy file that can be read ({' '.join(str(error).split())[:200]})") from None
    if dtype != _FLOAT16 or is_fortran:
        order = "columns first" if is_fortran else "rows first"
        raise SampleError(f"numbers of type {dtype.str}, {order}; expected {_FLOAT16.str}, rows first")
    return shape, file.tell()


def check_cells(grid: NDArray[Any]) -> None:
    """Raise SampleError unless each cell of a grid, [rows, columns, C], is finite or NaN as a whole, and one exists."""
    is_finite = np.isfinite(grid)
    if is_finite.all():
        return
    exists = is_finite.all(axis=-1)
    if not np.isnan(grid[~exists]).all():
        raise SampleError("grid with a cell that is infinite or NaN in part, expected numbers, or NaN in all channels")
    if not exists.any():
        raise SampleError("grid in which every cell is missing")
