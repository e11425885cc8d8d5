"""Photographs → cohort tars: patches at random places, and patches on a lattice, of which regions are made."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.errors import ConfigError
from dinowds.files import atomic_write, write_atomic

COHORTS = {
    "tissue": ("ihc.png", "retina.jpg", "cell.png"),
    "texture": ("brick.png", "grass.png", "gravel.png", "coins.png", "moon.png", "hubble_deep_field.jpg"),
    "scenes": (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "clock_motion.png", "motorcycle_left.png",
        "rocket.jpg",
    ),
}  # fmt: skip
PATCH_SIZE = 64
TRAIN_SHARE = 0.6
SIDES = {"train": "left", "test": "right"}
"""Of each photograph, which make two slides: what is tested with was not trained on."""
TRAIN_PATCHES, TEST_PATCHES = 240, 80
"""Patches of each photograph."""
CELL_SIZE = 32
"""Side of a patch on the lattice, px."""
MIN_SPREAD = 1.0
"""Standard deviation, grey levels: of a photograph's black corners all patches would be the same."""
MAX_SIDE = 640
"""Larger photographs are reduced before the lattice is laid, so that none has most of the regions."""

Grey = NDArray[np.float32]
Places = Iterable[tuple[int, int]]
"""(left, top) of patches, px."""


def photo_folder() -> Path:
    """Where scikit-image keeps its photographs.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError:
        raise ConfigError("the demo needs scikit-image's photographs; pip install 'dinowds[demo]'") from None
    return Path(skimage.__file__).parent / "data"


def photo_names() -> list[str]:
    return [Path(name).stem for names in COHORTS.values() for name in names]


def write_cohorts(folder: Path, split: str, seed: int = 0) -> list[Path]:
    """Patches at random places of the `train` or `test` side of every photograph."""

    def places(number: int, photo: Grey) -> Places:
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, split == "train")))
        left, right = _side(photo, split)
        count = TRAIN_PATCHES if split == "train" else TEST_PATCHES
        xs = generator.integers(left, right - PATCH_SIZE + 1, count).tolist()
        ys = generator.integers(0, len(photo) - PATCH_SIZE + 1, count).tolist()
        return sorted(set(zip(xs, ys, strict=True)))

    return _write(folder, PATCH_SIZE, split, places, max_side=None)


def write_lattices(folder: Path, split: str) -> list[Path]:
    """Neighbouring patches of `CELL_SIZE` px that fill the `train` or `test` side of every photograph."""

    def places(_: int, photo: Grey) -> Places:
        left, right = _side(photo, split)
        xs = range(left, right - CELL_SIZE + 1, CELL_SIZE)
        return ((x, y) for y in range(0, len(photo) - CELL_SIZE + 1, CELL_SIZE) for x in xs)

    return _write(folder, CELL_SIZE, split, places, MAX_SIDE)


def write_labels(path: Path) -> Path:
    """A table for `dinowds shard --labels`: the label of both slides of a photograph is its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{_slide(name, split)},{name}\n" for name in photo_names() for split in SIDES]
    write_atomic(path, ("slide,label\n" + "".join(rows)).encode())
    return path


def photo_of(slide: str) -> str:
    """The photograph whose side a slide is."""
    return slide.rpartition("-")[0]


def _slide(photo: str, split: str) -> str:
    return f"{photo}-{SIDES[split]}"


def _side(photo: Grey, split: str) -> tuple[int, int]:
    """The columns of a split: first, and one past the last."""
    edge = round(photo.shape[1] * TRAIN_SHARE)
    return (0, edge) if split == "train" else (edge, photo.shape[1])


def _write(
    folder: Path, size: int, split: str, places: Callable[[int, Grey], Places], max_side: int | None
) -> list[Path]:
    """One tar a cohort, `PHOTO-SIDE/X_Y.png` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    photos, paths = photo_folder(), []
    for cohort, names in COHORTS.items():
        paths.append(folder / f"{cohort}.tar")
        with atomic_write(paths[-1]) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for number, name in enumerate(names):
                photo = _load(photos / name, max_side)
                slide = _slide(Path(name).stem, split)
                for x, y in places(number, photo):
                    patch = photo[y : y + size, x : x + size]
                    if patch.std() >= MIN_SPREAD:
                        _add(tar, f"{slide}/{x}_{y}.png", standardise(patch))
    return paths


def _load(path: Path, max_side: int | None) -> Grey:
    with Image.open(path) as image:
        grey = image.convert("L")
    if max_side:
        grey.thumbnail((max_side, max_side))
    return np.asarray(grey, dtype=np.float32)


def _add(tar: tarfile.TarFile, name: str, patch: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    Image.fromarray(patch).save(content, "PNG")
    member = tarfile.TarInfo(name)
    member.size = len(content.getvalue())
    tar.addfile(member, io.BytesIO(content.getvalue()))


def standardise(patch: Grey) -> NDArray[np.uint8]:
    """Grey [H, W] → mean 128, standard deviation 48, clipped to 0 … 255."""
    spread = max(float(patch.std()), 1e-3)
    grey: NDArray[np.uint8] = np.clip((patch - patch.mean()) * (48 / spread) + 128, 0, 255).round().astype(np.uint8)
    return grey
