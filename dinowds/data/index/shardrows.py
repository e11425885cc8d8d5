"""The samples of one shard as numbers of fixed width, for look-ups in place."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

ROW_COLUMNS = ("key", "offset", "size", "ext", "digest", "cohort", "slide", "label")
"""Columns of samples.parquet that are packed."""
CATEGORIES = ("ext", "cohort", "slide")

ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("size", "<i8"),
        ("slide", "<u8"),  # `slide_hash`
        ("digest", "V16"),
        ("label", "<i4"),  # -1: none
        ("cohort", "<i4"),  # position in the manifest's cohorts
        ("key", "<u4"),  # first byte among those of the keys
        ("key_length", "<u2"),
        ("ext", "<u2"),  # position among the shard's extensions
    ]
)
_MOST_BYTES = (1 << 63) - 1
_HEAD = struct.Struct("<QqQQQ")  # xxh3-64 of what follows; shard; rows; bytes of keys; bytes of extensions


class Row(NamedTuple):
    """One sample; `label` is -1 for none."""

    key: str
    offset: int
    size: int
    ext: str
    digest: bytes
    label: int


class ShardRows:
    """Views on the packed samples of a shard, in file order; arrays are [rows] and read-only."""

    __slots__ = ("_buffer", "_exts", "_keys", "_records")

    def __init__(self, buffer: Any, start: int = 0) -> None:
        """`buffer`: bytes or a memory map with what `pack_rows` gave at `start`."""
        _, _, rows, key_bytes, ext_bytes = _HEAD.unpack_from(buffer, start)
        self._buffer = buffer
        self._records: NDArray[np.void] = np.frombuffer(buffer, ROW, rows, start + _HEAD.size)
        self._keys = start + _HEAD.size + rows * ROW.itemsize
        exts = buffer[self._keys + key_bytes : self._keys + key_bytes + ext_bytes]
        self._exts: list[str] = bytes(exts).decode().split("\n")

    def __len__(self) -> int:
        return len(self._records)

    def row(self, position: int) -> Row:
        """The sample at `position` of the shard, 0 … rows − 1."""
        return self._row(self._records[position].item())

    def take(self, positions: NDArray[np.int64]) -> list[Row]:
        """int64 [n] positions → [n] samples."""
        return [self._row(record) for record in self._records[positions].tolist()]

    def _row(self, record: tuple[Any, ...]) -> Row:
        offset, size, _, digest, label, _, key, length, ext = record
        return Row(self._key(key, length), offset, size, self._exts[ext], digest, label)

    def _key(self, start: int, length: int) -> str:
        return str(self._buffer[self._keys + start : self._keys + start + length], "utf-8")

    @property
    def keys(self) -> list[str]:
        """Of all samples."""
        return [self._key(*pair) for pair in self._records[["key", "key_length"]].tolist()]

    @property
    def offset(self) -> NDArray[np.int64]:
        """Of the payload's first byte in the shard."""
        return self._records["offset"]

    @property
    def size(self) -> NDArray[np.int64]:
        """Of the payload, in bytes."""
        return self._records["size"]

    @property
    def slide(self) -> NDArray[np.uint64]:
        """`slide_hash` of each sample's cohort and slide; 0 where the slide is unknown."""
        return self._records["slide"]

    @property
    def digest(self) -> NDArray[np.uint8]:
        """[rows, 16]: xxh3-128 of each payload."""
        digests: NDArray[np.uint8] = self._records["digest"].copy().view(np.uint8).reshape(-1, 16)
        return digests

    @property
    def label(self) -> NDArray[np.int32]:
        """Positions in the manifest's label names; -1 for none."""
        return self._records["label"]

    @property
    def cohort(self) -> NDArray[np.int32]:
        """Positions in the manifest's cohorts."""
        return self._records["cohort"]


def slide_hash(cohort: str, slide: str | None) -> int:
    """A number from 1 for a slide of a cohort, the same everywhere; 0 where the slide is unknown."""
    return 0 if slide is None else xxhash.xxh3_64_intdigest(f"{cohort}\0{slide}".encode()) or 1


def slide_hashes(cohort: Any, slide: Any) -> NDArray[np.uint64]:
    """`slide_hash` of each row of two Arrow columns of text."""
    cohorts, cohort_names = _codes(cohort)
    slides, slide_names = _codes(slide)
    pairs, rows = np.unique(cohorts * (len(slide_names) + 1) + slides + 1, return_inverse=True)
    names = [*[None], *slide_names]
    width = len(names)
    hashes = [slide_hash(cohort_names[pair // width], names[pair % width]) for pair in pairs.tolist()]
    found: NDArray[np.uint64] = np.array(hashes, np.uint64)[rows.reshape(-1)]
    return found


def pack_rows(shard: int, rows: Any, num_bytes: int, cohorts: dict[str, int]) -> bytes:
    """What `ShardRows` reads, from an Arrow table with `ROW_COLUMNS`.

    Args:
        num_bytes: of the shard's tar; payloads lie inside it.
        cohorts: name → position in the manifest.

    Raises:
        ValueError: a number that cannot be, or a cohort that the manifest does not have.
    """
    records = np.zeros(len(rows), ROW)
    for name in ("offset", "size"):
        records[name] = rows[name].to_numpy()
        if len(rows) and records[name].min() < 0:
            raise ValueError(f"has a negative {name!r}")
    if (records["size"] > min(num_bytes, _MOST_BYTES) - records["offset"]).any():
        raise ValueError(f"has an 'offset' and a 'size' that lie outside its shard of {num_bytes} bytes")
    digests = rows["digest"].combine_chunks()
    records["digest"] = np.frombuffer(digests.buffers()[1], "V16", len(rows), digests.offset * 16)
    labels = pc.fill_null(rows["label"], -1).to_numpy()
    if len(rows) and not -1 <= labels.min() <= labels.max() < 1 << 31:
        raise ValueError("has a 'label' that is no position in the manifest's label names")
    records["label"] = labels
    records["cohort"] = _cohort_codes(rows["cohort"], cohorts)
    records["slide"] = slide_hashes(rows["cohort"], rows["slide"])
    records["ext"], exts = _codes(rows["ext"])
    if any("\n" in ext for ext in exts):
        raise ValueError("has an 'ext' of several lines")
    keys, lengths = _text(rows["key"].combine_chunks())
    if len(rows) and lengths.max() > 0xFFFF:
        raise ValueError("has a 'key' that is too long")
    records["key_length"] = lengths
    records["key"] = np.cumsum(lengths) - lengths
    ext_names = "\n".join(exts).encode()
    content = _HEAD.pack(0, shard, len(rows), len(keys), len(ext_names))[8:] + records.tobytes() + keys + ext_names
    return xxhash.xxh3_64_intdigest(content).to_bytes(8, "little") + content


def is_whole(buffer: Any, start: int, length: int, shard: int, rows: int) -> bool:
    """Whether `length` bytes at `start` are what `pack_rows` made of that shard with that many rows."""
    if length < _HEAD.size:
        return False
    checksum, *found = _HEAD.unpack_from(buffer, start)
    view = memoryview(buffer)[start + 8 : start + length]
    try:
        return found[:2] == [shard, rows] and xxhash.xxh3_64_intdigest(view) == checksum
    finally:
        view.release()


def _cohort_codes(column: Any, cohorts: dict[str, int]) -> NDArray[np.int32]:
    codes, names = _codes(column)
    if unknown := [name for name in names if name not in cohorts]:
        raise ValueError(f"has the cohort {unknown[0]!r}, which the manifest does not have")
    return np.array([cohorts[name] for name in names], np.int32)[codes]


def _codes(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """Positions among distinct values, -1 for null, of a column of text."""
    is_dictionary = pa.types.is_dictionary(column.type)
    array = (column.unify_dictionaries() if is_dictionary else column.dictionary_encode()).combine_chunks()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, array.dictionary.to_pylist()


def _text(array: Any) -> tuple[bytes, NDArray[np.int64]]:
    """UTF-8 of all values of an Arrow string array, and the bytes of each."""
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4).astype(np.int64)
    return (b"" if content is None else content[int(ends[0]) : int(ends[-1])].to_pybytes()), np.diff(ends)
