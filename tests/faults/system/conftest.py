"""What the tests of this room share: the command, and inputs of every part of the way. Read only."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import coded_image, png, write_tar, write_weights
from tests.support import make_dataset


@dataclass(frozen=True)
class Inputs:
    """`data`: 90 patches of 9 slides in two cohorts, 4 shards. `regions`: 16 of another slide, on a grid."""

    data: Path
    regions: Path
    weights: Path
    slides: Path
    """A list of two of the slides."""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    places = [(x, y) for y in range(4) for x in range(4)]
    members = {f"s/{32 * x}_{32 * y}.png": png(coded_image(x, y)) for x, y in places}
    tar = write_tar(root / "regions.tar", members)
    build_dataset([tar], root / "regions", ShardOptions(max_count=5))
    (root / "slides.txt").write_text("alpha/slide1\nalpha/slide4\n")
    return Inputs(
        make_dataset(root / "first"),
        root / "regions",
        write_weights(root / "weights.pt"),
        root / "slides.txt",
    )


@pytest.fixture(scope="session")
def root_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where this user may not mount a disk: not root, or root of a container without that right."""
    folder = str(tmp_path_factory.mktemp("disk"))
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount disks")
    subprocess.run(["umount", folder], check=True)
