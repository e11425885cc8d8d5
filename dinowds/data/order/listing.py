"""What samples are called, for people."""

from __future__ import annotations

from typing import NamedTuple

from dinowds.data.dataset import Dataset
from dinowds.data.index.shardrows import slide_hash
from dinowds.data.order.plan import Ids

_KEPT_NAMES = 1 << 20  # of slides; about 150 MB


class Named(NamedTuple):
    """A sample; `slide` and `label` (its name) are None where they are unknown."""

    key: str
    cohort: str
    slide: str | None
    label: str | None


class Listing:
    """Looks samples up in the index. Only a slide's name is in samples.parquet alone: it is read there once, with those
    of all slides of its shard.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._slides: dict[int, str] = {}

    def of(self, ids: Ids) -> list[Named]:
        """The samples with these ids, in their order. Each shard is looked at once.

        Raises:
            DatasetError: the index cannot be read.
        """
        if len(self._slides) > _KEPT_NAMES:
            self._slides.clear()
        found: dict[int, Named] = {}
        for shard, places, positions in self._dataset.by_shard(ids):
            found.update(zip(places.tolist(), self._of_shard(shard, positions), strict=True))
        return [found[place] for place in range(len(ids))]

    def _of_shard(self, shard: int, positions: Ids) -> list[Named]:
        rows = self._dataset.rows(shard)
        slides = rows.slide[positions].tolist()
        if any(slide and slide not in self._slides for slide in slides):
            self._slides |= self._names_of(shard)
        cohorts, labels = list(self._dataset.manifest.cohorts), self._dataset.manifest.label_names
        return [
            Named(row.key, cohorts[cohort], self._slides.get(slide), _label(labels, row.label))
            for row, cohort, slide in zip(rows.take(positions), rows.cohort[positions].tolist(), slides, strict=True)
        ]

    def _names_of(self, shard: int) -> dict[int, str]:
        """Hash → name of the slides of a shard."""
        rows = self._dataset.index.groups.read(shard, ["cohort", "slide"])
        pairs = rows.group_by(["cohort", "slide"], use_threads=False).aggregate([]).to_pylist()
        return {slide_hash(**pair): pair["slide"] for pair in pairs if pair["slide"] is not None}


def _label(names: tuple[str, ...], label: int) -> str | None:
    return names[label] if 0 <= label < len(names) else None
