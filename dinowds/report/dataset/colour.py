"""Colours, stains and sharpness of a random sample of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.crops.sheet import Pixels
from dinowds.crops.stain import concentrations
from dinowds.data.dataset import Dataset
from dinowds.data.subsets.selection import Ids
from dinowds.report.dataset.reading import Unreadable, read_each
from dinowds.shard.kernels import WHITE, statistics
from dinowds.shard.sources.check import decode_for_statistics

THUMBNAIL = 160
"""px."""

_MOST_STAINED = 1 << 14
"""Pixels of an image whose stains are told apart, on a lattice."""


MEASURES = {
    "red": "red, mean",
    "green": "green, mean",
    "blue": "blue, mean",
    "red_std": "red, standard deviation",
    "green_std": "green, standard deviation",
    "blue_std": "blue, standard deviation",
    "brightness": "brightness",
    "haematoxylin": "haematoxylin",
    "eosin": "eosin",
    "dab": "DAB",
    "sharpness": "sharpness",
    "white": "white, share of pixels",
    "black": "black, share of pixels",
}
"""What each image has one number of, and its title. Channels and brightness (grey by Rec. 601) are in grey levels, 0 to
255; stains are mean concentrations, as `stain.concentrations`; sharpness is the variance of the Laplacian."""

_PLACE = {name: place for place, name in enumerate(MEASURES)}
_GREY = np.array([0.299, 0.587, 0.114])
"""Rec. 601."""


@dataclass(frozen=True)
class Colours:
    """Of n images."""

    places: NDArray[np.int64]
    """[n]: among the ids that were asked for."""
    keys: Sequence[str]
    values: NDArray[np.float64]
    """[n, measures]; NaN for what an image does not have: stains, where all is white."""
    is_grey: bool
    """Whether red, green and blue are the same in all images."""
    thumbnails: Sequence[Pixels]
    """[n] of uint8 [h, w, 3]: the whole image, at most `THUMBNAIL` px wide and high."""
    unreadable: Sequence[Unreadable]

    def of(self, name: str) -> NDArray[np.float64]:
        """[n]: one measure."""
        return self.values[:, _PLACE[name]]


def measure_image(pixels: Pixels) -> NDArray[np.float64]:
    """uint8 [H, W, 3], RGB → the `MEASURES`.

    Stains are those of pixels that are not white, as `kernels.WHITE` says: glass has none, and there may be any amount
    of it beside tissue.
    """
    channels = np.ascontiguousarray(pixels.reshape(-1, 3).T)  # numpy is slow along an axis of three
    means, stds = channels.mean(axis=1), channels.std(axis=1)
    white, black, sharpness = statistics(pixels)
    some = channels[:, :: -(-channels.shape[1] // _MOST_STAINED)]
    some = some[:, some.min(axis=0) < WHITE]
    stains = concentrations(some.T).mean(axis=0) if some.size else np.full(3, np.nan)
    return np.array([*means, *stds, means @ _GREY, *stains, sharpness, white, black])


def measure_colours(dataset: Dataset, ids: Ids, sizes: NDArray[np.int64]) -> Colours:
    """Read and measure images, reduced as for the index's own statistics.

    Args:
        ids: int64 [n].
        sizes: int64 [n, 2]: width and height of each, px.

    Raises:
        StorageError: a remote shard cannot be reached.
    """
    places, keys, values, thumbnails, unreadable, is_grey = [], [], [], [], [], True
    by_id = dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    for found in read_each(dataset, ids, lambda payload, sample: decode_for_statistics(payload, *by_id[sample.id])):
        if isinstance(found, Unreadable):
            unreadable.append(found)
            continue
        pixels = found.value
        places.append(found.place)
        keys.append(found.sample.key)
        values.append(measure_image(pixels))
        thumbnails.append(thumbnail(pixels))
        is_grey = is_grey and not (pixels[..., :1] != pixels[..., 1:]).any()
    table = np.array(values).reshape(-1, len(MEASURES))
    return Colours(np.array(places, np.int64), keys, table, is_grey, thumbnails, unreadable)


def thumbnail(pixels: Pixels) -> Pixels:
    """uint8 [H, W, 3] → at most `THUMBNAIL` px wide and high; smaller images stay as they are."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)
