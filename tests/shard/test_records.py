"""Names → keys and places."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from dinowds.errors import ConfigError
from dinowds.shard.records import (
    DEFAULT_KEY_PATTERN,
    MAX_KEY_BYTES,
    choose_salts,
    compile_key_pattern,
    decode_name,
    find_place,
    sample_key,
)

SAFE = re.compile(r"(?!__)[0-9A-Za-z_-]+(/[0-9A-Za-z_-]+)*")


def keys_of(names: list[str], cohort_of: list[int] | None = None, cohorts: tuple[str, ...] = ("a", "b")) -> list[str]:
    sources = np.array(cohort_of if cohort_of is not None else [0] * len(names), np.int32)
    array = pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.large_binary())
    salts = choose_salts(array, sources, cohorts)
    texts = [decode_name(name.encode("utf-8", "surrogateescape")) for name in names]
    return [sample_key(t, cohorts[s], int(salt)) for t, s, salt in zip(texts, sources, salts, strict=True)]


def test_keys__of_safe_names_are_their_paths() -> None:
    names = ["a.jpg", "./slide/1_2.jpg", "/root/x-1.png", "A.jpg", "deep/er/b.tiff", "noext"]
    assert keys_of(names) == ["a", "slide/1_2", "root/x-1", "A", "deep/er/b", "noext"]


def test_keys__of_unsafe_names_end_in_a_hash() -> None:
    names = [
        "slide.1.2.jpg",
        "with space.jpg",
        "Gewebe ö.jpg",
        "組織.jpg",
        "a//b.jpg",
        "../up.jpg",
        "__x__.jpg",
        ".jpg",
    ]
    stems = ["slide_1_2", "with_space", "Gewebe_o", "__", "a/b", "__/up", "_x__", "_"]
    for key, stem in zip(keys_of(names), stems, strict=True):
        expected = "_" + stem.lstrip("_") if stem.startswith("__") else stem
        assert re.fullmatch(re.escape(expected) + "-[0-9a-f]{10}", key), key


def test_keys__are_fixed() -> None:
    # Keys are written into datasets and joined with other tables: they must not change between versions.
    assert keys_of(["a.b.jpg", "c.jpg", "c.jpg"]) == ["a_b-a5f2fe871a", "c", "c-dbfd9afb10"]


def test_keys__the_first_of_equal_names_keeps_its_own() -> None:
    keys = keys_of(["s/1.jpg", "s/1.jpg", "s/1.png", "./s/1.jpg", "s/1.jpg"], [0, 0, 0, 1, 1])
    assert keys[0] == "s/1"
    assert len(set(keys)) == 5
    assert all(re.fullmatch("s/1-[0-9a-f]{10}", key) for key in keys[1:])


def test_keys__differ_from_keys_that_look_generated() -> None:
    first = keys_of(["a.b.jpg"])[0]
    for names in ([f"{first}.jpg", "a.b.jpg"], ["a.b.jpg", f"{first}.jpg"]):
        keys = keys_of(names)
        assert keys[0] == first
        assert len(set(keys)) == 2


def test_keys__of_random_names_are_safe_unique_and_repeatable() -> None:
    random = np.random.default_rng(0)
    letters = [*"ab01_-./ .öß組\n\\𝄞_/", "\udcff"]
    names = ["".join(random.choice(letters, random.integers(1, 9))) + ".jpg" for _ in range(3000)]
    names += ["".join(random.choice(letters, random.integers(80, 300))) for _ in range(200)] + names[:500]
    cohort_of = random.integers(0, 2, len(names)).tolist()
    keys = keys_of(names, cohort_of)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert SAFE.fullmatch(key), key
        assert len(key) <= MAX_KEY_BYTES
    assert keys == keys_of(names, cohort_of)


def test_keys__of_many_equal_names_are_found_in_few_rounds() -> None:
    keys = keys_of(["x.jpg"] * 20_000)
    assert len(set(keys)) == 20_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slide_a/imgs/1024_2048.jpg", ("slide_a", 1024, 2048)),
        ("TCGA-3C-AALI/slide_5_1024_2048.jpg", ("TCGA-3C-AALI", 1024, 2048)),
        ("S1/000000_x512_y768.png", ("S1", 512, 768)),
        ("S1/01234x_56789y.png", ("S1", 1234, 56789)),
        ("S1/tile_(123, 456).jpg", ("S1", 123, 456)),
        ("1_2.jpg", (None, 1, 2)),
        ("a/-5_-6.jpg", ("a", -5, -6)),
        ("ADI/ADI-AAAFLCLY.tif", ("ADI", None, None)),
        ("S1/000000.jpg", ("S1", None, None)),
        ("./tiles/x.jpg", (None, None, None)),
        ("S1/v2/12_34/mask.jpg", ("12_34", None, None)),
        ("S1/abc12_34.jpg", ("S1", None, None)),
    ],
)
def test_place__default_pattern_knows_the_tilers(
    name: str, expected: tuple[str | None, int | None, int | None]
) -> None:
    assert find_place(name, compile_key_pattern(DEFAULT_KEY_PATTERN)) == expected


def test_place__own_pattern_names_slide_and_position() -> None:
    pattern = compile_key_pattern(r"(?P<slide>[^/]+)_(?P<x>\d+)_(?P<y>\d+)\.jpg$")
    assert find_place("imgs/TCGA-1_5_6.jpg", pattern) == ("TCGA-1", 5, 6)
    assert find_place("folder/other.jpg", pattern) == ("folder", None, None)
    assert find_place("folder/1_2.jpg", compile_key_pattern("")) == ("folder", None, None)


def test_place__what_is_no_integer_of_64_bits_is_none() -> None:
    pattern = compile_key_pattern("(?P<x>.*)_(?P<y>.*)_")
    for text in ("abc", "1.5", "9" * 30, "9" * 5000, str(2**63), ""):
        assert find_place(f"{text}_7_.jpg", pattern) == (None, None, 7)
    assert find_place(f"{-(2**63)}_{2**63 - 1}_.jpg", pattern) == (None, -(2**63), 2**63 - 1)


def test_place__of_an_image_at_a_folders_root_has_the_folder_as_slide() -> None:
    pattern = compile_key_pattern(DEFAULT_KEY_PATTERN)
    assert find_place("1_2.jpg", pattern, "slide_7") == ("slide_7", 1, 2)
    assert find_place("Patches/1_2.jpg", pattern, "slide_7") == ("slide_7", 1, 2)
    assert find_place("inner/1_2.jpg", pattern, "slide_7") == ("inner", 1, 2)
    assert find_place("1_2.jpg", pattern, "Images") == (None, 1, 2)


@pytest.mark.parametrize("pattern", ["(", "(?P<x>", "[0-9]+", "(?P<z>a)"])
def test_pattern__that_cannot_work_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match="--key-pattern"):
        compile_key_pattern(pattern)
