"""Grids of features: which cells there are, how long their features are, and a picture of a few regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.grids import decode_grid
from dinowds.data.subsets.selection import Ids
from dinowds.eval.attention import Components
from dinowds.report.dataset.reading import Unreadable, read_each


@dataclass(frozen=True)
class Region:
    """One grid."""

    place: int
    """Among the ids that were asked for."""
    key: str
    cells: NDArray[np.float32]
    """[n, n, C]; NaN in all channels of a cell that does not exist."""

    @property
    def missing(self) -> float:
        """Share of the cells."""
        return float(np.isnan(self.cells[..., 0]).mean())


@dataclass(frozen=True)
class Regions:
    """Of n regions."""

    places: NDArray[np.int64]
    """[n]: among the ids that were asked for."""
    sides: NDArray[np.int64]
    """[n]: cells along a side."""
    missing: NDArray[np.float64]
    """[n]: share of the cells of each that do not exist."""
    norms: NDArray[np.float64]
    """[n]: mean length of the features of the cells of each."""
    channels: NDArray[np.int64]
    """[n]: features of a cell."""
    shown: Sequence[Region]
    """The first few."""
    unreadable: Sequence[Unreadable]


def measure_regions(dataset: Dataset, ids: Ids, shown: Sequence[int]) -> Regions:
    """Read and measure regions.

    Args:
        ids: int64 [n].
        shown: places of those whose cells are kept.

    Raises:
        StorageError: a remote shard cannot be reached.
    """
    kept, rows, unreadable, wanted = [], [], [], set(shown)
    for found in read_each(dataset, ids, lambda payload, _: decode_grid(payload).astype(np.float32)):
        if isinstance(found, Unreadable):
            unreadable.append(found)
            continue
        region = Region(found.place, found.sample.key, found.value)
        norms = np.linalg.norm(found.value, axis=-1)
        rows.append((found.place, len(norms), region.missing, float(np.nanmean(norms)), found.value.shape[-1]))
        if found.place in wanted:
            kept.append(region)
    table = np.array(rows, np.float64).reshape(-1, 5)
    places, sides, channels = (table[:, column].astype(np.int64) for column in (0, 1, 4))
    return Regions(places, sides, table[:, 2], table[:, 3], channels, kept, unreadable)


def colours_of_cells(regions: Sequence[Region]) -> list[NDArray[np.uint8]]:
    """Regions of the same number of channels → uint8 RGBA [n, n, 4] each: the first three principal components of the
    features of all their cells as red, green and blue; missing cells are transparent.
    """
    exists = [~np.isnan(region.cells[..., 0]) for region in regions]
    cells = [torch.from_numpy(region.cells[there]) for region, there in zip(regions, exists, strict=True)]
    components = Components.of(torch.cat(cells))
    pictures = []
    for there, some in zip(exists, cells, strict=True):
        picture = np.zeros((*there.shape, 4), np.uint8)
        picture[there, :3] = np.rint(255 * components.colours(some).numpy())
        picture[there, 3] = 255
        pictures.append(picture)
    return pictures
