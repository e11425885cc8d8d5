"""Where patches lie and what they are: all of them as columns, from a dataset's index or from features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.embed.patches.reader import Features
from dinowds.embed.regions.grids import Bools, Int64s
from dinowds.errors import DatasetError
from dinowds.shard.sources.layouts.folder import folder_name

Int32s = NDArray[np.int32]

_COLUMNS = ("slide", "x", "y", "label", "cohort", "width", "height")


@dataclass
class Patches:
    """All patches [N], in the order of their source. Takes 32 bytes a patch, with their order by slides."""

    slide_of: Int32s
    """Position in `slides`; -1 where slide, x or y is unknown."""
    x: Int64s
    y: Int64s
    label_of: Int32s
    """Position in `label_names`; -1 for none."""
    slides: list[tuple[str, str]] = field(default_factory=list)
    """Cohort and name, sorted: slides of one name in two cohorts are two."""
    label_names: list[str] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Width and height of the images, px: a few that are there; none where unknown."""

    def __len__(self) -> int:
        return len(self.slide_of)

    @cached_property
    def _order(self) -> tuple[Int64s, Int64s]:
        """Rows by slide, and where each slide's begin."""
        counts = np.bincount(self.slide_of + 1, minlength=len(self.slides) + 1)
        return np.argsort(self.slide_of, kind="stable"), np.cumsum(counts)

    def rows(self, slide: int) -> Int64s:
        """int64 [P]: the patches of a slide, in the order of the source."""
        order, stops = self._order
        return order[stops[slide] : stops[slide + 1]]

    @property
    def unknown(self) -> Int64s:
        """Rows without slide, x or y."""
        return np.flatnonzero(self.slide_of < 0)


def patches_of_dataset(dataset: Dataset) -> Patches:
    """The selected samples of a dataset of images. Raises DatasetError where its index is damaged."""
    chosen = dataset.selection.chosen()

    def tables() -> Iterator[Any]:
        for first, rows in dataset.batches(_COLUMNS):
            mask = chosen[first : first + len(rows)]
            yield rows if mask.all() else rows.filter(pa.array(mask))

    return _collect(len(dataset), tables(), "", list(dataset.manifest.label_names))


def patches_of_features(features: Features) -> Patches:
    """The rows of features. Those of others may lack all columns but slide, x and y.

    Raises:
        DatasetError: the files are damaged or differ in their columns.
    """
    present = pq.read_schema(features.files[0]).names
    columns = [name for name in _COLUMNS if name in present]
    label_names = list(features.about["label_names"]) if features.about else None
    cohort = folder_name(features.files[0]) if len(features.files) == 1 else folder_name(features.files[0].parent)
    return _collect(len(features), features.tables(columns), cohort.removesuffix(".parquet"), label_names)


def row_names(features: Features, rows: Int64s) -> list[str]:
    """What these rows are called in messages: their keys, or file and number."""
    has_keys = "key" in pq.read_schema(features.files[0]).names
    found: dict[int, str] = {}
    first = 0
    if has_keys:
        for table in features.tables(["key"]):
            here = rows[(rows >= first) & (rows < first + len(table))]
            keys = table["key"].take(pa.array(here - first)).to_pylist() if len(here) else []
            found |= dict(zip(here.tolist(), map(str, keys), strict=True))
            first += len(table)
    else:
        starts = np.cumsum([0, *features.counts])
        which = np.searchsorted(starts, rows, side="right") - 1
        for row, file in zip(rows.tolist(), which.tolist(), strict=True):
            found[row] = f"{features.files[file].name} row {row - int(starts[file])}"
    return [found[row] for row in rows.tolist()]


def sample_names(dataset: Dataset, rows: Int64s) -> list[str]:
    """The keys of these selected samples."""
    return [sample.key for sample in dataset.samples(dataset.selection.ids(rows))]


def _collect(count: int, tables: Iterable[Any], cohort: str, label_names: list[str] | None) -> Patches:
    """`label_names`: of labels that are positions in it; None for labels that are names."""
    (slide_of, label_of), (x, y) = np.empty((2, count), np.int32), np.empty((2, count), np.int64)
    patches = Patches(slide_of, x, y, label_of, label_names=list(label_names or ()))
    slides: dict[tuple[str, str], int] = {}
    names: dict[str, int] = {}
    first = 0
    for table in tables:
        part = slice(first, first + len(table))
        known = _known(table)
        patches.x[part], patches.y[part] = (pc.fill_null(table[name], 0).to_numpy() for name in ("x", "y"))
        patches.slide_of[part] = np.where(known, _slides(table, cohort, slides), -1)
        patches.label_of[part] = -1
        if "label" in table.column_names:
            patches.label_of[part] = _labels(table["label"], names if label_names is None else None)
        if "width" in table.column_names and "height" in table.column_names:
            patches.sizes |= _sizes(table)
        first = part.stop
    if first != count:
        raise DatasetError(f"{cohort or 'the dataset'}: has {first} rows, expected {count}; make it again")
    patches.label_names = patches.label_names or list(names)
    _sort_slides(patches, list(slides))
    return patches


def _sort_slides(patches: Patches, slides: list[tuple[str, str]]) -> None:
    """Number slides by their names, so that what comes of them does not depend on how patches are listed."""
    order = sorted(range(len(slides)), key=slides.__getitem__)
    ranks = np.full(len(slides) + 1, -1, np.int32)  # the last one for -1
    ranks[order] = np.arange(len(slides))
    patches.slides = [slides[at] for at in order]
    patches.slide_of = ranks[patches.slide_of]


def _known(table: Any) -> Bools:
    is_there = pc.and_(pc.and_(pc.is_valid(table["slide"]), pc.is_valid(table["x"])), pc.is_valid(table["y"]))
    return is_there.to_numpy()  # type: ignore[no-any-return]


def _slides(table: Any, cohort: str, slides: dict[tuple[str, str], int]) -> Int32s:
    """The number of each row's cohort and slide; new ones are given the next."""
    slide_of, names = _encoded(table["slide"])
    if "cohort" in table.column_names:
        cohort_of, cohorts = _encoded(table["cohort"])
    else:
        cohort_of, cohorts = np.zeros(len(table), np.int32), [cohort]
    pairs, which = np.unique(cohort_of.astype(np.int64) * (len(names) + 1) + slide_of, return_inverse=True)
    named = [(at // (len(names) + 1), at % (len(names) + 1)) for at in pairs.tolist()]
    # Rows without a slide or cohort have numbers below 0, and are not asked for.
    numbers = [
        slides.setdefault((cohorts[c], names[s]), len(slides)) if c >= 0 and s < len(names) else -1 for c, s in named
    ]
    return np.array(numbers, np.int32)[which]


def _labels(column: Any, names: dict[str, int] | None) -> Int32s:
    if names is None:
        return pc.fill_null(column, -1).to_numpy().astype(np.int32)  # type: ignore[no-any-return]
    label_of, found = _encoded(pc.cast(column, pa.string()))
    numbers = [names.setdefault(name, len(names)) for name in found]
    return np.array([*numbers, -1], np.int32)[label_of]


def _encoded(column: Any) -> tuple[Int32s, list[str]]:
    """Text [N] → numbers, -1 for null, and what they stand for."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = text if pa.types.is_dictionary(text.type) else text.dictionary_encode()
    numbers = pc.fill_null(encoded.indices.cast(pa.int32()), -1).to_numpy(zero_copy_only=False)
    return numbers, encoded.dictionary.to_pylist()


def _sizes(table: Any) -> set[tuple[int, int]]:
    known = table.select(["width", "height"]).drop_null()
    width, height = (known[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    found = np.unique(width << 32 | height)[:2]
    return {(int(size) >> 32, int(size) & 0xFFFFFFFF) for size in found}
