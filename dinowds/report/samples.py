"""A few samples of a dataset, read and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.store.store import open_store
from dinowds.data.subsets.selection import Ids
from dinowds.embed.patches.stream import fit, runs_of
from dinowds.errors import SampleError

_MOST_SHARDS = 64
"""That are opened."""
MOST_BYTES = 512 << 20
"""Of payloads that are read: those of regions are as large in memory."""
NAMES = ("cohort", "slide", "label")
NONE = "–"


@dataclass(frozen=True)
class Loaded:
    """Of [N] samples."""

    keys: list[str]
    contents: list[NDArray[np.generic]]
    """uint8 [H, W, 3] of images; float16 [n, n, C] of regions."""
    names: dict[str, list[str]]
    """Each of `NAMES` → what each sample has; '–' for none."""

    def of(self, places: Sequence[int]) -> Loaded:
        """Some of them."""
        return Loaded(
            [self.keys[place] for place in places],
            [self.contents[place] for place in places],
            {what: [names[place] for place in places] for what, names in self.names.items()},
        )

    def title(self, place: int) -> str:
        """What a reader would call it: its label, else its slide, else its cohort."""
        return next((self.names[what][place] for what in reversed(NAMES) if self.names[what][place] != NONE), NONE)


def draw_ids(dataset: Dataset, count: int, seed: int = 0) -> Ids:
    """int64 [n], ascending: at most `count` of the selected samples at random, of not too many shards and bytes."""
    random = np.random.default_rng(seed)
    counts = dataset.selection.counts
    shards = np.flatnonzero(counts)
    if len(shards) > _MOST_SHARDS:
        shards = np.sort(random.choice(shards, _MOST_SHARDS, replace=False))
    firsts = np.cumsum(counts) - counts
    places = np.concatenate([np.empty(0, np.int64), *(firsts[shard] + np.arange(counts[shard]) for shard in shards)])
    chosen = dataset.selection.ids(np.sort(random.choice(places, min(count, len(places)), replace=False)))
    num_bytes = sum(sample.size for sample in dataset.samples(chosen))
    return chosen[:: max(1, -(-num_bytes // MOST_BYTES))]


def load_samples(dataset: Dataset, ids: Ids, most_side: int = 256) -> Loaded:
    """Those of `ids` that can be read. Of images larger than `most_side`, px, the middle square is reduced to it.

    Raises:
        DatasetError: a shard is missing or cut short.
        StorageError: it lies remote and cannot be read.
    """

    def decode(payload: bytes) -> NDArray[np.generic]:
        if dataset.manifest.kind == "region":
            return decode_grid(payload)
        image = decode_image(payload)
        return fit(image, most_side) if min(image.shape[:2]) > most_side else image

    store = open_store(dataset)
    loaded = Loaded([], [], {what: [] for what in NAMES})
    for shard, places, positions in dataset.by_shard(ids):
        rows = dataset.index.groups.read(shard, NAMES)
        names = {what: pc.take(rows[what], positions).to_pylist() for what in NAMES}
        samples = dataset.samples(ids[places])
        for place, (sample, run) in enumerate(zip(samples, runs_of(samples), strict=True)):
            try:
                content = decode(store.read(sample, run))
            except SampleError:
                continue
            loaded.keys.append(sample.key)
            loaded.contents.append(content)
            for what in NAMES:
                loaded.names[what].append(_name(dataset, what, names[what][place]))
    store.close()
    return loaded


def _name(dataset: Dataset, what: str, value: str | int | None) -> str:
    if value is None:
        return NONE
    return dataset.manifest.label_names[value] if what == "label" and isinstance(value, int) else str(value)


def unlike(loaded: Loaded, count: int) -> list[int]:
    """Places of `count` samples, of as many labels, slides and cohorts as there are; the same for the same samples."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for place in range(len(loaded.keys)):
        title = loaded.title(place)
        (rest if title in seen else first).append(place)
        seen.add(title)
    return sorted([*first, *rest][:count])
