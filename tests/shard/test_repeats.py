"""Values that occur more than once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from dinowds.shard import repeats
from dinowds.shard.kernels import hash_strings
from dinowds.shard.repeats import are_among, are_repeated, first_equals, positions_in, ranks_among_equals


def test_repeats__are_those_that_a_count_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_BATCH", 100)
    random = np.random.default_rng(0)
    values = random.integers(0, 4000, 3000).astype(np.uint64) << np.uint64(52)
    counts = Counter(values.tolist())
    assert are_repeated(values).tolist() == [counts[value] > 1 for value in values.tolist()]
    some = random.permutation(values)[:40]
    assert are_among(values, some).tolist() == [value in set(some.tolist()) for value in values.tolist()]
    assert not are_among(values, values[:0]).any()
    assert not len(are_repeated(values[:0]))


@pytest.mark.parametrize("last", [0, 2**63, 2**64 - 1])
def test_texts__are_found_exactly_whatever_their_hashes(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    monkeypatch.setattr(repeats, "_BATCH", 50)
    monkeypatch.setattr(repeats, "hash_strings", lambda texts: np.minimum(hash_strings(texts), np.uint64(last)))
    random = np.random.default_rng(0)
    texts = [str(number) for number in random.integers(0, 300, 400)]
    assert first_equals(pa.array(texts)).tolist() == [texts.index(text) for text in texts]
    wanted = [str(number) for number in range(0, 300, 2)]
    values = [*texts, None, ""]
    expected = [wanted.index(value) if value in wanted else -1 for value in values]
    assert positions_in(pa.array(values), pa.array(wanted)).tolist() == expected
    assert positions_in(pa.array(values), pa.array([], pa.string())).tolist() == [-1] * len(values)
    assert positions_in(pa.array([], pa.string()), pa.array(wanted)).tolist() == []


def test_ranks__count_the_equals_before() -> None:
    assert ranks_among_equals(np.array([3, 5, 3, 3, 5])).tolist() == [0, 0, 1, 2, 1]
    assert ranks_among_equals(pa.array(["b", "a", "b"])).tolist() == [0, 0, 1]
    assert ranks_among_equals(pa.array([], pa.large_string())).tolist() == []
