"""What a sample is called: original name → key, slide, x, y. Pure.

The functions of one name are the rules; those of whole columns do the same to the common names at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dinowds.data.matching import TEXT, without_extension, without_root
from dinowds.errors import ConfigError
from dinowds.shard.kernels import hash_strings
from dinowds.shard.repeats import are_among, are_repeated, ranks_among_equals

DEFAULT_KEY_PATTERN = (
    r"(?:^|[^0-9A-Za-z])[xX]?(?P<x>-?[0-9]{1,18})[xX]?(?:_|, ?)[yY]?(?P<y>-?[0-9]{1,18})[yY]?\)?\.[^./]+$"
)
"""Finds `{x}_{y}`, `x{X}_y{Y}`, `{x}x_{y}y` and `(x, y)` at the end of a name, before the extension."""

GENERIC_FOLDERS = frozenset({"images", "imgs", "patches", "tiles"})
"""Folder names that tilers put between a slide's folder and its patches; they are never a slide."""

MAX_KEY_BYTES = 94
"""A USTAR name has 100 bytes without a prefix, which wids does not read; a dot and five letters of extension go off."""

GIVEN_KEY = -2
"""In place of a salt: the key is the one that came with the sample."""

_HASH_DIGITS = 10
_SAFE = r"(?:[0-9A-Za-z_-]+/)*[0-9A-Za-z_-]+"
_SAFE_STEM = re.compile(_SAFE)
_UNSAFE = re.compile(r"[^0-9A-Za-z_-]")
_NOTHING = pa.scalar("", TEXT)
_BATCH = 1 << 18


class Place(NamedTuple):
    """Where a patch was cut: slide, left and top edge in the units of its name. None where unknown."""

    slide: str | None
    x: int | None
    y: int | None


def decode_name(name: bytes) -> str:
    """A member's name as text; bytes that are not UTF-8 become backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


def decode_names(names: Any) -> Any:
    """`decode_name` of an Arrow array [N] of (large) binaries: large_string [N]. Text stays as it is."""
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    try:
        return names.cast(TEXT)
    except pa.ArrowInvalid:  # not all are UTF-8
        odd = pc.match_substring_regex(names, pattern=r"[\x80-\xff]")
        decoded = pa.array([decode_name(name).encode() for name in names.filter(odd).to_pylist()], names.type)
        return pc.replace_with_mask(names, odd, decoded).cast(TEXT)


def compile_key_pattern(pattern: str) -> re.Pattern[str] | None:
    """The pattern of `--key-pattern`; None where it is empty, which switches it off. Raises ConfigError."""
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--key-pattern: {pattern!r} is not a regular expression ({error})") from None
    if not {"slide", "x", "y"} & set(compiled.groupindex):
        raise ConfigError(
            f"--key-pattern: {pattern!r} has none of the named groups (?P<slide>…), (?P<x>…), (?P<y>…); "
            "name at least one, or give '' for no pattern"
        )
    return compiled


def find_place(name: str, pattern: re.Pattern[str] | None, root: str | None = None) -> Place:
    """Slide, x and y of a member. `pattern` is searched in its whole path; the parent folder is the slide otherwise.

    An x or y that is not an integer of 64 bits is None. `root` is the folder in which the path begins, where known.
    """
    groups: dict[str, str | None] = {}
    if pattern is not None and (match := pattern.search(name)):
        groups = match.groupdict()
    slide = groups.get("slide") or _parent_folder(name if root is None else f"{root}/{name}")
    return Place(slide, _coordinate(groups.get("x")), _coordinate(groups.get("y")))


def member_paths(names: Any, prefixes: Sequence[str], file_of: npt.NDArray[np.int32]) -> Any:
    """The prefixes of their files and the names, both without leading slashes and './': large_string [N].

    Args:
        names: Arrow array [N] of bytes as they are stored, or text as `decode_name` gives it.
        prefixes: of each file.
        file_of: [N], positions in `prefixes`.
    """
    names = without_root(decode_names(names))
    if not any(prefixes):
        return names
    before = pa.array([_without_root(prefix) for prefix in prefixes], TEXT).take(pa.array(file_of))
    return pc.binary_join_element_wise(before, names, _NOTHING)


def find_places(
    names: Any, roots: Sequence[str | None], file_of: npt.NDArray[np.int32], pattern: re.Pattern[str] | None
) -> tuple[Any, Any, Any]:
    """`find_place` of N members at once.

    Args:
        names: Arrow array [N] of bytes as they are stored, or text as `decode_name` gives it.
        roots: of each file the folder in which its members' paths begin, None where unknown.
        file_of: [N], positions in `roots`.

    Returns:
        Slides, dictionary<int32, string> [N]; x and y, int64 [N]; each null where unknown.
    """
    names = decode_names(names)
    slides: dict[str | None, int] = {None: -1}
    of_file = _number(slides, [None if root is None else _parent_folder(f"{root}/") for root in roots])
    codes = [np.empty(0, np.int32)]
    xs, ys = [pa.array([], pa.int64())], [pa.array([], pa.int64())]
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        named, x, y = _search(part, pattern)
        folders = pc.replace_substring_regex(part, pattern=r"[^/]*\z", replacement="").dictionary_encode()
        parents = _number(slides, map(_parent_folder, folders.dictionary.to_pylist()))
        found = parents[folders.indices.to_numpy()]
        found = np.where(found < 0, of_file[file_of[start : start + _BATCH]], found)
        if named is not None:
            own = _number(slides, named)
            found = np.where(own < 0, found, own)
        codes.append(found)
        xs.append(x)
        ys.append(y)
    joined = np.concatenate(codes)
    indices, dictionary = pa.array(joined, mask=joined < 0), pa.array(list(slides)[1:], pa.string())
    return pa.DictionaryArray.from_arrays(indices, dictionary), pa.concat_arrays(xs), pa.concat_arrays(ys)


def _search(names: Any, pattern: re.Pattern[str] | None) -> tuple[list[str | None] | None, Any, Any]:
    """Slides where the pattern can name any, x and y of text [N]."""
    if pattern is None:
        return None, pa.nulls(len(names), pa.int64()), pa.nulls(len(names), pa.int64())
    if pattern.pattern == DEFAULT_KEY_PATTERN:  # its matches end with the name, so that RE2 and re agree
        groups = pc.extract_regex(names, pattern=DEFAULT_KEY_PATTERN)
        x, y = (pc.struct_field(groups, name).cast(pa.int64()) for name in ("x", "y"))
        return None, x, y
    found = [match.groupdict() if (match := pattern.search(name)) else {} for name in names.to_pylist()]
    x, y = (pa.array([_coordinate(groups.get(axis)) for groups in found], pa.int64()) for axis in ("x", "y"))
    return [groups.get("slide") or None for groups in found], x, y


def _number(known: dict[str | None, int], values: Iterable[str | None]) -> npt.NDArray[np.int32]:
    """The number of each value, int32 [N]; new ones are given the next."""
    return np.array([known.setdefault(value, len(known) - 1) for value in values], np.int32)


def sample_key(name: str, cohort: str, salt: int, prefix: str = "") -> str:
    """The key of a member: its path without the extension, made safe for every reader of WebDataset.

    Args:
        name: the member's name in its source.
        cohort: part of the hash, so that equal names of two cohorts differ.
        salt: -1 for a safe name's own stem; else the number that goes into the hash at the key's end.
        prefix: goes before the name, where names are unique in their file alone.
    """
    key = _safe_stem(_without_root(prefix) + _without_root(name))
    if salt < 0:
        return key
    content = f"{cohort}\0{prefix}{name}\0{salt}".encode("utf-8", "backslashreplace")
    digest = xxhash.xxh3_128_hexdigest(content)[:_HASH_DIGITS]
    return f"{key[: MAX_KEY_BYTES - 1 - _HASH_DIGITS]}-{digest}"


def sample_keys(
    names: Any,
    prefixes: Sequence[str],
    file_of: npt.NDArray[np.int32],
    cohorts: Sequence[str],
    cohort_of: npt.NDArray[np.int32],
    salts: npt.NDArray[np.int32],
    keys: Any = None,
) -> Any:
    """`sample_key` of N members at once.

    Args:
        names: Arrow array [N] of bytes as they are stored, or text as `decode_name` gives it.
        prefixes: of each file.
        file_of, cohort_of: [N], positions in `prefixes` and `cohorts`.
        salts: [N], what `choose_salts` gave.
        keys: Arrow array of text [N]: the keys of those whose salt is GIVEN_KEY.

    Returns:
        Arrow array [N], large_string.
    """
    members = _Members(names, prefixes, file_of, cohorts, cohort_of, keys).decoded()
    return pa.concat_arrays([pa.array([], TEXT), *members.keys(salts)])


def choose_salts(
    names: Any,
    prefixes: Sequence[str],
    file_of: npt.NDArray[np.int32],
    cohorts: Sequence[str],
    cohort_of: npt.NDArray[np.int32],
    keys: Any = None,
    taken: Any = None,
) -> npt.NDArray[np.int32]:
    """The salt of each sample such that all keys of the dataset differ; of two equal keys the first stays as it is.

    Args:
        names, prefixes, file_of, cohorts, cohort_of: as for `sample_keys`; N samples in source order.
        keys: Arrow array of text [N]: keys to be kept where they are safe and free; null for one from the name.
        taken: Arrow array of text: keys that no sample may get.

    Returns:
        int32 [N]: -1 for the name's own stem, GIVEN_KEY for the one in `keys`, else what goes into the hash.
    """
    members = _Members(names, prefixes, file_of, cohorts, cohort_of, keys).decoded()
    salts = members.first_salts()
    hashes = members.hashes(salts)
    taken = decode_names(pa.array([], TEXT) if taken is None else taken)
    taken_hashes = hash_strings(taken)
    while True:
        rows = np.flatnonzero(are_repeated(hashes) | are_among(hashes, taken_hashes))
        texts = pa.concat_arrays([pa.array([], TEXT), *members.at(rows).keys(salts[rows])])
        likely = taken.filter(pa.array(are_among(taken_hashes, hashes[rows])))
        ranks = ranks_among_equals(texts) + pc.is_in(texts, value_set=likely).to_numpy(zero_copy_only=False)
        again = rows[ranks > 0]
        if not len(again):  # what is left in `rows` has equal hashes by chance
            return salts
        salts[again] = np.maximum(salts[again], -1) + ranks[ranks > 0]
        hashes[again] = members.at(again).hashes(salts[again])


@dataclass(frozen=True)
class _Members:
    """What `sample_keys` is given."""

    names: Any
    prefixes: Sequence[str]
    file_of: npt.NDArray[np.int32]
    cohorts: Sequence[str]
    cohort_of: npt.NDArray[np.int32]
    given: Any

    def decoded(self) -> _Members:
        """With text as names and keys."""
        given = None if self.given is None else decode_names(self.given)
        return replace(self, names=decode_names(self.names), given=given)

    def at(self, rows: slice | npt.NDArray[np.int64]) -> _Members:
        """Some of them."""
        names, given = (
            column if column is None else column[rows] if isinstance(rows, slice) else column.take(pa.array(rows))
            for column in (self.names, self.given)
        )
        return replace(self, names=names, file_of=self.file_of[rows], cohort_of=self.cohort_of[rows], given=given)

    def _batches(self) -> Iterator[slice]:
        return (slice(start, start + _BATCH) for start in range(0, len(self.names), _BATCH))

    def first_salts(self) -> npt.NDArray[np.int32]:
        """As if all keys differed."""
        salts = np.empty(len(self.names), np.int32)
        for rows in self._batches():
            part = self.at(rows)
            salts[rows] = np.where(_is_true(part._safe_stems()[1]), -1, 0)
            if part.given is not None:
                salts[rows] = np.where(_is_true(_are_safe(part.given)), GIVEN_KEY, salts[rows])
        return salts

    def keys(self, salts: npt.NDArray[np.int32]) -> Iterator[Any]:
        """large_string [N], in batches."""
        return (self.at(rows)._keys(salts[rows]) for rows in self._batches())

    def hashes(self, salts: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
        """Of the keys, uint64 [N]."""
        return np.concatenate([np.empty(0, np.uint64), *map(hash_strings, self.keys(salts))])

    def _keys(self, salts: npt.NDArray[np.int32]) -> Any:
        keys, safe = self._safe_stems()
        if self.given is not None:
            given = salts == GIVEN_KEY
            keys, safe = pc.if_else(given, self.given, keys), pc.or_(safe, given)
        one_by_one = (salts >= 0) | ~_is_true(safe)
        if not one_by_one.any():
            return keys
        which = np.flatnonzero(one_by_one)
        names = self.names.take(pa.array(which)).to_pylist()
        files, cohorts = self.file_of[which].tolist(), self.cohort_of[which].tolist()
        rows = zip(names, files, cohorts, salts[which].tolist(), strict=True)
        found = [sample_key(name, self.cohorts[cohort], salt, self.prefixes[file]) for name, file, cohort, salt in rows]
        return pc.replace_with_mask(keys, pa.array(one_by_one), pa.array(found, TEXT))

    def _safe_stems(self) -> tuple[Any, Any]:
        """Paths without extension, and which of them are safe as they are; the others mean nothing. [N] each."""
        stems = without_extension(member_paths(self.names, self.prefixes, self.file_of))
        return stems, _are_safe(stems)


def _are_safe(keys: Any) -> Any:
    """Arrow's bool [N] of text; False for null."""
    safe = pc.match_substring_regex(keys, pattern=rf"\A{_SAFE}\z")
    short = pc.less_equal(pc.binary_length(keys), MAX_KEY_BYTES)
    reserved = pc.starts_with(keys, pattern="__")
    return pc.fill_null(pc.and_(pc.and_(safe, short), pc.invert(reserved)), False)


def _is_true(values: Any) -> npt.NDArray[np.bool_]:
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _without_root(name: str) -> str:
    path = name.lstrip("/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _safe_stem(path: str) -> str:
    """The path without extension, safe but not yet unique."""
    folder, slash, base = path.rpartition("/")
    stem = folder + slash + (base.rpartition(".")[0] if "." in base else base)
    if len(stem) <= MAX_KEY_BYTES and _SAFE_STEM.fullmatch(stem) and not stem.startswith("__"):
        return stem
    letters = "".join(c for c in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(c))
    parts = [_UNSAFE.sub("_", part) for part in letters.split("/") if part]
    key = "/".join(parts)
    if key.startswith("__"):
        key = "_" + key.lstrip("_")
    return key.strip("/") or "_"


def _parent_folder(name: str) -> str | None:
    for part in reversed(name.split("/")[:-1]):
        if part not in ("", ".", "..") and part.lower() not in GENERIC_FOLDERS:
            return part
    return None


def _coordinate(text: str | None) -> int | None:
    try:
        value = int(text or "")
    except ValueError:
        return None
    return value if -(2**63) <= value < 2**63 else None
