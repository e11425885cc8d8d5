"""Equal values among millions, found by sorted hashes: a table of all of them takes several times the memory. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.shard.kernels import hash_strings

_BATCH = 1 << 20


def are_repeated(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """bool [N]: which of `values`, uint64 [N], occur several times. Takes one more copy of them."""
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return are_among(values, repeated)


def are_among(values: npt.NDArray[np.uint64], some: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """bool [N]: which of `values`, uint64 [N], are one of `some`, uint64 [M]."""
    found = np.zeros(len(values), np.bool_)
    if len(some):
        wanted = pa.array(np.unique(some))
        batch = max(_BATCH, 2 * len(wanted))  # Arrow makes a table of what is wanted for each
        for start in range(0, len(values), batch):
            part = pc.is_in(pa.array(values[start : start + batch]), value_set=wanted)
            found[start : start + batch] = part.to_numpy(zero_copy_only=False)
    return found


def ranks_among_equals(values: Any) -> npt.NDArray[np.int32]:
    """int32 [N]: how many of the values before it each equals. [3, 5, 3, 3] → [0, 0, 1, 2].

    `values`: an Arrow array [N] without nulls of a type that Arrow makes dictionaries of, or an integer array [N].
    """
    codes = values if isinstance(values, np.ndarray) else values.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    positions = np.arange(len(order))
    starts = np.ones(len(order), np.bool_)
    starts[1:] = ordered[1:] != ordered[:-1]
    ranks = np.empty(len(order), np.int32)
    ranks[order] = positions - np.maximum.accumulate(np.where(starts, positions, 0))
    return ranks


def first_equals(texts: Any) -> npt.NDArray[np.int64]:
    """int64 [N]: of each text of an Arrow array without nulls the position of the first that equals it."""
    first = np.arange(len(texts))
    repeated = np.flatnonzero(are_repeated(hash_strings(texts)))
    codes = texts.take(pa.array(repeated)).dictionary_encode().indices.to_numpy()
    first[repeated] = repeated[np.unique(codes, return_index=True)[1][codes]]
    return first


def positions_in(texts: Any, wanted: Any) -> npt.NDArray[np.int64]:
    """int64 [N]: where each text stands among `wanted`, -1 where it does not, or is null.

    Both are Arrow arrays of the same type; `wanted` has no nulls, and no value twice.
    """
    positions = np.full(len(texts), -1, np.int64)
    if not len(wanted):
        return positions
    hashes = hash_strings(wanted)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        part_hashes = hash_strings(part)
        rows, places = np.arange(len(part)), np.searchsorted(hashes, part_hashes)
        while len(rows):  # once more only for hashes that are equal by chance
            near = (places < len(hashes)) & (hashes.take(places, mode="clip") == part_hashes[rows])
            rows, places = rows[near], places[near]
            equal = pc.equal(part.take(pa.array(rows)), wanted.take(pa.array(order[places]))).fill_null(False)
            is_equal = equal.to_numpy(zero_copy_only=False)
            positions[start + rows[is_equal]] = order[places[is_equal]]
            rows, places = rows[~is_equal], places[~is_equal] + 1
    return positions
