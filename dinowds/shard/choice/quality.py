"""Samples that are left out for what they show: blank, blurred, doubles; and the cap on slides. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dinowds.shard.repeats import are_repeated, ranks_among_equals

_BATCH = 1 << 18

BLANK_SHARE = 0.95
"""An image of which this share of pixels, or more, is white, or is black, is blank. Tilers keep tiles with 5 to 25 % of
tissue and up, so that what a tiler kept for its tissue stays."""


def is_blank(white: npt.NDArray[np.floating], black: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """bool [N]: `white` or `black`, shares of pixels [N] in 0 … 1, is at least BLANK_SHARE; False for NaN."""
    return (white >= BLANK_SHARE) | (black >= BLANK_SHARE)


def is_blurred(sharpness: npt.NDArray[np.floating], minimum: float) -> npt.NDArray[np.bool_]:
    """bool [N]: `sharpness` [N], the variance of the Laplacian, is below `minimum`; False for NaN.

    A minimum depends on scanner, magnification and JPEG quality: look at the values of a cohort first.
    """
    return sharpness < minimum


def find_duplicates(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool [N]: which of `digests`, uint8 [N, 16], equal an earlier one. Takes 8 bytes each and 40 for each double."""
    rows, is_repeat = equal_digests(digests)
    duplicates = np.zeros(len(digests), np.bool_)
    duplicates[rows[is_repeat]] = True
    return duplicates


def equal_digests(digests: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of `digests`, uint8 [N, 16], the rows of all that are there several times, int64 [n], and hardly any others.

    Equal ones lie beside each other, in their order; bool [n] says which row equals the one before it.
    """
    words = np.ascontiguousarray(digests).view(np.uint64)
    rows = np.flatnonzero(are_repeated(words[:, 0]))
    order = rows[np.lexsort((words[rows, 1], words[rows, 0]))]  # stable: equals stay in their order
    is_repeat = np.zeros(len(order), np.bool_)
    is_repeat[1:] = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    return order, is_repeat


def over_cap(columns: Any, most: int, seed: int) -> npt.NDArray[np.bool_]:
    """bool [N]: which samples go so that each slide of a cohort has at most `most`.

    Which ones stay is drawn by `seed`, cohort, slide and path alone: other slides change nothing, nor does the order of
    the sources, but for equal paths, of which the first stay.

    Args:
        columns: Arrow table [N] of text without nulls: path, cohort, slide.
    """
    (cohorts, cohort_of), (slides, slide_of) = (_encode(columns[name].combine_chunks()) for name in ("cohort", "slide"))
    pairs = cohort_of * np.int64(len(slides)) + slide_of
    groups = pa.array(pairs).dictionary_encode()
    group_of = groups.indices.to_numpy()
    rows = np.flatnonzero(np.bincount(group_of)[group_of] > most)
    group_of = group_of[rows]
    seeds = [
        xxhash.xxh3_64_intdigest(f"{cohorts[cohort]}\0{slides[slide]}".encode(), seed % 2**64)
        for cohort, slide in (divmod(pair, len(slides)) for pair in groups.dictionary.to_pylist())
    ]
    draws = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        paths = columns["path"].take(pa.array(rows[part])).cast(pa.large_binary()).to_pylist()
        draws[part] = list(map(xxhash.xxh3_64_intdigest, paths, [seeds[group] for group in group_of[part].tolist()]))
    order = np.lexsort((draws, group_of))
    over = np.zeros(len(columns), np.bool_)
    over[rows[order[ranks_among_equals(group_of[order]) >= most]]] = True
    return over


def _encode(texts: Any) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The distinct values of text [N] without nulls, plain or a dictionary, and each one's position among them."""
    if not pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_encode()
    once = texts.dictionary.dictionary_encode()  # of a dictionary no one says that its values differ
    return once.dictionary.to_pylist(), once.indices.to_numpy()[texts.indices.to_numpy()]
