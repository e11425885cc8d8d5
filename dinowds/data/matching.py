"""Which samples the entries of a list mean, by the names that people give them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TEXT = pa.large_string()
_BATCH = 1 << 20
_SLASH = pa.scalar("/", TEXT)


class Form(NamedTuple):
    """A way to name samples: in words, what it reads, its text [N] of these, and whether it has a slash (None: any)."""

    title: str
    columns: tuple[str, ...]
    texts: Callable[..., Any]
    has_slash: bool | None = None
    names_slides: bool = False


@dataclass(frozen=True)
class Matches:
    """What M entries mean among N samples: K pairs of both."""

    form: NDArray[np.int64]
    """[M]: of each entry its position in FORMS; -1 where it means nothing."""
    count: NDArray[np.int64]
    """[M]: how many samples it names."""
    entries: NDArray[np.int64]
    """[K]"""
    samples: NDArray[np.int64]
    """[K]"""

    @property
    def names_slides(self) -> NDArray[np.bool_]:
        """[M]: whether an entry names a slide and so all of its samples."""
        slides: NDArray[np.bool_] = np.array([*(form.names_slides for form in FORMS), False])
        return slides[self.form]  # the last is for -1


def without_root(paths: Any) -> Any:
    """Text [N] without leading slashes and './'."""
    if not pc.any(pc.match_substring_regex(paths, pattern=r"\A\.?/")).as_py():
        return paths
    return pc.replace_substring_regex(paths, pattern=r"\A/*(?:\./+)*", replacement="")


def without_extension(paths: Any) -> Any:
    """Text [N] without what follows the last dot of the last part; of a path without such a dot all of it."""
    return pc.replace_substring_regex(paths, pattern=r"\.[^./]*\z", replacement="")


def file_names(paths: Any) -> Any:
    """Text [N]: what follows the last slash."""
    parts = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
    return parts.values.take(pc.subtract(parts.offsets[1:], 1))


def _join(first: Any, second: Any) -> Any:
    return pc.binary_join_element_wise(first, second, _SLASH)


FORMS = (
    Form("path", ("path",), lambda path: path),
    Form("path without extension", ("path",), without_extension),
    Form("slide/file name", ("slide", "path"), lambda slide, path: _join(slide, file_names(path)), True),
    Form("slide/file name without extension", ("slide", "path"),
         lambda slide, path: _join(slide, without_extension(file_names(path))), True),
    Form("cohort/path", ("cohort", "path"), _join, True),
    Form("cohort/path without extension", ("cohort", "path"),
         lambda cohort, path: _join(cohort, without_extension(path)), True),
    Form("file name", ("path",), file_names, False),
    Form("file name without extension", ("path",), lambda path: without_extension(file_names(path)), False),
    Form("slide", ("slide",), lambda slide: slide, names_slides=True),
    Form("cohort/slide", ("cohort", "slide"), _join, True, names_slides=True),
)  # fmt: skip
"""In the order in which they are tried; an entry is taken as the first that there is."""


def match_entries(entries: Any, columns: Any, positions_in: Callable[[Any, Any], NDArray[np.int64]]) -> Matches:
    """What each entry means.

    Args:
        entries: large_string [M] that all differ, without roots.
        columns: Arrow table [N] of text: path, cohort and, where known, slide.
        positions_in: (text [n] with nulls, text [m]) → int64 [n]: where each stands among the others; -1 for not.
    """
    has_slash = pc.match_substring(entries, pattern="/").to_numpy(zero_copy_only=False)
    form_of = np.full(len(entries), -1, np.int64)
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for number, form in enumerate(FORMS):
        pending = form_of < 0
        if form.has_slash is not None:
            pending &= has_slash == form.has_slash
        if pending.any() and set(form.columns) <= set(columns.column_names):
            for entry, sample in _find(form, entries, np.flatnonzero(pending), columns, positions_in):
                form_of[entry] = number
                pairs.append((entry, sample))
    entry_of, sample_of = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return Matches(form_of, np.bincount(entry_of, minlength=len(entries)), entry_of, sample_of)


def _find(
    form: Form, entries: Any, pending: NDArray[np.int64], columns: Any, positions_in: Callable[..., NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of entries, of those `pending`, and samples."""
    wanted = entries if len(pending) == len(entries) else entries.take(pa.array(pending))
    batch = max(_BATCH, 2 * len(wanted))  # what is wanted is hashed anew for each
    for start in range(0, len(columns), batch):
        rows = columns.select(form.columns).slice(start, batch)
        positions = positions_in(form.texts(*map(_text, rows.columns)), wanted)
        where = np.flatnonzero(positions >= 0)
        yield pending[positions[where]], start + where


def _text(column: Any) -> Any:
    return without_root(pc.cast(column, TEXT).combine_chunks())
