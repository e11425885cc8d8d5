"""The three ways in which grids come of a source: region images, patches, features of patches."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import MANIFEST_NAME
from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.folder import digest_of
from dinowds.embed.patches.job import Job, PatchOptions, survey
from dinowds.embed.patches.reader import ABOUT_NAME, UNFINISHED_NAME, Features, read_features
from dinowds.embed.regions.images import count_parts, write_image_grids
from dinowds.embed.regions.parts import write_grids
from dinowds.embed.regions.places import Patches, patches_of_dataset, patches_of_features, row_names, sample_names
from dinowds.embed.regions.plan import Geometry, Plan, check_sizes, make_plan
from dinowds.embed.regions.work import Work
from dinowds.errors import ConfigError
from dinowds.shard.options import ShardOptions
from dinowds.train.devices import choose_num_workers
from dinowds.world import World

From = Literal["auto", "images", "patches", "features"]

IMAGE_PATCH_SIZE = 256
_SECONDS_BETWEEN_LOOKS = 0.2

Report = Callable[[str, int, int], None]
"""(what is done, so many, of so many), now and then, on every rank."""
Notice = Callable[[str], None]


@dataclass(frozen=True)
class RegionOptions:
    """What `dinowds embed region` is asked for. Sizes are in px of the patches, as they are stored."""

    region_size: int
    take: From = "auto"
    """What the source has."""
    patch_size: int | None = None
    """None: of patches their own, of region images 256."""
    stride: int | None = None
    """From one region to the next; None: `region_size`."""
    step: float | None = None
    """Between neighbouring patches, in the units of x and y; None: found from the positions, slide by slide."""
    min_filled: float = 0.5
    """Least share of a region's cells that must exist."""
    max_unplaced: float = 0.01
    """Largest share of patches that may be left out for where they lie."""
    embedding: PatchOptions | None = None
    """Weights, and how patches are embedded; None for features."""
    sharding: ShardOptions = field(default_factory=ShardOptions)
    """Its name, seed, shard_size, max_count, workers, memory and overwrite."""


@dataclass(frozen=True)
class Summary:
    """What a run would write."""

    made_from: From
    regions: int
    slides: int
    """Slides with regions; of images, 0 where slides are unknown."""
    cells: int
    """A side of a region."""
    missing_cells: int
    """Of all regions together."""
    sparse_regions: int
    """Left out since too few of their cells exist."""
    left_out: dict[str, int]
    """Reason → patches that have no cell."""
    step: Any
    """Of each cohort: a number; where its slides differ, {step: slides}. None for images."""

    def lines(self) -> list[str]:
        """For people, what they did not ask for or could not know."""
        found = [f"{count:,} patches are left out: {reason}" for reason, count in self.left_out.items()]
        if self.step is not None:
            found.append("distance of neighbouring patches: " + ", ".join(f"{c}: {s}" for c, s in self.step.items()))
        return found


class Way(ABC):
    """How grids come of a source."""

    made_from: From
    num_parts: int

    def __init__(self, source: str, options: RegionOptions) -> None:
        self.source, self.options = source, options

    @property
    def question(self) -> dict[str, Any]:
        """All that the grids follow from, and the dataset from them."""
        sharding = self.options.sharding
        return {
            "made from": self.made_from,
            **self.input,
            **self.geometry.facts(),
            "step": self.options.step,
            "seed": sharding.seed,
            "shard size": sharding.shard_size,
            "max count": sharding.max_count,
            "name": sharding.name,
        }

    @property
    @abstractmethod
    def input(self) -> dict[str, Any]:
        """What of the question is about the source and its features."""

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Sizes; raises ConfigError where they do not fit the source."""

    @abstractmethod
    def summary(self) -> Summary:
        """What will be written; raises where that cannot be done. On rank 0 alone."""

    @abstractmethod
    def make(self, work: Work, world: World, report: Report, notice: Notice) -> None:
        """This rank's part of the work. When rank 0 returns, all parts are in `work.grids`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the manifest says, once `make` is done."""


class OfImages(Way):
    """Images of whole regions."""

    made_from: From = "images"

    def __init__(self, source: str, options: RegionOptions) -> None:
        super().__init__(source, options)
        self.dataset = _images_of(source)
        self.num_parts = len(self.dataset.manifest.shards)

    @cached_property
    def geometry(self) -> Geometry:
        options = self.options
        if options.stride not in (None, options.region_size):
            raise ConfigError("--stride: the regions of images are the images; leave it out")
        if options.step is not None:
            raise ConfigError("--step: the patches of images lie side by side; leave it out")
        return Geometry.of(options.region_size, options.patch_size or IMAGE_PATCH_SIZE, None, 1.0)

    @cached_property
    def job(self) -> Job:
        return Job.open(self.source, _embedding(self), World.from_environment())

    @property
    def input(self) -> dict[str, Any]:
        side, token = self.geometry.patch_size, self.job.encoder.patch_size
        if side % token:
            raise ConfigError(
                f"--patch-size: is {side} px, expected a multiple of {token}, the side of a token of "
                f"{self.job.weights.path}"
            )
        return _without_images(self.job)

    def summary(self) -> Summary:
        side, cells = self.options.region_size, self.geometry.shape.cells
        for (height, width), sample in survey(self.dataset).sizes.items():
            if (height, width) != (side, side):
                raise ConfigError(
                    f"{self.source}: {self.dataset[sample].key}: image of {width}×{height} px, expected {side}×{side} "
                    "px as --region-size says; choose a subset of such images"
                )
        return Summary("images", len(self.dataset), 0, cells, 0, 0, {}, None)

    def make(self, work: Work, world: World, report: Report, notice: Notice) -> None:  # noqa: ARG002
        encoder, geometry = self.job.encoder, self.geometry
        mine = range(world.rank, self.num_parts, world.size)
        workers = choose_num_workers(_embedding(self).workers, world, encoder.device)

        def count(done: int, total: int) -> None:
            report("embed", done, total)

        write_image_grids(self.dataset, mine, geometry.patch_size, encoder, work.grids, workers, count)
        while world.rank == 0 and count_parts(work.grids, self.num_parts) < self.num_parts:
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def facts(self) -> dict[str, Any]:
        facts = self.job.about([])
        return _facts(self, self.geometry.facts(), facts, self.job.encoder.dim)


class Positioned(Way):
    """What has positions: a plan says which regions there are."""

    _plan: Plan | None = None

    @property
    @abstractmethod
    def patches(self) -> Patches:
        """All patches."""

    @abstractmethod
    def names(self, rows: Any) -> list[str]:
        """Of rows of `patches`, for messages."""

    @cached_property
    def geometry(self) -> Geometry:
        options = self.options
        side = check_sizes(self.patches, options.patch_size, self.source)
        return Geometry.of(options.region_size, side, options.stride, options.min_filled)

    def plan(self) -> Plan:
        if self._plan is None:
            options = self.options
            self._plan = make_plan(
                self.patches, self.geometry, options.step, options.max_unplaced, self.source, self.names
            )
        return self._plan

    def summary(self) -> Summary:
        plan = self.plan()
        return Summary(
            self.made_from,
            int(plan.num_regions.sum()),
            int(np.count_nonzero(plan.num_regions)),
            plan.geometry.shape.cells,
            plan.num_missing,
            plan.num_sparse,
            {why: len(rows) for why, rows in plan.left_out.items()},
            plan.steps_by_cohort(),
        )

    def write(self, features: Features, work: Work, report: Report) -> None:
        self.num_parts = write_grids(features, self.plan(), work.root, work.grids, report)
        self._features = features

    def facts(self) -> dict[str, Any]:
        plan = self.plan()
        geometry = plan.geometry.facts() | {"step": plan.steps_by_cohort(), "missing_cells": plan.num_missing}
        return _facts(self, geometry, self._features.about, self._features.dim)


class OfPatches(Positioned):
    """Patches of a dataset, which are embedded first."""

    made_from: From = "patches"

    def __init__(self, source: str, options: RegionOptions) -> None:
        super().__init__(source, options)
        self.dataset = _images_of(source)

    @cached_property
    def patches(self) -> Patches:
        return patches_of_dataset(self.dataset)

    def names(self, rows: Any) -> list[str]:
        return sample_names(self.dataset, rows)

    @cached_property
    def input(self) -> dict[str, Any]:
        return _without_images(Job.open(self.source, _embedding(self), World.from_environment()))

    def make(self, work: Work, world: World, report: Report, notice: Notice) -> None:
        def count(done: int, total: int) -> None:
            report("embed", done, total)

        embed_patches(self.source, work.features, _embedding(self), count, notice)
        if world.rank == 0:
            self.write(read_features(work.features), work, report)


class OfFeatures(Positioned):
    """Features that are there already."""

    made_from: From = "features"

    def __init__(self, source: str, options: RegionOptions) -> None:
        super().__init__(source, options)
        if options.embedding is not None:
            raise ConfigError(f"--checkpoint: {source} has features already; leave it out")
        self.features = read_features(source)

    @cached_property
    def patches(self) -> Patches:
        return patches_of_features(self.features)

    def names(self, rows: Any) -> list[str]:
        return row_names(self.features, rows)

    @property
    def input(self) -> dict[str, Any]:
        if self.features.about:
            return {"features": digest_of(self.features.about)}
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.features.files]
        return {"features": digest_of({"files": found})}

    def make(self, work: Work, world: World, report: Report, notice: Notice) -> None:  # noqa: ARG002
        if world.rank == 0:
            self.write(self.features, work, report)


def open_way(source: str, options: RegionOptions) -> Way:
    """What the source has, from what lies there and from the sizes of its images.

    Raises:
        ConfigError: it cannot be what `options.take` says, or is nothing that regions can come of.
        DatasetError: it cannot be read.
    """
    take = options.take
    if take == "auto":
        take = "features" if _has_features(Path(source)) else _kind_of_images(source, options.region_size)
    ways: dict[str, type[Way]] = {"features": OfFeatures, "images": OfImages, "patches": OfPatches}
    return ways[take](source, options)


def _has_features(path: Path) -> bool:
    if path.is_file() or not path.is_dir():
        return path.suffix == ".parquet"
    if any((path / name).exists() for name in (ABOUT_NAME, UNFINISHED_NAME)):
        return True
    return not (path / MANIFEST_NAME).exists() and any(path.glob("*.parquet"))


def _kind_of_images(source: str, region_size: int) -> From:
    dataset = _images_of(source)
    sizes = survey(dataset).sizes
    if all(max(size) < region_size for size in sizes):
        return "patches"
    if set(sizes) == {(region_size, region_size)}:
        return "images"
    (height, width), sample = next(item for item in sizes.items() if max(item[0]) >= region_size)
    raise ConfigError(
        f"{source}: {dataset[sample].key}: image of {width}×{height} px; expected {region_size}×{region_size} px in "
        "all, as --region-size says, or smaller patches in all; choose a subset of such images"
    )


def _images_of(source: str) -> Dataset:
    dataset = Dataset.open(source)
    if dataset.manifest.kind != "image":
        raise ConfigError(f"{source}: is a dataset of regions already; give one of images, or features")
    return dataset


def _embedding(way: Way) -> PatchOptions:
    if way.options.embedding is None:
        raise ConfigError(f"--checkpoint: is needed to embed the {way.made_from} of {way.source}; give a run or a file")
    return way.options.embedding


def _without_images(job: Job) -> dict[str, Any]:
    return {name: value for name, value in job.question.items() if name not in ("tokens", "image_size", "dtype")}


def _facts(way: Way, geometry: dict[str, Any], about: dict[str, Any], dim: int) -> dict[str, Any]:
    """Of the manifest. `about`: of `features.json`; {} for features of others."""
    encoder = None
    if about:
        weights = about["weights"]
        encoder = {
            "name": Path(weights["path"]).name,
            "family": weights["family"],
            "which": weights["which"],
            "fingerprint": weights["fingerprint"],
            **{name: about[name] for name in ("pos_interpolation", "mean", "std")},
        }
    facts = geometry | {"feature_dim": dim, "made_from": way.made_from, "encoder": encoder}
    source = about.get("dataset", {"name": Path(way.source).name})
    cohorts = about.get("metadata", {}).get("cohorts")
    return facts | {"source": source} | ({"cohorts": cohorts} if cohorts else {})
