"""What samples are called, for people."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.order.plan import Ids

_KEPT_SHARDS = 256  # about 1 MB each


class Named(NamedTuple):
    """A sample; `slide` and `label` (its name) are None where they are unknown."""

    key: str
    cohort: str
    slide: str | None
    label: str | None


class Listing:
    """Looks samples up in samples.parquet. The shards that were asked for last are kept."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._first_id = np.concatenate([[0], np.cumsum(dataset.shard_counts, dtype=np.int64)])
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def of(self, ids: Ids) -> list[Named]:
        """The samples with these ids, in their order.

        Raises:
            DatasetError: the index cannot be read.
        """
        shards = np.searchsorted(self._first_id, ids, side="right") - 1
        found: dict[int, Named] = {}
        for shard in np.unique(shards).tolist():
            mine = ids[shards == shard]
            rows = self._rows(shard).take(mine - self._first_id[shard]).to_pylist()
            found |= {sample: self._named(**row) for sample, row in zip(mine.tolist(), rows, strict=True)}
        return [found[sample] for sample in ids.tolist()]

    def _named(self, key: str, cohort: str, slide: str | None, label: int | None) -> Named:
        names = self._dataset.manifest.label_names
        return Named(key, cohort, slide, names[label] if label is not None and 0 <= label < len(names) else None)

    def _rows(self, shard: int) -> Any:
        if shard not in self._kept:
            self._kept[shard] = self._dataset.index.groups.read(shard, Named._fields)
            if len(self._kept) > _KEPT_SHARDS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shard)
        return self._kept[shard]
