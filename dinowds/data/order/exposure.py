"""What a run has seen by a step, counted from the index and the plan: no batch of a whole pass is walked through."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.order.mixture import checked_weights
from dinowds.data.order.plan import Ids, Plan
from dinowds.errors import ConfigError
from dinowds.remote.urls import shown

Report = Callable[[int, int], None]
"""(done, of how many), for a bar."""


class Slide(NamedTuple):
    """A slide of a cohort, or the samples of a cohort whose slide is unknown."""

    cohort: str
    name: str | None


@dataclass(frozen=True)
class Views:
    """Of all samples, those of a cohort, or those of a slide."""

    samples: int
    draws: int
    """Times that they were in a global batch."""
    not_seen: int
    """Samples that were in none."""


@dataclass(frozen=True)
class Exposure:
    """What the global batches before `until_step` have shown of the selected samples."""

    until_step: int
    total: Views
    cohorts: dict[str, Views]
    slides: dict[Slide, Views]
    """In the order of sample ids; samples whose slide is unknown make one entry a cohort."""
    views_per_sample: tuple[int, float, int]
    """Least, median, most."""

    @property
    def num_slides(self) -> int:
        """Known ones."""
        return sum(slide.name is not None for slide in self.slides)

    @property
    def slides_not_seen(self) -> int:
        return sum(slide.name is not None and not views.draws for slide, views in self.slides.items())

    @property
    def samples_without_slide(self) -> int:
        return sum(views.samples for slide, views in self.slides.items() if slide.name is None)


def count_exposure(dataset: Dataset, plan: Plan, until_step: int, report: Report | None = None) -> Exposure:
    """Count what the global batches 0 … `until_step` − 1 of `plan`, which is of `dataset`, have drawn.

    Holds one to four bytes for each sample of the dataset, and one more for a subset.

    Raises:
        ConfigError: a negative step.
    """
    views = count_views(plan, dataset.manifest.num_samples, until_step, report)
    slides: dict[Slide, int] = {}
    counts = np.zeros((3, 0), dtype=np.int64)
    histogram: Counter[int] = Counter()
    for ids, codes in slide_codes(dataset, slides):
        seen = views[ids]
        counts = np.pad(counts, ((0, 0), (0, len(slides) - counts.shape[1])))
        for row, what in enumerate((None, seen, seen == 0)):
            counts[row] += np.bincount(codes, what, len(slides)).astype(np.int64)
        histogram.update(dict(zip(*(array.tolist() for array in np.unique(seen, return_counts=True)), strict=True)))
    by_slide = {slide: Views(*column) for slide, column in zip(slides, counts.T.tolist(), strict=True)}
    cohorts = {
        name: _total(views for slide, views in by_slide.items() if slide.cohort == name)
        for name in dataset.manifest.cohorts
    }
    return Exposure(until_step, _total(cohorts.values()), cohorts, by_slide, _extent(histogram))


def count_views(plan: Plan, num_samples: int, until_step: int, report: Report | None = None) -> NDArray[Any]:
    """How often each sample is in the global batches before `until_step`: signed integers [num_samples], by sample id.

    Raises:
        ConfigError: a negative step.
    """
    if until_step < 0:
        raise ConfigError(f"--until-step is {until_step}, expected 0 or more")
    passes, pieces = plan.seen(until_step)
    # None is drawn more often than all draws among the fewest samples; a cap moves draws, but within an epoch.
    most = (until_step + plan.steps_per_epoch) * plan.order.batch_size // min(map(len, plan.selections)) + 2
    views = np.zeros(num_samples, dtype=np.min_scalar_type(-most))
    for selection, times in zip(plan.selections, passes, strict=True):
        views[selection.chosen()] += views.dtype.type(times)
    left_out, more = _changes(plan, passes, until_step)
    done = 0
    for ids, times in pieces:
        np.add.at(views, ids, views.dtype.type(times))
        done += len(ids)
        if report:
            report(min(done, left_out + more), left_out + more)
    if report:
        report(left_out + more, left_out + more)
    return views


def _changes(plan: Plan, passes: list[int], until_step: int) -> tuple[int, int]:
    """About how many draws are to be taken off the whole passes, and added to them."""
    in_passes = sum(times * len(selection) for selection, times in zip(plan.selections, passes, strict=True))
    whole_epochs = until_step // plan.steps_per_epoch * plan.steps_per_epoch
    left_out = 0 if plan.order.weights else in_passes - whole_epochs * plan.order.batch_size
    return left_out, until_step * plan.order.batch_size - in_passes + left_out


def slide_codes(dataset: Dataset, slides: dict[Slide, int]) -> Iterator[tuple[Ids, Ids]]:
    """The selected samples in the order of their ids, piece by piece: (ids, numbers of their slides), int64 [n] each.

    `slides` is filled with the slides as they come, numbered from 0.
    """
    selection = dataset.selection
    chosen = None if selection.mask is None else selection.chosen()
    for first, rows in dataset.batches(["cohort", "slide"]):
        ids = np.arange(first, first + len(rows))
        if chosen is not None:
            ids = ids[chosen[first : first + len(rows)]]
            rows = rows.take(ids - first)
        if len(ids):
            yield ids, _codes(rows["cohort"], rows["slide"], slides)


def _codes(cohort: Any, slide: Any, slides: dict[Slide, int]) -> Ids:
    cohort, slide = (column.combine_chunks().dictionary_encode() for column in (cohort, slide))
    cohorts, names = cohort.dictionary.to_pylist(), [None, *slide.dictionary.to_pylist()]
    pairs = cohort.indices.to_numpy().astype(np.int64) * len(names)
    pairs += slide.indices.fill_null(-1).to_numpy() + 1
    found, rows = np.unique(pairs, return_inverse=True)
    keys = [Slide(cohorts[pair // len(names)], names[pair % len(names)]) for pair in found.tolist()]
    codes: Ids = np.array([slides.setdefault(key, len(slides)) for key in keys], dtype=np.int64)[rows]
    return codes


def count_slides(dataset: Dataset) -> dict[Slide, int]:
    """Selected samples of each slide."""
    slides: dict[Slide, int] = {}
    sizes = np.zeros(0, dtype=np.int64)
    for _, codes in slide_codes(dataset, slides):
        sizes = np.pad(sizes, (0, len(slides) - len(sizes))) + np.bincount(codes, minlength=len(slides))
    return dict(zip(slides, sizes.tolist(), strict=True))


def cohort_sizes(dataset: Dataset, slides: Mapping[Slide, int]) -> dict[str, int]:
    """Selected samples of each cohort of the manifest, from those of its slides."""
    sizes = dict.fromkeys(dataset.manifest.cohorts, 0)
    for slide, count in slides.items():
        sizes[slide.cohort] += count
    return sizes


def cohort_shares(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of draws that each cohort should have: by its weight, or by its size where there are no weights."""
    if weights:
        return {name: checked_weights(sizes, weights).get(name, 0.0) for name in sizes}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def check_cap(dataset: Dataset, plan: Plan) -> None:
    """See that the plan's cap on samples of a slide, if it has one, can be kept. Reads two columns of the whole index.

    Raises:
        ConfigError: a slide fills more places of the mean batch than the cap allows, or no slide is known of what is
            drawn.
    """
    cap, order = plan.order.max_per_slide, plan.order
    if cap is None:
        return
    slides = count_slides(dataset)
    sizes = cohort_sizes(dataset, slides)
    shares = cohort_shares(sizes, order.weights)
    known = {slide: n for slide, n in slides.items() if slide.name is not None and shares[slide.cohort] > 0}
    if not known:
        raise ConfigError(
            f"data.max_per_slide is {cap}, but {shown(dataset.url)} knows the slide of no sample that is drawn; "
            "leave it out"
        )
    if order.weights:
        means = {slide: order.batch_size * shares[slide.cohort] * n / sizes[slide.cohort] for slide, n in known.items()}
    else:
        means = {slide: count / plan.steps_per_epoch for slide, count in known.items()}
    worst = max(means, key=means.__getitem__)
    if means[worst] > cap:
        raise ConfigError(
            f"data.max_per_slide is {cap}, but slide {worst.name!r} of cohort {worst.cohort!r} has {known[worst]} "
            f"samples, {means[worst]:.4g} in the mean batch; set it to at least {math.ceil(means[worst])}, or train on "
            "a subset made with 'dinowds subset --max-per-slide'"
        )


def _total(parts: Iterable[Views]) -> Views:
    columns = np.array([dataclasses.astuple(part) for part in parts], dtype=np.int64).reshape(-1, 3)
    return Views(*columns.sum(axis=0).tolist())


def _extent(histogram: Mapping[int, int]) -> tuple[int, float, int]:
    """Least, median and most of numbers that come as often as `histogram` says."""
    numbers, counts = np.array(sorted(histogram.items()), dtype=np.int64).T
    ends = np.cumsum(counts)
    middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    return int(numbers[0]), float(numbers[middle].mean()), int(numbers[-1])
