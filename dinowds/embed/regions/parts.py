"""Features of patches → grids, slide by slide, in memory that does not grow with their number.

The features of a slide lie all over the files of a shuffled dataset. They are dealt once, in sequence, to files of some
slides each (buckets), and each of these becomes one part of the layout `grids`.

    bucket-000000.f16: float16 [rows, C], the rows of its slides in the order of the source · dealt.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinowds.embed.patches.reader import FEATURE, Features
from dinowds.embed.regions.grids import CellIndex, Int64s
from dinowds.embed.regions.places import row_names
from dinowds.embed.regions.plan import Plan
from dinowds.errors import DatasetError
from dinowds.files import fsync_folder, write_atomic
from dinowds.shard.sources.layouts.grids import Grid, Refused, has_part, write_part

BUCKET_BYTES = 1 << 30
NO_FEATURES = "too few of its patches have features"

_DEALT = "dealt.json"

Float16s = NDArray[np.float16]
Report = Callable[[str, int, int], None]
"""(what is done, so many, of so many)."""


def write_grids(
    features: Features, plan: Plan, work: Path, grids: Path, report: Report, bucket_bytes: int = BUCKET_BYTES
) -> int:
    """Write all regions of a plan as parts in `grids`; the number of parts. Goes on where an earlier call ended.

    Args:
        work: folder for buckets, which are removed one by one.

    Raises:
        DatasetError: a feature is not finite, or too large for float16.
    """
    buckets = _cut(plan, features.dim, bucket_bytes)
    if not has_part(grids, 0):
        write_part(grids, 0, _left_out(features, plan))
    numbers = range(1, 1 + len(buckets))
    if not all(has_part(grids, number) for number in numbers):
        if not _is_dealt(work, len(buckets)):
            _deal(features, plan, buckets, work, report)
        for number, slides in zip(numbers, buckets, strict=True):
            if not has_part(grids, number):
                write_part(grids, number, _grids(plan, slides, _bucket(work, number - 1), features.dim))
            _bucket(work, number - 1).unlink(missing_ok=True)
            report("assemble", number, len(buckets))
    return 1 + len(buckets)


def region_name(slide: str, x: int, y: int) -> str:
    """What a region is called, by its slide and the place of its top left cell."""
    return f"{slide}/{x}_{y}"


def check_features(features: NDArray[np.floating], names: Callable[[int], str]) -> Float16s:
    """[N, C] → float16, where each row is finite, or NaN as a whole: there is no feature.

    Raises DatasetError, which names the first other one by `names(row)`.
    """
    with np.errstate(over="ignore"):
        found = features.astype(np.float16, copy=False)
    is_finite = np.isfinite(found)
    if is_finite.all():
        return found
    bad = ~is_finite.all(axis=1) & ~np.isnan(features).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        too_large = np.isfinite(features[row]).all()
        what = (
            f"a feature of {np.abs(features[row]).max():g}, and float16 ends at 65,504"
            if too_large
            else ("features that are not finite")
        )
        raise DatasetError(f"{names(row)}: has {what}; leave it out, or embed it with other weights")
    return found


def _cut(plan: Plan, dim: int, bucket_bytes: int) -> list[list[int]]:
    """Slides that have regions, some to a bucket."""
    buckets: list[list[int]] = []
    room = 0
    for slide in np.flatnonzero(plan.num_regions).tolist():
        num_bytes = 2 * dim * len(plan.patches.rows(slide))
        if not buckets or num_bytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(slide)
        room -= num_bytes
    return buckets


def _left_out(features: Features, plan: Plan) -> Iterator[Refused]:
    rows = [(row, why) for why, found in plan.left_out.items() for row in found.tolist()]
    if rows:
        rows.sort()
        names = row_names(features, np.array([row for row, _ in rows]))
        yield from (Refused(name, why) for name, (_, why) in zip(names, rows, strict=True))


def _deal(features: Features, plan: Plan, buckets: list[list[int]], work: Path, report: Report) -> None:
    """Write the features of each bucket's slides to its file."""
    for path in work.glob("bucket-*.f16"):
        path.unlink()
    bucket_of = np.full(len(plan.patches.slides) + 1, -1, np.int32)  # the last one for patches without a slide
    for number, slides in enumerate(buckets):
        bucket_of[slides] = number
    first = 0
    for table in features.tables([FEATURE]):
        found = check_features(features.matrix(table), partial(_row_name, features, first))
        to = bucket_of[plan.patches.slide_of[first : first + len(found)]]
        order = np.argsort(to, kind="stable")
        edges = np.flatnonzero(np.diff(to[order], prepend=-2, append=len(buckets)))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if (number := int(to[order[start]])) >= 0:
                with open(_bucket(work, number), "ab") as file:
                    file.write(np.ascontiguousarray(found[order[start:stop]]).data)
        first += len(found)
        report("deal", first, len(features))
    for number in range(len(buckets)):
        with open(_bucket(work, number), "rb") as file:
            os.fsync(file.fileno())
    fsync_folder(work)
    write_atomic(work / _DEALT, json.dumps({"buckets": len(buckets)}).encode())


def _row_name(features: Features, first: int, row: int) -> str:
    return row_names(features, np.array([first + row]))[0]


def _is_dealt(work: Path, count: int) -> bool:
    try:
        return bool(json.loads((work / _DEALT).read_bytes()) == {"buckets": count})
    except (OSError, ValueError):
        return False


def _grids(plan: Plan, slides: list[int], bucket: Path, dim: int) -> Iterator[Grid | Refused]:
    """The regions of some slides, by slides, then rows, then columns."""
    rows = np.sort(np.concatenate([plan.patches.rows(slide) for slide in slides]))
    features: Float16s = np.memmap(bucket, np.float16, "r", shape=(len(rows), dim))
    for slide in slides:
        own = plan.patches.rows(slide)
        yield from _slide_grids(plan, slide, own, features[np.searchsorted(rows, own)])


def _slide_grids(plan: Plan, slide: int, rows: Int64s, features: Float16s) -> Iterator[Grid | Refused]:
    """The regions of one slide; `features` are those of its patches, [P, C]."""
    shape, patches = plan.geometry.shape, plan.patches
    cohort, name = patches.slides[slide]
    cells, step = plan.cells(slide), plan.steps[slide]
    regions, index = plan.regions(cells), CellIndex(cells)
    has_feature = ~np.isnan(features[:, 0])
    for row, column in zip(regions.row.tolist(), regions.column.tolist(), strict=True):
        which = index.patches(row, column, shape.cells)
        x, y = round(cells.x + column * step), round(cells.y + row * step)
        exists = (which >= 0) & has_feature[which]
        if np.count_nonzero(exists) < shape.min_count:
            yield Refused(region_name(name, x, y), NO_FEATURES)
            continue
        grid = np.where(exists[..., None], features[which], np.float16(np.nan))
        labels = np.unique(patches.label_of[rows[which[which >= 0]]])
        label = patches.label_names[labels[0]] if len(labels) == 1 and labels[0] >= 0 else None
        yield Grid(grid, region_name(name, x, y), None, name, x, y, label, cohort)


def _bucket(work: Path, number: int) -> Path:
    return work / f"bucket-{number:06d}.f16"
