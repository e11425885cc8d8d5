"""Four commands: cohort tars of patches with coordinates → shards → patch run → regions → region run."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinowds.data.dataset import Dataset
from dinowds.model.weights import load_backbone, read_weights
from tests.support import run_dinowds

PATCH, STEP, COLUMNS, ROWS = 32, 32, 7, 5
"""px; and patches of a slide."""


def write_cohort(path: Path, slides: list[str]) -> Path:
    """Slides of 7 × 5 patches, `SLIDE/X_Y.png`, listed column by column; each patch has a colour of its own."""
    with tarfile.open(path, "w") as tar:
        for number, slide in enumerate(slides):
            for column in range(COLUMNS):
                for row in range(ROWS):
                    content = io.BytesIO()
                    colour = (30 * column, 40 * row, 60 * number)
                    noise = np.random.default_rng(column * ROWS + row).integers(0, 30, (PATCH, PATCH, 3))
                    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(content, "PNG")
                    member = tarfile.TarInfo(f"{slide}/{1000 + STEP * column}_{500 + STEP * row}.png")
                    member.size = len(content.getvalue())
                    tar.addfile(member, io.BytesIO(content.getvalue()))
    return path


PATCH_RUN = (
    "student.arch=vit_tiny", "student.depth=1", "student.patch_size=8", "student.out_dim=64",
    "crops.global.size=16", "crops.local.size=8", "crops.local.count=2",
    "train.batch_size=8", "optim.epochs=2", "optim.warmup_epochs=1", "optim.max_steps=4",
    "speed.num_workers=0", "speed.precision=fp32",
)  # fmt: skip
REGION_RUN = (
    "student.depth=1", "student.out_dim=64", "crops.global.size=3", "crops.local.size=2", "crops.local.count=2",
    "train.batch_size=4", "optim.epochs=2", "optim.warmup_epochs=1", "optim.max_steps=3", "train.save_every=1",
    "speed.num_workers=0", "speed.precision=fp32",
)  # fmt: skip


def dinowds(*arguments: object) -> None:
    result = run_dinowds(*arguments)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_four_commands__from_tarballs_to_a_region_checkpoint(tmp_path: Path, ranks: int) -> None:
    tars = [write_cohort(tmp_path / "a.tar", ["s1", "s2"]), write_cohort(tmp_path / "b.tar", ["s3"])]
    patches, run, regions, region_run = (tmp_path / name for name in ("patches", "run", "regions", "region-run"))
    nproc = ("--nproc", ranks)
    dinowds("shard", *tars, "--out", patches, "--max-count", 40)
    dinowds("train", "patch", "--data", patches, "--out", run, *nproc, *PATCH_RUN)
    dinowds("embed", "region", patches, "--checkpoint", run, "--out", regions,
            "--region-size", 4 * PATCH, "--stride", 2 * PATCH, *nproc)  # fmt: skip
    dinowds("train", "region", "--data", regions, "--out", region_run, *nproc, *REGION_RUN)

    dataset = Dataset.open(regions)
    places = dataset.columns(["cohort", "slide", "x", "y", "width"]).to_pylist()
    assert {(row["cohort"], row["slide"]) for row in places} == {("a", "s1"), ("a", "s2"), ("b", "s3")}
    assert {row["width"] for row in places} == {4}
    assert min(row["x"] for row in places) == 1000
    assert min(row["y"] for row in places) == 500
    weights = read_weights(region_run)
    assert weights.architecture.in_dim == 192
    assert weights.about["samples"] == len(dataset)
    assert load_backbone(weights)(torch.zeros(2, 4, 4, 192)).shape == (2, 192)
