"""Which regions there will be, and which patches have no place in them: known before anything is embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinowds.embed.regions.grids import (
    Cells,
    Int64s,
    Neighbours,
    Regions,
    Shape,
    choose_step,
    common_step,
    cut_regions,
    look_at_neighbours,
    place,
)
from dinowds.embed.regions.places import Patches
from dinowds.errors import ConfigError, SourceError

NO_PLACE = "its slide, x or y is unknown"
OFF_LATTICE = "lies between the cells of its slide's lattice"
SECOND = "another patch has its place"


@dataclass(frozen=True)
class Geometry:
    """Sizes of regions and patches, px."""

    region_size: int
    patch_size: int
    shape: Shape

    @classmethod
    def of(cls, region_size: int, patch_size: int, stride: int | None, min_filled: float) -> Geometry:
        """Raises ConfigError where sizes do not fit."""
        if patch_size < 1:
            raise ConfigError(f"--patch-size: is {patch_size}, expected at least 1")
        if region_size < patch_size or region_size % patch_size:
            raise ConfigError(
                f"--region-size: is {region_size} px, expected a multiple of the {patch_size} px of a patch"
            )
        stride = region_size if stride is None else stride
        if stride < 1 or stride % patch_size:
            raise ConfigError(f"--stride: is {stride} px, expected a multiple of the {patch_size} px of a patch")
        return cls(region_size, patch_size, Shape(region_size // patch_size, stride // patch_size, min_filled))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "region_size": self.region_size,
            "patch_size": self.patch_size,
            "stride": self.shape.stride * self.patch_size,
            "min_filled": self.shape.min_filled,
        }


@dataclass(frozen=True)
class Plan:
    """All regions of all slides; cells themselves are found again when a slide's turn comes."""

    patches: Patches
    geometry: Geometry
    steps: list[float]
    """Of each slide; see `grids.place`."""
    num_regions: Int64s
    """Of each slide."""
    num_missing: int
    """Cells of regions that do not exist."""
    num_sparse: int
    """Regions with some cells, but too few."""
    left_out: dict[str, Int64s]
    """Reason → rows of the patches that have no cell."""

    def cells(self, slide: int) -> Cells:
        """Where the patches of a slide are, in the order of `Patches.rows`."""
        rows = self.patches.rows(slide)
        return place(self.patches.x[rows], self.patches.y[rows], self.steps[slide])

    def regions(self, cells: Cells) -> Regions:
        """Those of a slide."""
        return cut_regions(cells, self.geometry.shape)[0]

    def steps_by_cohort(self) -> dict[str, Any]:
        """The step of each cohort; where its slides differ, the number of slides of each step."""
        found: dict[str, Counter[str]] = {}
        for (cohort, _), step in zip(self.patches.slides, self.steps, strict=True):
            found.setdefault(cohort, Counter())[f"{step:.6g}"] += 1
        return {
            cohort: float(next(iter(counts))) if len(counts) == 1 else dict(sorted(counts.items()))
            for cohort, counts in found.items()
        }


def make_plan(
    patches: Patches,
    geometry: Geometry,
    step: float | None,
    max_unplaced: float,
    source: str,
    names_of: Callable[[Int64s], list[str]],
) -> Plan:
    """Place all patches and cut regions.

    Args:
        step: of all slides; None to find each slide's.
        max_unplaced: largest share of patches that may have no cell of their own.
        source, names_of: what messages call the source, and its rows.

    Raises:
        ConfigError: an option does not fit the patches, or there is no region at all.
        SourceError: too many patches have no cell.
    """
    if step is not None and not 0 < step < float("inf"):
        raise ConfigError(f"--step: is {step:g}, expected a distance above 0")
    if not 0 <= max_unplaced <= 1:
        raise ConfigError(f"--max-unplaced: is {max_unplaced:g}, expected a share from 0 to 1")
    steps = _steps(patches, step, source)
    count = np.zeros(len(patches.slides), np.int64)
    missing, sparse = 0, 0
    found: dict[str, list[Int64s]] = {NO_PLACE: [patches.unknown], OFF_LATTICE: [], SECOND: []}
    for slide in range(len(patches.slides)):
        rows = patches.rows(slide)
        cells = place(patches.x[rows], patches.y[rows], steps[slide])
        found[SECOND].append(rows[cells.is_second])
        found[OFF_LATTICE].append(rows[~cells.is_placed & ~cells.is_second])
        regions, few = cut_regions(cells, geometry.shape)
        count[slide] = len(regions.row)
        missing += len(regions.row) * geometry.shape.cells**2 - int(regions.num_filled.sum())
        sparse += few
    left_out = {why: np.concatenate(rows) for why, rows in found.items() if any(map(len, rows))}
    plan = Plan(patches, geometry, steps, count, missing, sparse, left_out)
    _check_unplaced(plan, max_unplaced, source, names_of)
    if not count.sum():
        n = geometry.shape.cells
        raise ConfigError(
            f"{source}: no region of {n}×{n} cells has {geometry.shape.min_count} of them, among {sparse:,} on "
            f"{len(patches.slides):,} slides; give a smaller --region-size or --min-filled"
        )
    return plan


def check_sizes(patches: Patches, patch_size: int | None, source: str) -> int:
    """The side of a patch, px. Raises ConfigError where it is unknown, or patches differ."""
    for width, height in sorted(patches.sizes):
        if len(patches.sizes) > 1 or width != height:
            found = " and ".join(f"{w}×{h}" for w, h in sorted(patches.sizes))
            raise ConfigError(
                f"{source}: has patches of {found} px, expected squares of one size; choose a subset of such"
            )
    own = next(iter(patches.sizes))[0] if patches.sizes else None
    if own is None and patch_size is None:
        raise ConfigError(f"--patch-size: {source} does not say how large its patches are; give their side, px")
    if patch_size is not None and own is not None and patch_size != own:
        raise ConfigError(f"--patch-size: is {patch_size}, but patches of {source} are {own}×{own} px; leave it out")
    side = own or patch_size
    assert side is not None
    return side


def _steps(patches: Patches, step: float | None, source: str) -> list[float]:
    if step is not None:
        return [step] * len(patches.slides)
    neighbours = [look_at_neighbours(patches.x[rows], patches.y[rows]) for rows in _rows(patches)]
    by_cohort: dict[str, list[Neighbours]] = {cohort: [] for cohort, _ in patches.slides}
    for (cohort, _), found in zip(patches.slides, neighbours, strict=True):
        by_cohort[cohort] += [] if found is None else [found]
    of_cohort = {cohort: common_step(found) for cohort, found in by_cohort.items()}
    if lonely := [cohort for cohort, found in of_cohort.items() if found is None]:
        raise ConfigError(
            f"--step: cannot be found: no two patches of {source}, cohort {lonely[0]!r}, share a row or a column of "
            "their slide; give the distance between neighbours in the units of x and y"
        )
    chosen = []
    for (cohort, _), found, rows in zip(patches.slides, neighbours, _rows(patches), strict=True):
        usual = of_cohort[cohort]
        assert usual is not None
        chosen.append(choose_step(patches.x[rows], patches.y[rows], found, usual))
    return chosen


def _rows(patches: Patches) -> Iterator[Int64s]:
    return (patches.rows(slide) for slide in range(len(patches.slides)))


def _check_unplaced(plan: Plan, most: float, source: str, names_of: Callable[[Int64s], list[str]]) -> None:
    patches, total = plan.patches, sum(map(len, plan.left_out.values()))
    if total <= most * len(patches):
        return
    why, rows = max(plan.left_out.items(), key=lambda item: len(item[1]))
    row = int(rows[0])
    name = names_of(np.array([row]))[0]
    where, advice = "", "shard the patches with --key-pattern or a layout that tells slide, x and y"
    if why != NO_PLACE:
        slide = int(patches.slide_of[row])
        x, y = int(patches.x[row]), int(patches.y[row])
        where = f" (slide {patches.slides[slide][1]!r}, x {x}, y {y}, step {plan.steps[slide]:g})"
        advice = "give --step if it is wrong" if why == OFF_LATTICE else "see that slides have names of their own"
    share = total / len(patches)
    raise SourceError(
        f"{source}: {total:,} of {len(patches):,} patches have no cell; of {len(rows):,} the reason is: {why}, such as "
        f"{name}{where}; {advice}, or --max-unplaced {min(1.0, np.ceil(share * 1000) / 1000):g} to leave them out"
    )
