"""A dataset that every reader takes, and what each must give."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dinowds.data.manifest import read_manifest
from dinowds.interop.names import READERS
from dinowds.interop.write import write_indexes
from dinowds.shard.build import ShardOptions, build_dataset
from tests.support import jpeg_patch


class Labelled(NamedTuple):
    """A dataset's folder and what it holds: key → bytes of the JPEG, number of its class."""

    folder: Path
    expected: dict[str, tuple[bytes, int]]

    @property
    def tars(self) -> list[Path]:
        return sorted((self.folder / "shards").glob("*.tar"))


def write_labelled(source: Path, num_patches: int) -> dict[str, tuple[bytes, int]]:
    """A folder of JPEG with a .cls beside each, of 12 classes; key → bytes, label in the source."""
    expected = {}
    for index in range(num_patches):
        folder = source / f"slide{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        label = index % 12
        (folder / f"{index}_{2 * index}.jpg").write_bytes(jpeg_patch(index))
        (folder / f"{index}_{2 * index}.cls").write_text(str(label))
        expected[f"{folder.name}/{index}_{2 * index}"] = jpeg_patch(index), label
    return expected


def build_labelled(source: Path, folder: Path, num_patches: int, max_count: int) -> Labelled:
    """A dataset of `write_labelled`."""
    written = write_labelled(source, num_patches)
    build_dataset([source], folder, ShardOptions(max_count=max_count))
    names = read_manifest(folder).label_names
    return Labelled(folder, {key: (payload, names.index(str(label))) for key, (payload, label) in written.items()})


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """40 labelled patches in 4 shards, indexed for all readers. Shared: read only."""
    folder = tmp_path_factory.mktemp("labelled")
    found = build_labelled(folder / "source", folder / "patches", 40, 11)
    write_indexes(str(found.folder), READERS)
    assert len(found.tars) == 4
    return found


def pixels(payload: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of an image, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
