"""How well the batches of an epoch are mixed, against what a uniform draw of the same samples would give."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.order.exposure import Report, Slide, cohort_shares, cohort_sizes, slide_codes
from dinowds.data.order.plan import Ids, Plan
from dinowds.errors import ConfigError, DatasetError
from dinowds.remote.urls import shown

SAMPLED_BATCHES = 200
"""Of a longer epoch so many are looked at, evenly spread: the mean of their distinct slides is known to about 0.1 %."""
EDGE_BATCHES = 8
"""First and last ones of an epoch that are looked at too: mixing may differ there, where windows begin and end."""
_PLANNED_DRAWS = 1 << 20


@dataclass(frozen=True)
class Quality:
    """Means are over evenly spread batches, or over all."""

    epoch: int
    batches: int
    """That were looked at: evenly spread ones, and those at the epoch's edges."""
    steps_per_epoch: int
    distinct_slides: float
    """Of a batch, mean."""
    expected_slides: float
    """The same of uniform draws without replacement, of all samples; where there are weights, of each cohort's."""
    first_ratio: float | None
    """`ratio` of the epoch's first EDGE_BATCHES batches; None where no slide is to be expected in them."""
    last_ratio: float | None
    """The same of the last ones."""
    samples_without_slide: float
    """Of a batch, mean; they count for no slide."""
    most_of_a_slide: int
    """Largest number of samples of one slide in any batch that was looked at."""
    cap: int | None
    cohorts: dict[str, tuple[float, float]]
    """Share of the draws, and the share that is to be expected."""

    @property
    def ratio(self) -> float:
        """1 for a uniform shuffle, less where neighbours come together."""
        return self.distinct_slides / self.expected_slides

    @property
    def cap_kept(self) -> bool | None:
        """In the batches that were looked at; None where there is no cap."""
        return None if self.cap is None else self.most_of_a_slide <= self.cap

    @property
    def is_whole(self) -> bool:
        """Whether each batch of the epoch was looked at."""
        return self.batches == self.steps_per_epoch


def measure_quality(dataset: Dataset, plan: Plan, epoch: int = 0, report: Report | None = None) -> Quality:
    """Look at the batches of an epoch of `plan`, which is of `dataset`.

    Raises:
        ConfigError: a negative epoch.
        DatasetError: no slide is known of the samples that are drawn.
    """
    if epoch < 0:
        raise ConfigError(f"--epoch is {epoch}, expected 0 or more")
    count = plan.steps_per_epoch
    edge = np.arange(min(EDGE_BATCHES, count), dtype=np.int64)
    spread, first, last = spread_steps(count), edge, count - 1 - edge
    steps = np.unique(np.concatenate([spread, first, last]))
    spread, first, last = (np.searchsorted(steps, part) for part in (spread, first, last))
    ids, visits = _draw(plan, steps + epoch * count, report)
    slides: dict[Slide, int] = {}
    codes, sizes = _look_up(dataset, ids, slides)
    names = list(slides)
    samples = cohort_sizes(dataset, dict(zip(names, sizes.tolist(), strict=True)))
    cohort_of = np.array([list(samples).index(slide.cohort) for slide in names])
    # Where there are weights, each cohort is drawn from on its own.
    stratum_of = cohort_of if plan.order.weights else np.zeros_like(cohort_of)
    is_known = np.array([slide.name is not None for slide in names])
    if not (is_known & np.isin(stratum_of, stratum_of[codes[spread]])).any():
        raise DatasetError(
            f"{shown(dataset.url)}: the slide of no sample that is drawn is known, "
            "so there is nothing to compare batches by"
        )
    expectation = Expectation(sizes, stratum_of, is_known)
    expected = np.array([expectation.of(*row) for row in zip(stratum_of[codes], visits, strict=True)])
    known = is_known[codes]
    row_of = np.nonzero(known)[0]
    pairs, counts = np.unique(row_of * len(names) + codes[known], return_counts=True)
    distinct = np.bincount(pairs // len(names), minlength=len(steps))
    shares = np.bincount(cohort_of[codes[spread]].ravel(), minlength=len(samples)) / codes[spread].size
    expected_shares = cohort_shares(samples, plan.order.weights)
    return Quality(
        epoch=epoch,
        batches=len(steps),
        steps_per_epoch=count,
        distinct_slides=float(distinct[spread].mean()),
        expected_slides=float(expected[spread].mean()),
        first_ratio=_ratio(distinct[first], expected[first]),
        last_ratio=_ratio(distinct[last], expected[last]),
        samples_without_slide=float(np.count_nonzero(~known[spread])) / len(spread),
        most_of_a_slide=int(counts.max(initial=0)),
        cap=plan.order.max_per_slide,
        cohorts={name: (share, expected_shares[name]) for name, share in zip(samples, shares.tolist(), strict=True)},
    )


def _ratio(distinct: Ids, expected: NDArray[np.float64]) -> float | None:
    return float(distinct.sum() / expected.sum()) if expected.sum() > 0 else None


def spread_steps(num_steps: int, limit: int = SAMPLED_BATCHES) -> Ids:
    """int64: all of 0 … num_steps − 1, or `limit` of them that are evenly spread."""
    count = min(num_steps, limit)
    return (2 * np.arange(count, dtype=np.int64) + 1) * num_steps // (2 * count)


class Expectation:
    """Distinct slides that uniform draws without replacement would have."""

    def __init__(self, sizes: Ids, stratum_of: Ids, is_known: NDArray[np.bool_]) -> None:
        """
        Args:
            sizes: int64 [slides], samples of each.
            stratum_of: int64 [slides]; each stratum is drawn from on its own.
            is_known: whether it is a slide, or the samples of which none is known.
        """
        self._strata = []
        for stratum in range(int(stratum_of.max()) + 1):
            mine = stratum_of == stratum
            self._strata.append((int(sizes[mine].sum()), *np.unique(sizes[mine & is_known], return_counts=True)))
        self._log_missed = functools.lru_cache(1024)(self._compute)

    def of(self, strata: Ids, visits: Ids) -> float:
        """Of a batch: int64 [n], the stratum of each sample, and the pass over it in which it is drawn.

        A slide is missed if each of the passes that the batch draws from misses it.
        """
        expected = 0.0
        for stratum in np.unique(strata).tolist():
            _, sizes, slides = self._strata[stratum]
            draws = np.unique(visits[strata == stratum], return_counts=True)[1].tolist()
            log_missed = sum((self._log_missed(stratum, count) for count in draws), np.zeros(len(sizes)))
            expected += float(-(slides * np.expm1(log_missed)).sum())
        return expected

    def _compute(self, stratum: int, draws: int) -> NDArray[np.float64]:
        total, sizes, _ = self._strata[stratum]
        return log_missed(sizes, total, draws)


def log_missed(sizes: Ids, total: int, draws: int) -> NDArray[np.float64]:
    """Logarithm of the probability that `draws` of `total` samples are none of a slide's n: C(N − n, B) / C(N, B).

    As Π_{i < n} (1 − B / (N − i)): quotients of factorials of large numbers would leave no digits.

    Args:
        sizes: int64 [slides], n of each, 1 … total.
    """
    hit = np.minimum(1.0, draws / (total - np.arange(sizes.max(initial=0))))
    with np.errstate(divide="ignore"):  # a slide that cannot be missed
        found: NDArray[np.float64] = np.cumsum(np.log1p(-hit))[sizes - 1]
    return found


def _draw(plan: Plan, steps: Ids, report: Report | None) -> tuple[Ids, Ids]:
    """Sample ids and visits, int64 [steps, B] each."""
    at_once = max(1, _PLANNED_DRAWS // plan.order.batch_size)
    found = []
    for start in range(0, len(steps), at_once):
        draws = plan.draws(steps[start : start + at_once].tolist())
        found.append((draws.ids, draws.visits))
        if report:
            report(min(start + at_once, len(steps)), len(steps))
    ids, visits = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return ids, visits


def _look_up(dataset: Dataset, ids: Ids, slides: dict[Slide, int]) -> tuple[Ids, Ids]:
    """The number of the slide of each of `ids`, in the same shape, and the selected samples of each slide."""
    order = np.argsort(ids, axis=None)
    wanted = ids.ravel()[order]
    codes = np.empty(ids.size, dtype=np.int64)
    sizes = np.zeros(0, dtype=np.int64)
    for piece, piece_codes in slide_codes(dataset, slides):
        sizes = np.pad(sizes, (0, len(slides) - len(sizes))) + np.bincount(piece_codes, minlength=len(slides))
        mine = slice(*np.searchsorted(wanted, [piece[0], piece[-1] + 1]))
        codes[order[mine]] = piece_codes[np.searchsorted(piece, wanted[mine])]
    return codes.reshape(ids.shape), sizes
