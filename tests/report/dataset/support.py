"""Small datasets of which everything is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinowds.shard.build import ShardOptions, build_dataset

HOSTILE = "<script>alert(1)</script>"

Row = tuple[str, str, str, int | None, int | None, NDArray[np.uint8]]
"""Cohort, slide, label ('' for none), x, y, pixels."""


def tinted(colour: Sequence[int], seed: int, side: int = 32) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]: a colour with a little noise."""
    noise = np.random.default_rng(seed).normal(0, 8, (side, side, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def make_listed(folder: Path, rows: Sequence[Row], options: ShardOptions | None = None) -> Path:
    """A dataset of these images, as PNG."""
    folder.mkdir(parents=True)
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "cohort", "slide", "label", "x", "y"))
        for number, (cohort, slide, label, x, y, pixels) in enumerate(rows):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            (folder / f"{number:04d}.png").write_bytes(content.getvalue())
            writer.writerow((folder / f"{number:04d}.png", cohort, slide, label, x, y))
    build_dataset([folder / "list.csv"], folder / "dataset", options or ShardOptions(max_count=25))
    return folder / "dataset"


def two_cohorts(count: int = 40) -> list[Row]:
    """A red cohort of two slides and a bluish one of one slide that has a hostile name, as its cohort and a label."""
    rows: list[Row] = []
    for number in range(count):
        if number % 2:
            rows.append((HOSTILE, HOSTILE, HOSTILE, 256 * number, 0, tinted((90, 90, 200), number)))
        else:
            label = "" if number % 4 else "stroma"
            rows.append(("red", f"slide{number // 2 % 2}", label, 256 * number, 512, tinted((200, 60, 60), number)))
    rows.append((HOSTILE, HOSTILE, "stroma", 0, 99, rows[1][-1]))  # the bytes of an earlier one
    return rows
