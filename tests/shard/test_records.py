"""Names → keys and places."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dinowds.errors import ConfigError
from dinowds.shard import records
from dinowds.shard.records import (
    DEFAULT_KEY_PATTERN,
    MAX_KEY_BYTES,
    choose_salts,
    compile_key_pattern,
    decode_name,
    decode_names,
    find_place,
    find_places,
    sample_key,
    sample_keys,
)

SAFE = re.compile(r"(?!__)[0-9A-Za-z_-]+(/[0-9A-Za-z_-]+)*")


def as_bytes(names: list[str]) -> Any:
    return pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.large_binary())


def keys_of(
    names: list[str],
    cohort_of: list[int] | None = None,
    cohorts: tuple[str, ...] = ("a", "b"),
    prefixes: tuple[str, ...] = ("",),
    file_of: list[int] | None = None,
    keys: list[str | None] | None = None,
    taken: list[str] | None = None,
) -> list[str]:
    """The keys of a dataset of these samples."""
    columns = (
        as_bytes(names),
        prefixes,
        np.array(file_of or [0] * len(names), np.int32),
        cohorts,
        np.array(cohort_of or [0] * len(names), np.int32),
    )
    given = None if keys is None else pa.array(keys, pa.string())
    salts = choose_salts(*columns, given, None if taken is None else pa.array(taken, pa.string()))
    assert salts.dtype == np.int32
    found: list[str] = sample_keys(*columns, salts, given).to_pylist()
    return found


def random_names(count: int, letters: list[str], longest: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(letters, random.integers(0, longest))) for _ in range(count)]


HOSTILE = [*"ab01_-./ xXyY(),.öß組\n\\𝄞_/\0\r٣", "\udcff", "\udc80", "\udcc3"]


def test_keys__of_safe_names_are_their_paths() -> None:
    names = ["a.jpg", "./slide/1_2.jpg", "/root/x-1.png", "A.jpg", "deep/er/b.tiff", "noext"]
    assert keys_of(names) == ["a", "slide/1_2", "root/x-1", "A", "deep/er/b", "noext"]


def test_keys__that_are_too_long_are_cut_and_end_in_a_hash() -> None:
    fits, long = keys_of(["a" * MAX_KEY_BYTES + ".jpg", "a" * (MAX_KEY_BYTES + 1) + ".jpg"])
    assert fits == "a" * MAX_KEY_BYTES
    assert re.fullmatch("a{83}-[0-9a-f]{10}", long)


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
    assert keys_of(["c.jpg", "c.jpg"], prefixes=("s/",)) == ["s/c", "s/c-1baaada535"]


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
    names = [f"{name}.jpg" for name in random_names(3000, HOSTILE, 9)] + random_names(200, HOSTILE, 300)
    names += names[:500]
    cohort_of = np.random.default_rng(1).integers(0, 2, len(names)).tolist()
    keys = keys_of(names, cohort_of)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert SAFE.fullmatch(key), key
        assert len(key) <= MAX_KEY_BYTES
    assert keys == keys_of(names, cohort_of)


def test_keys__of_columns_are_those_of_single_names() -> None:
    prefixes = ["", "slide_1/", "./up/", "/", "__", "a.b/", r"\xff/", "組/", "x" * 90]
    names = random_names(4000, HOSTILE, 6) + random_names(4000, [*"ab/./.", "jpg"], 8)
    names += ["a" * n + ".jpg" for n in (93, 94, 95)] + ["__a.jpg", "./__a.jpg", "a.jp\n", "a\n.jpg", "a.jpg\n"]
    random = np.random.default_rng(2)
    file_of = random.integers(0, len(prefixes), len(names)).astype(np.int32)
    cohort_of = random.integers(0, 2, len(names)).astype(np.int32)
    salts = random.integers(-1, 3, len(names)).astype(np.int32)
    stored = as_bytes(names)
    keys = sample_keys(stored, prefixes, file_of, ["a", "b"], cohort_of, salts).to_pylist()
    rows = zip(stored.to_pylist(), file_of.tolist(), cohort_of.tolist(), salts.tolist(), strict=True)
    expected = [sample_key(decode_name(name), "ab"[cohort], salt, prefixes[file]) for name, file, cohort, salt in rows]
    assert keys == expected


def test_keys__begin_with_the_prefix_of_their_file() -> None:
    names, prefixes = ["000000.jpg", "./000000.jpg", "000000.jpg"], ("s1/", "s2/", "")
    assert keys_of(names, prefixes=prefixes, file_of=[0, 1, 2]) == ["s1/000000", "s2/000000", "000000"]
    keys = keys_of(["1.jpg", "1.jpg", "1.jpg"], prefixes=("a b/", "c d/"), file_of=[0, 0, 1])
    assert len(set(keys)) == 3
    assert [key[:6] for key in keys] == ["a_b/1-", "a_b/1-", "c_d/1-"]


def test_keys__that_are_given_stay_where_they_are_safe_and_free() -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.f.jpg"]
    keys = keys_of(names, keys=["k/1", None, "un safe", "k/1", "k/2"])
    assert [*keys[:3], keys[4]] == ["k/1", "b", "c", "k/2"]
    assert re.fullmatch("d-[0-9a-f]{10}", keys[3])


def test_keys__that_are_taken_are_given_to_none() -> None:
    names = ["a.jpg", "b.jpg", "a.png", "c.d.jpg"]
    alone = keys_of(names)
    keys = keys_of(names, taken=["a", *alone[2:], "else"])
    assert keys[1] == "b"
    assert len({*keys, *alone[2:], "a"}) == 4 + 3
    assert keys_of(["x.jpg"], keys=["given"], taken=["given"])[0][:2] == "x-"


def test_keys__do_not_depend_on_chance_collisions_of_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "b.jpg", "a.png", "c d.jpg", "e.jpg"]
    expected = keys_of(names, taken=["e", "f"])
    monkeypatch.setattr(records, "hash_strings", lambda strings: np.zeros(len(strings), np.uint64))
    assert keys_of(names, taken=["e", "f"]) == expected


def test_keys__of_no_samples_are_none() -> None:
    assert keys_of([]) == []


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


def test_names__as_text_are_those_of_single_names() -> None:
    stored = as_bytes(random_names(3000, HOSTILE, 6))
    assert decode_names(stored).to_pylist() == [decode_name(name) for name in stored.to_pylist()]
    for bad in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f", b"plain"):
        assert decode_names(pa.array([bad, b"x"], pa.large_binary())).to_pylist() == [decode_name(bad), "x"]


PLACES = [
    "slide/{}_{}.jpg", "{}x_{}y.png", "s/x{}_y{}.jpg", "tile_({}, {}).jpg", "a/{},{}.jpg", "\udcff{}_{}.jpg",
    "ö{}_{}.jpg", "s/{}_{}.jp\n", "s/{}_{}.jpg\n", "s/{}_{}.\n", "s\n{}_{}.jpg", "a{}_{}.jpg", "Tiles/{}_{}.٣",
]  # fmt: skip


@pytest.mark.parametrize("pattern", [DEFAULT_KEY_PATTERN, "", r"(?P<slide>[a-z]*)_?(?P<x>\d+)[^0-9]*(?P<y>.)?"])
def test_place__of_columns_is_that_of_single_names(pattern: str) -> None:
    numbers = ["0", "-0", "007", "-12", "1" * 18, "1" * 19, "٣", "--1", ""]
    names = [form.format(x, y) for form in PLACES for x in numbers for y in numbers]
    names += random_names(20_000, [*HOSTILE, *"00112__..//", "imgs/", "1_2.jpg"], 9)
    stored, compiled = as_bytes(names), compile_key_pattern(pattern)
    roots = [None, "cohort", "up/tiles", "/", "Images"]
    file_of = np.random.default_rng(3).integers(0, len(roots), len(names)).astype(np.int32)
    slides, x, y = find_places(stored, roots, file_of, compiled)
    assert (slides.type, x.type, y.type) == (pa.dictionary(pa.int32(), pa.string()), pa.int64(), pa.int64())
    rows = zip(stored.to_pylist(), file_of.tolist(), strict=True)
    expected = [find_place(decode_name(name), compiled, roots[file]) for name, file in rows]
    assert list(zip(slides.to_pylist(), x.to_pylist(), y.to_pylist(), strict=True)) == expected
    assert sum(place.x is not None for place in expected) > (100 if pattern else -1)


def test_place__of_no_samples_is_none() -> None:
    slides, x, y = find_places(as_bytes([]), ["a"], np.empty(0, np.int32), compile_key_pattern(DEFAULT_KEY_PATTERN))
    assert len(slides) == len(x) == len(y) == 0


@pytest.mark.parametrize("pattern", ["(", "(?P<x>", "[0-9]+", "(?P<z>a)"])
def test_pattern__that_cannot_work_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match="--key-pattern"):
        compile_key_pattern(pattern)
