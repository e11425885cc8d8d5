"""What a sample is called: original name → key, slide, x, y. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dinowds.errors import ConfigError

DEFAULT_KEY_PATTERN = (
    r"(?:^|[^0-9A-Za-z])[xX]?(?P<x>-?[0-9]{1,18})[xX]?(?:_|, ?)[yY]?(?P<y>-?[0-9]{1,18})[yY]?\)?\.[^./]+$"
)
"""Finds `{x}_{y}`, `x{X}_y{Y}`, `{x}x_{y}y` and `(x, y)` at the end of a name, before the extension."""

GENERIC_FOLDERS = frozenset({"images", "imgs", "patches", "tiles"})
"""Folder names that tilers put between a slide's folder and its patches; they are never a slide."""

MAX_KEY_BYTES = 94
"""A USTAR name has 100 bytes without a prefix, which wids does not read; a dot and five letters of extension go off."""

_HASH_DIGITS = 10
_SAFE_STEM = re.compile(r"(?:[0-9A-Za-z_-]+/)*[0-9A-Za-z_-]+")
_UNSAFE = re.compile(r"[^0-9A-Za-z_-]")


class Place(NamedTuple):
    """Where a patch was cut: slide, left and top edge in the units of its name. None where unknown."""

    slide: str | None
    x: int | None
    y: int | None


def decode_name(name: bytes) -> str:
    """A member's name as text; bytes that are not UTF-8 become backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


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


def sample_key(name: str, cohort: str, salt: int) -> str:
    """The key of a member: its path without the extension, made safe for every reader of WebDataset.

    Args:
        name: the member's name in its source.
        cohort: part of the hash, so that equal names of two cohorts differ.
        salt: -1 for a safe name's own stem; else the number that goes into the hash at the key's end.
    """
    key, _ = _safe_stem(name)
    if salt < 0:
        return key
    content = f"{cohort}\0{name}\0{salt}".encode("utf-8", "backslashreplace")
    digest = xxhash.xxh3_128_hexdigest(content)[:_HASH_DIGITS]
    return f"{key[: MAX_KEY_BYTES - 1 - _HASH_DIGITS]}-{digest}"


def choose_salts(names: Any, cohort_of: npt.NDArray[np.int32], cohorts: Sequence[str]) -> npt.NDArray[np.int32]:
    """The salt of each sample such that all keys of the dataset differ; of two equal keys the first stays as it is.

    Args:
        names: binary Arrow array [N], in source order.
        cohort_of: [N], position in `cohorts`.

    Two keys are told apart by 64-bit hashes; a chance collision only costs the later one a hash in its key.
    """
    salts = np.full(len(names), -1, np.int32)
    hashes = _key_hashes(names, cohort_of, cohorts, salts, np.arange(len(names)))
    while True:
        order = np.argsort(hashes, kind="stable")
        ranks = _ranks_within_runs(hashes[order])
        again = order[ranks > 0]
        if not len(again):
            return salts
        salts[order] += ranks
        hashes[again] = _key_hashes(names, cohort_of, cohorts, salts, again)


def _key_hashes(
    names: Any,
    cohort_of: npt.NDArray[np.int32],
    cohorts: Sequence[str],
    salts: npt.NDArray[np.int32],
    which: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint64]:
    """xxh3-64 of the keys of the samples `which`; a name that is not safe as it is gets the salt 0 first.

    Works in batches, so that few names are Python objects at once.
    """
    hashes = np.empty(len(which), np.uint64)
    batch = 1 << 16
    for start in range(0, len(which), batch):
        part = which[start : start + batch]
        texts = names.take(pa.array(part)).to_pylist()
        found: list[int] = []
        rows = zip(texts, cohort_of[part].tolist(), salts[part].tolist(), strict=True)
        for index, (raw, cohort, salt) in enumerate(rows, start):
            name = decode_name(raw)
            key, changed = _safe_stem(name)
            if changed and salt < 0:
                salts[which[index]] = salt = 0
            if salt >= 0:
                key = sample_key(name, cohorts[cohort], salt)
            found.append(xxhash.xxh3_64_intdigest(key.encode()))
        hashes[start : start + len(found)] = found
    return hashes


def _ranks_within_runs(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """[3, 3, 3, 5, 7, 7] → [0, 1, 2, 0, 0, 1]."""
    positions = np.arange(len(values))
    starts = np.ones(len(values), bool)
    starts[1:] = values[1:] != values[:-1]
    first = np.maximum.accumulate(np.where(starts, positions, 0))
    return (positions - first).astype(np.int32)


def _safe_stem(name: str) -> tuple[str, bool]:
    """The path without extension, safe but not yet unique, and whether more than a leading './' or '/' was changed."""
    path = name.lstrip("/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    folder, slash, base = path.rpartition("/")
    stem = folder + slash + (base.rpartition(".")[0] if "." in base else base)
    if len(stem) <= MAX_KEY_BYTES and _SAFE_STEM.fullmatch(stem) and not stem.startswith("__"):
        return stem, False
    letters = "".join(c for c in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(c))
    parts = [_UNSAFE.sub("_", part) for part in letters.split("/") if part]
    key = "/".join(parts)
    if key.startswith("__"):
        key = "_" + key.lstrip("_")
    return key.strip("/") or "_", True


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
