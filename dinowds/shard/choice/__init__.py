"""Which of the images that were found are taken, and which label each gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.errors import ConfigError
from dinowds.files import sha256_of
from dinowds.shard.choice.labels import match_labels, read_labels
from dinowds.shard.choice.lists import file_errors, find_listed
from dinowds.shard.choice.quality import find_duplicates, is_blank, is_blurred, over_cap

IN_REMOVE_LIST = "in the --remove list"
NOT_IN_KEEP_LIST = "not in the --keep list"
BLANK = "blank"
BLURRED = "blurred"
DUPLICATE = "exact duplicate"
OVER_CAP = "over --max-per-slide"


@dataclass(frozen=True)
class Choice:
    """What is taken of the images, and their labels. What is None or False is no condition."""

    labels: Path | None = None
    """CSV of labels."""
    name_column: str | None = None
    """Its column of samples' or slides' names; None for the first of `lists.NAME_COLUMNS` that there is."""
    label_column: str | None = None
    """Its column of labels; None for `label`."""
    class_column: str | None = None
    """Its column of the names that belong to integer labels."""
    remove: Path | None = None
    """List of samples and slides that are left out."""
    keep: Path | None = None
    """List of samples and slides; all others are left out."""
    drop_blank: bool = False
    """Leave out what is nearly all white or nearly all black (`quality.is_blank`)."""
    min_sharpness: float | None = None
    """Leave out what has a variance of the Laplacian below it."""
    drop_duplicates: bool = False
    """Of images of the same bytes take the first alone, over all sources."""
    max_per_slide: int | None = None
    """Of more samples of a cohort's slide that many are drawn; those without a slide are all taken."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        """Raises ConfigError: an option cannot work."""
        if self.max_per_slide is not None and self.max_per_slide < 1:
            raise ConfigError(f"--max-per-slide: is {self.max_per_slide}, expected 1 or more")
        if self.min_sharpness is not None and not 0 <= self.min_sharpness < float("inf"):
            raise ConfigError(f"--min-sharpness: is {self.min_sharpness}, expected 0 or more")
        if self.labels is None:
            for name in ("name_column", "label_column", "class_column"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name.replace('_', '-')}: names a column of --labels FILE, which is missing")

    def fingerprint(self) -> dict[str, Any]:
        """All that decides what is taken, as JSON; of a file its sha256. Raises ConfigError: it cannot be read."""
        notes: dict[str, Any] = {}
        for name in ("labels", "keep", "remove"):
            path = getattr(self, name)
            if path is not None:
                with file_errors(f"--{name}", path):
                    notes[f"--{name}"] = sha256_of(path)
        for name in ("name_column", "label_column", "class_column", "min_sharpness", "max_per_slide"):
            if (value := getattr(self, name)) is not None:
                notes[f"--{name.replace('_', '-')}"] = value
        notes |= {
            f"--{name.replace('_', '-')}": True for name in ("drop_blank", "drop_duplicates") if getattr(self, name)
        }
        return notes


@dataclass(frozen=True)
class Chosen:
    """What is taken of N images."""

    kept: npt.NDArray[np.bool_]
    """[N]"""
    labels: npt.NDArray[np.int64]
    """[N]: positions in `label_names`, -1 for none; of images that are left out, too."""
    label_names: tuple[str, ...]
    dropped: dict[str, int]
    """Reason → number of images, for those reasons that there are."""
    notices: list[str]
    """Of one line each."""


def choose(columns: Any, choice: Choice) -> Chosen:
    """What is taken of the images, and their labels.

    Conditions apply in this order, each to what the ones before it left: --remove, --keep, blank, blurred, duplicates,
    --max-per-slide. So of two equal images of which one is removed the other stays, and a cap is filled with what is
    good. Lists and labels are matched with all images.

    Args:
        columns: Arrow table [N] in source order: `path`, text, what `records.member_paths` gives; `cohort`, text; and
            where known `slide`, text, `label`, text or integers, `digest`, 16 bytes, and `white`, `black`,
            `sharpness`, floats. Nulls, or no such column, where one is unknown, but not in path and cohort.

    Raises:
        ConfigError: a list does not fit, or nothing is left.
    """
    table = None
    if choice.labels is not None:
        table = read_labels(choice.labels, choice.name_column, choice.label_column, choice.class_column)
    labels, label_names, notices = match_labels(table, columns)
    kept = np.ones(len(columns), np.bool_)
    dropped = {}
    for reason, condition in _conditions(columns, choice, kept, notices):
        if count := int(np.count_nonzero(kept & condition)):
            dropped[reason] = count
            kept &= ~condition
    if dropped and not kept.any():
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.items())
        raise ConfigError(f"not one of {len(columns)} images is left ({reasons}); take less out")
    return Chosen(kept, labels, label_names, dropped, notices)


def _conditions(
    columns: Any, choice: Choice, kept: npt.NDArray[np.bool_], notices: list[str]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Reasons and which images go for them, in order; `kept` is what the conditions before have left."""
    for option, path in (("--remove", choice.remove), ("--keep", choice.keep)):
        if path is not None:
            listed, more = find_listed(option, path, columns)
            notices += more
            yield (IN_REMOVE_LIST, listed) if option == "--remove" else (NOT_IN_KEEP_LIST, ~listed)
    if choice.drop_blank:
        yield BLANK, is_blank(_floats(columns, "white"), _floats(columns, "black"))
    if choice.min_sharpness is not None:
        yield BLURRED, is_blurred(_floats(columns, "sharpness"), choice.min_sharpness)
    if choice.drop_duplicates and "digest" in columns.column_names:
        yield DUPLICATE, _duplicates(columns["digest"].combine_chunks(), kept)
    if choice.max_per_slide is not None:
        slides = columns["slide"] if "slide" in columns.column_names else pa.nulls(len(columns), pa.string())
        rows = np.flatnonzero(kept & _is_valid(slides))
        if without := int(np.count_nonzero(kept)) - len(rows):
            notices.append(f"--max-per-slide: {without} images have no slide and are not capped")
        over = np.zeros(len(columns), np.bool_)
        if len(rows):
            samples = columns.select(["path", "cohort", "slide"]).take(pa.array(rows))
            over[rows[over_cap(samples, choice.max_per_slide, choice.seed)]] = True
        yield OVER_CAP, over


def _duplicates(digests: Any, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """bool [N]: which of the digests, binary(16) [N], equal an earlier one that is kept; null equals none."""
    rows = np.flatnonzero(kept & _is_valid(digests))
    values = np.frombuffer(digests.buffers()[1] or b"", np.uint8).reshape(-1, 16)
    duplicates = np.zeros(len(digests), np.bool_)
    duplicates[rows[find_duplicates(values[digests.offset + rows])]] = True
    return duplicates


def _is_valid(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid())


def _floats(columns: Any, name: str) -> npt.NDArray[np.floating]:
    """NaN where unknown."""
    if name not in columns.column_names:
        return np.full(len(columns), np.nan)
    values: npt.NDArray[np.floating] = columns[name].combine_chunks().to_numpy(zero_copy_only=False)
    return values
