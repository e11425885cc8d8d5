"""What differs between runs on images and on regions: the rest of the trainer does not know which it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dinowds.config import COMMANDS, PatchConfig, RegionConfig, RunConfig
from dinowds.crops.batches import Batch, Crop
from dinowds.crops.device import DeviceRenderer
from dinowds.crops.recipe import patch_recipe
from dinowds.crops.region import region_recipe
from dinowds.crops.region_batches import CropRegions
from dinowds.data.blocks import Blocks
from dinowds.data.dataset import Dataset
from dinowds.data.grids import decode_grid
from dinowds.data.source import PlanSource
from dinowds.data.store.cache import DEFAULT_CACHE, CacheOptions
from dinowds.data.store.store import open_store
from dinowds.errors import ConfigError, DatasetError, SampleError
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels
from dinowds.remote.files import shown
from dinowds.train.devices import resolve_renderer

_LOOKED_AT = 100

Stage = Callable[[Iterable[Any]], Iterator[Any]]


class ViewMaker(Protocol):
    """From samples to views, as a resolved configuration says."""

    mean: Channels | None
    """That the step normalises images with; None for regions, which it takes as they are."""
    std: Channels | None

    def stage(self, source: PlanSource, blocks: Blocks) -> Stage:
        """Of the training stream: samples → `Batch`."""

    def views(self, batch: Batch) -> dict[str, Tensor]:
        """Those of a batch, rendered here if they are not yet."""

    def check(self, dataset: Dataset) -> None:
        """Raise ConfigError where the index tells that views cannot be cut. Reads columns of the whole index."""

    def describe(self) -> str:
        """The model's name and its tokens."""


class _OfImages:
    mean: Channels | None = IMAGENET_MEAN
    std: Channels | None = IMAGENET_STD

    def __init__(self, config: PatchConfig, device: torch.device) -> None:
        self._config, self._recipe = config, patch_recipe(config.crops)
        self._render = DeviceRenderer(self._recipe, device) if config.crops.renderer == "device" else None

    def stage(self, source: PlanSource, blocks: Blocks) -> Stage:
        return Crop(source, self._recipe, self._config.crops.renderer, self._config.train.seed, blocks)

    def views(self, batch: Batch) -> dict[str, Tensor]:
        return self._render(*batch.images) if self._render and batch.images else batch.views

    def check(self, dataset: Dataset) -> None:
        """Views of images are resized, so any size will do."""

    def describe(self) -> str:
        return f"{self._config.student.arch}/{self._config.student.patch_size}"


class _OfRegions:
    mean: Channels | None = None
    std: Channels | None = None

    def __init__(self, config: RegionConfig) -> None:
        assert config.student.input_dim is not None
        self._config, self._recipe, self._channels = config, region_recipe(config.crops), config.student.input_dim

    def stage(self, source: PlanSource, blocks: Blocks) -> Stage:
        return CropRegions(source, self._recipe, self._channels, self._config.train.seed, blocks)

    def views(self, batch: Batch) -> dict[str, Tensor]:
        return batch.views

    def check(self, dataset: Dataset) -> None:
        table, chosen = dataset.columns(["key", "width", "height"]), dataset.selection.all_ids()
        columns, rows = (table[name].to_numpy()[chosen] for name in ("width", "height"))
        largest = max(self._recipe.outputs, key=lambda output: output.size)
        for bad, expected in (
            (rows != columns, "a square; a region is never reshaped, make the regions again or a subset without it"),
            (
                np.minimum(rows, columns) < largest.size,
                f"at least {largest.size} × {largest.size}; lower crops.{largest.name}.size or make larger regions",
            ),
        ):
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                raise ConfigError(
                    f"{shown(dataset.url)}: {table['key'][int(chosen[first])]} has {rows[first]} × {columns[first]} "
                    f"cells, expected {expected}"
                )

    def describe(self) -> str:
        return f"{self._config.student.arch} on cells of {self._channels} features"


def view_maker(config: RunConfig, device: torch.device) -> ViewMaker:
    """Of a resolved configuration.

    Raises:
        ConfigError: values of `crops` that cannot work.
    """
    if isinstance(config, PatchConfig):
        return _OfImages(config, device)
    assert isinstance(config, RegionConfig)
    return _OfRegions(config)


def check_kind(dataset: Dataset, config: RunConfig) -> None:
    """Raise ConfigError for a dataset of samples of the other kind."""
    if (kind := dataset.manifest.kind) != config.kind:
        raise ConfigError(
            f"{shown(dataset.url)}: holds {kind} samples, 'dinowds train {COMMANDS[config.kind]}' needs {config.kind}s;"
            f" give another --data, or use 'dinowds train {COMMANDS[kind]}'"
        )


def resolve_kind(config: RunConfig, dataset: Dataset, device: torch.device, cache: CacheOptions) -> RunConfig:
    """Put what the device and the dataset say in the place of auto and null.

    Raises:
        ConfigError: `student.input_dim` is not the dataset's.
        DatasetError: none of its first regions can be read.
    """
    if isinstance(config, PatchConfig):
        return replace(config, crops=replace(config.crops, renderer=resolve_renderer(config.crops.renderer, device)))
    assert isinstance(config, RegionConfig)
    asked, found = config.student.input_dim, cell_features(dataset, cache)
    if asked not in (None, found):
        raise ConfigError(
            f"student.input_dim is {asked}, but cells of {shown(dataset.url)} have {found} features; leave it out, or "
            "give another --data"
        )
    return replace(config, student=replace(config.student, input_dim=found))


def cell_features(dataset: Dataset, cache: CacheOptions = DEFAULT_CACHE) -> int:
    """Of the first region that can be read. Raises DatasetError where there is none."""
    store, why = open_store(dataset, cache=cache), "it is empty"
    for sample in dataset.samples(dataset.selection.ids(np.arange(min(_LOOKED_AT, len(dataset))))):
        try:
            return int(decode_grid(store.read(sample)).shape[-1])
        except SampleError as error:
            why = f"{sample.key}: {error}"
    raise DatasetError(f"{shown(dataset.url)}: none of its first regions can be read; {why}")
