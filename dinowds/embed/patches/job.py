"""What an embedding of a dataset is: everything that follows from its arguments and from what they name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.embed.encoder import Encoder
from dinowds.embed.patches import folder
from dinowds.embed.patches.parts import Part
from dinowds.embed.patches.reader import FORMAT_VERSION, features_schema
from dinowds.errors import ConfigError, DatasetError
from dinowds.model.weights import Weights, read_weights
from dinowds.remote.files import shown
from dinowds.train.devices import choose_device
from dinowds.world import World


@dataclass(frozen=True)
class PatchOptions:
    """What `dinowds embed patch` is asked for."""

    checkpoint: str
    """As for `model.weights.read_weights`."""
    which: Literal["teacher", "student"] = "teacher"
    pos_interpolation: str | None = None
    """None: what the weights say."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of what is written."""
    tokens: bool = False
    """Write patch tokens too."""
    image_size: int | None = None
    """Side that images get by `stream.fit`, px; None: as they are."""
    precision: str = "auto"
    batch_size: int = 256
    """Images that go through the device at once."""
    workers: int | None = None
    """Loader processes of each rank; None: chosen by the cores."""
    max_bad: int = 100
    """Unreadable samples before the run stops."""
    overwrite: bool = False


@dataclass
class Survey:
    """What the index says of the selected samples."""

    cohorts: Counter[str] = field(default_factory=Counter)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    """(height, width), px → id of the first sample of that size."""


def survey(dataset: Dataset) -> Survey:
    """Reads three columns of the index; opens no shard."""
    found = Survey()
    chosen = None if dataset.subset is None else dataset.selection.chosen()
    for first, rows in dataset.batches(("cohort", "width", "height"), 1 << 20):
        ids = np.arange(first, first + len(rows))
        if chosen is not None:
            ids = ids[chosen[ids]]
            rows = rows.take(ids - first)
        found.cohorts.update({entry["values"]: entry["counts"] for entry in rows["cohort"].value_counts().to_pylist()})
        sizes: NDArray[np.int64] = rows["height"].to_numpy().astype(np.int64) << 32 | rows["width"].to_numpy()
        for size, place in zip(*(part.tolist() for part in np.unique(sizes, return_index=True)), strict=True):
            found.sizes.setdefault((size >> 32, size & 0xFFFFFFFF), int(ids[place]))
    return found


def check_sizes(dataset: Dataset, sizes: dict[tuple[int, int], int], patch_size: int, options: PatchOptions) -> int:
    """Refuse images that the model cannot take. Returns T, the patch tokens of an image that are written (0: none).

    Raises:
        ConfigError: a side is no multiple of the patch size; or images have different sizes, and with them different
            numbers of patch tokens.
    """
    if options.image_size is not None:
        if options.image_size < 1 or options.image_size % patch_size:
            raise ConfigError(
                f"--image-size is {options.image_size}, expected a multiple of {patch_size}, the patch size of "
                f"{options.checkpoint}"
            )
        sizes = {(options.image_size, options.image_size): 0}
    for (height, width), sample in sizes.items():
        if height % patch_size or width % patch_size:
            raise ConfigError(
                f"{_where(dataset, sample)}: image of {width}×{height} px, expected multiples of {patch_size}, the "
                f"patch size of {options.checkpoint}; give --image-size to resize all images"
            )
    if not options.tokens:
        return 0
    if len(sizes) > 1:
        first, other = list(sizes)[:2]
        raise ConfigError(
            f"{_where(dataset, sizes[other])}: image of {other[1]}×{other[0]} px, others have {first[1]}×{first[0]}; "
            "--tokens needs images of one size: give --image-size to resize all of them"
        )
    ((height, width),) = sizes
    return (height // patch_size) * (width // patch_size)


def _where(dataset: Dataset, sample: int) -> str:
    found = dataset[sample]
    return f"{shown(dataset.shard_url(found.shard))}: {found.key}"


@dataclass(frozen=True)
class Job:
    """One rank's view of it."""

    dataset: Dataset
    cohorts: dict[str, int]
    """Selected samples of each."""
    counts: list[int]
    """Selected samples of each shard."""
    weights: Weights
    encoder: Encoder
    options: PatchOptions
    world: World
    num_tokens: int
    """T: patch tokens that are written of each image; 0 for none."""

    @classmethod
    def open(cls, data: str | Path, options: PatchOptions, world: World) -> Job:
        """Raises DinowdsError for what cannot be embedded, before anything is written."""
        dataset = Dataset.open(data)
        if dataset.manifest.kind != "image":
            raise ConfigError(f"{data}: holds {dataset.manifest.kind} samples, 'dinowds embed patch' needs images")
        if not len(dataset):
            raise DatasetError(f"{data}: has no samples, expected images to embed")
        weights = read_weights(options.checkpoint, options.which, pos_interpolation=options.pos_interpolation)
        encoder = Encoder(weights, choose_device(world), options.precision, options.batch_size)
        found = survey(dataset)
        num_tokens = check_sizes(dataset, found.sizes, encoder.patch_size, options)
        cohorts = {name: found.cohorts[name] for name in dataset.manifest.cohorts}
        counts = dataset.selection.counts.tolist()
        return cls(dataset, cohorts, counts, weights, encoder, options, world, num_tokens)

    @property
    def question(self) -> dict[str, Any]:
        """By the names of options: those from which the files follow."""
        options = self.options
        return {
            "dataset": self.dataset.fingerprint,
            "checkpoint": self.weights.fingerprint,
            "dtype": options.dtype,
            "tokens": options.tokens,
            "image_size": options.image_size,
            "precision": self.encoder.precision,
            "batch_size": options.batch_size,
        }

    @property
    def digest(self) -> str:
        """Of the question."""
        return folder.digest_of(self.question)

    @property
    def schema(self) -> Any:
        """Of the files."""
        dtype = pa.float16() if self.options.dtype == "float16" else pa.float32()
        return features_schema(self.encoder.dim, dtype, self.num_tokens * self.encoder.dim or None)

    def about(self, parts: list[Part]) -> dict[str, Any]:
        """`features.json`."""
        manifest, weights = self.dataset.manifest, self.weights
        return {
            "format_version": FORMAT_VERSION,
            "kind": "features",
            "dataset": {
                "name": manifest.name,
                "subset": self.dataset.subset,
                "fingerprint": self.dataset.fingerprint,
            },
            "weights": {
                "path": weights.path,
                "family": weights.family,
                "which": weights.which,
                "fingerprint": weights.fingerprint,
            },
            "mean": list(weights.mean),
            "std": list(weights.std),
            "patch_size": self.encoder.patch_size,
            "pos_interpolation": weights.architecture.pos_interpolation,
            "dim": self.encoder.dim,
            "tokens": self.num_tokens,
            "dtype": self.options.dtype,
            "samples": sum(part.samples for part in parts),
            "bad_samples": sum(len(part.bad) for part in parts),
            "shards": len(parts),
            "cohorts": self.cohorts,
            "label_names": list(manifest.label_names),
            "metadata": manifest.metadata,
            "question": self.question,
        }
