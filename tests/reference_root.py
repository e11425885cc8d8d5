"""A tiny data root of the reference system, as its own tools lay it out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.support import jpeg_patch, write_cohort


def write_entries(path: Path, tar: Path, which: Sequence[int], classes: Sequence[int] | None = None) -> None:
    """uint64 [N, 4] of some members of a tar: class, filename, start, end."""
    with tarfile.open(tar) as opened:
        members = opened.getmembers()
    rows = [
        (
            classes[row] if classes else 0,
            index,
            members[index].offset_data,
            members[index].offset_data + members[index].size,
        )
        for row, index in enumerate(which)
    ]
    np.save(path, np.array(rows, np.uint64))


def write_labelled(path: Path, num_patches: int) -> Path:
    """A tar of patches of other slides than `write_cohort`'s: `labelledN/X_Y.jpg`, ten of each."""
    with tarfile.open(path, "w") as tar:
        for index in range(num_patches):
            payload = jpeg_patch(5000 + index)
            member = tarfile.TarInfo(f"labelled{index // 10}/{index}_{index}.jpg")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return path


def make_root(folder: Path, num_patches: int = 40) -> Path:
    """One tar to train on, with a fold of half of it, and a labelled tar of 10 query and 10 test patches."""
    folder.mkdir(parents=True)
    tar = write_cohort(folder / "pretrain_dataset.tar", num_patches)
    write_entries(folder / "pretrain_entries.npy", tar, range(num_patches))
    write_entries(folder / "pretrain_entries_fold_0.npy", tar, range(0, num_patches, 2))
    labelled = write_labelled(folder / "downstream_dataset.tar", 20)
    write_entries(folder / "query_entries.npy", labelled, range(10), [0, 1] * 5)
    write_entries(folder / "test_entries.npy", labelled, range(10, 20), [1, 0] * 5)
    np.save(folder / "class-ids.npy", np.array([[0, "normal"], [1, "tumour"]]))
    return folder
