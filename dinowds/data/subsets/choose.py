"""Which samples a new subset takes: conditions, then a cap per slide, then a fraction. Streams over the index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.index.shardrows import slide_hashes
from dinowds.data.subsets.entries import find_samples, find_slides, read_entries
from dinowds.data.subsets.selection import Mask, pack_mask
from dinowds.data.subsets.subset import Subset, check_name, mask_file
from dinowds.data.subsets.where import parse_where
from dinowds.errors import ConfigError, DatasetError

_CAP, _FRACTION = 0, 1  # streams of random numbers, kept apart by the seed's spawn key

Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class SubsetOptions:
    """What a subset takes. All conditions must hold; what is None is no condition."""

    keep: Path | None = None
    """List of samples."""
    remove: Path | None = None
    """List of samples that are left out."""
    where: str | None = None
    """See `where`."""
    slides: Path | None = None
    """List of slides."""
    max_per_slide: int | None = None
    """Of more samples of a slide that many are drawn; those without a slide are all kept."""
    fraction: float | None = None
    """Of what is left that share is drawn; 0 < fraction ≤ 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_per_slide is not None and self.max_per_slide < 1:
            raise ConfigError(f"--max-per-slide is {self.max_per_slide}, expected at least 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"--fraction is {self.fraction}, expected more than 0 and at most 1")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}, expected 0 or more")


def choose_subset(dataset: Dataset, name: str, options: SubsetOptions) -> tuple[Subset, Mask, list[str]]:
    """A new subset of `dataset`, which may be a subset itself, its mask, and notices of one line each.

    A pure function of the samples, the options and what the lists hold; the same with every version of numpy.

    Raises:
        ConfigError: an option that cannot work.
        DatasetError: a list that does not fit, or nothing is left.
    """
    check_name(name)
    definition: dict[str, Any] = {}
    if dataset.subset is not None:
        definition["of"] = {"file": dataset.subset, "sha256": dataset.fingerprint.partition(":")[2]}
    chosen, notices = dataset.selection.chosen(), []
    if not chosen.flags.writeable:
        chosen = chosen.copy()
    for option in ("keep", "remove"):
        if (path := getattr(options, option)) is not None:
            entries = read_entries(path)
            definition[option] = entries.to_json()
            ids, more = find_samples(dataset, entries)
            notices += more
            listed = np.zeros_like(chosen)
            listed[ids] = True
            chosen &= listed if option == "keep" else ~listed
    if options.where is not None:
        definition["where"] = options.where
        _apply_where(dataset, options.where, chosen)
    if options.slides is not None:
        entries = read_entries(options.slides)
        definition["slides"] = entries.to_json()
        notices += find_slides(dataset, entries, chosen)
    _refuse_empty(chosen, definition)
    if options.max_per_slide is not None:
        definition |= {"max_per_slide": options.max_per_slide, "seed": options.seed}
        notices += _cap(dataset, chosen, options.max_per_slide, options.seed)
    if options.fraction is not None:
        definition |= {"fraction": options.fraction, "seed": options.seed}
        _draw(chosen, options.fraction, options.seed)
        _refuse_empty(chosen, definition)
    mask = pack_mask(chosen)
    return describe_subset(dataset, name, definition, chosen, mask), mask, notices


def _apply_where(dataset: Dataset, text: str, chosen: Chosen) -> None:
    where = parse_where(text, dataset.manifest.label_names)
    for first, rows in dataset.batches(where.columns or ("shard",)):
        chosen[first : first + len(rows)] &= where.test(rows).to_numpy(zero_copy_only=False)


def _cap(dataset: Dataset, chosen: Chosen, most: int, seed: int) -> list[str]:
    """Leave at most `most` of each slide's samples."""
    slides = np.concatenate([part[chosen[first : first + len(part)]] for first, part in _slides(dataset)])
    ids = np.flatnonzero(chosen)
    without = int(np.count_nonzero(slides == 0))
    shuffled = _shuffled(len(ids), seed, _CAP)
    order = shuffled[np.argsort(slides[shuffled], kind="stable")]  # slide by slide, each in random order
    ordered = slides[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    chosen[ids[order[(rank >= most) & (ordered != 0)]]] = False
    return [f"--max-per-slide: {without} samples have no slide and are not capped"] if without else []


def _draw(chosen: Chosen, fraction: float, seed: int) -> None:
    ids = np.flatnonzero(chosen)
    chosen[ids[_shuffled(len(ids), seed, _FRACTION)[round(fraction * len(ids)) :]]] = False


def _shuffled(count: int, seed: int, stream: int) -> NDArray[np.intp]:
    """A permutation of `count`. Sorts Philox's raw numbers, which numpy keeps for ever."""
    keys = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream,))).random_raw(count)
    return np.argsort(keys, kind="stable")


def _slides(dataset: Dataset) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    for first, rows in dataset.batches(["cohort", "slide"]):
        yield first, slide_hashes(rows["cohort"], rows["slide"])


def describe_subset(dataset: Dataset, name: str, definition: dict[str, Any], chosen: Chosen, mask: Mask) -> Subset:
    """What is stored of a subset: counts over the samples of the whole `dataset` that are `chosen`, bool [samples]."""
    pairs = ["cohort", "slide"]
    counted = []
    for first, rows in dataset.batches(pairs):
        rows = rows.filter(pa.array(chosen[first : first + len(rows)]))
        counted.append(rows.group_by(pairs).aggregate([([], "count_all")]))
    table = pa.concat_tables(counted).group_by(pairs).aggregate([("count_all", "sum")])
    cohorts: Counter[str] = Counter()
    for cohort, count in zip(table["cohort"].to_pylist(), table["count_all_sum"].to_pylist(), strict=True):
        cohorts[cohort] += count
    return Subset(
        name=name,
        definition=definition,
        samples=int(np.count_nonzero(chosen)),
        slides=len(table) - table["slide"].null_count,
        cohorts={cohort: cohorts[cohort] for cohort in dataset.manifest.cohorts},
        samples_sha256=dataset.manifest.samples_sha256,
        file_sha256=hashlib.sha256(mask_file(mask)).hexdigest(),
    )


def _refuse_empty(chosen: Chosen, definition: dict[str, Any]) -> None:
    if not chosen.any():
        conditions = ", ".join(f"--{name}" for name in definition if name not in ("of", "seed")).replace("_", "-")
        raise DatasetError(f"no sample is left by {conditions or 'this subset'}; nothing was written")
