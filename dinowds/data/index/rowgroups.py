"""Row groups of `samples.parquet` without its footer.

A Parquet footer describes all row groups; parsed, one of 10,000 row groups takes 140 MB in every process that reads one
of them. So it is parsed once, the places of the column chunks are kept as plain numbers, and each read gets a footer of
just the chunks that it wants (Thrift's compact protocol, after the format's `parquet.thrift`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dinowds.data.manifest import SAMPLES_SCHEMA
from dinowds.errors import DatasetError
from dinowds.files import reading_advice

COLUMNS: tuple[str, ...] = tuple(SAMPLES_SCHEMA.names)
NUMBERS = ("optional", "codec", "dictionary", "data", "compressed", "uncompressed")
"""What is kept of a column chunk: whether it can hold nulls, how it is compressed, where its dictionary page (0: none)
and its data begin in the file, and its bytes."""

_NEVER_NULL = frozenset(field.name for field in SAMPLES_SCHEMA if not field.nullable)
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7, "LZ4_RAW": 7}
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_UTF8 = 0
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, pa.ArrowException)


class RowGroups:
    """Reads row groups of the index at `path`. Holds no file open."""

    def __init__(self, path: Path, counts: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """
        Args:
            counts: int64 [groups], rows of each.
            places: int64 [groups, len(COLUMNS), len(NUMBERS)].
        """
        self.path, self.counts, self.places = path, counts, places

    @classmethod
    def locate(cls, path: Path, footer_digest: str) -> RowGroups:
        """Parse the footer of the index at `path`, whose `footer_sha256` is to be `footer_digest` ('': not compared).

        Raises:
            DatasetError: it is no index of this format, or not the one that was written.
        """
        with open_samples(path, footer_digest) as file:
            try:
                return cls(path, *_locate(path, file.metadata, file.schema))
            except _UNREADABLE as error:
                raise DatasetError(f"{path}: its footer cannot be read ({one_line(error)}); make it again") from None

    def read(self, group: int, columns: Sequence[str], categories: Sequence[str] = ()) -> Any:
        """A table of some columns of one row group, in the order asked for; text is valid UTF-8.

        Args:
            categories: text columns that are wanted as dictionaries.

        Raises:
            DatasetError: they cannot be read, or lack values that must be there.
        """
        footer = _footer(columns, int(self.counts[group]), self.places[group])
        try:
            metadata = pq.read_metadata(pa.BufferReader(footer))
            with open_file(self.path) as source:
                file = pq.ParquetFile(
                    source, metadata=metadata, read_dictionary=list(categories), page_checksum_verification=True
                )
                rows = file.read_row_group(0, columns=list(columns), use_threads=False).select(list(columns))
            _check_rows(rows, columns)
        except _UNREADABLE as error:
            advice = (reading_advice(error) if isinstance(error, OSError) else "") or "; make the dataset again"
            raise DatasetError(f"{self.path}: row group {group} cannot be read ({one_line(error)}){advice}") from None
        return rows


def open_file(path: Path) -> Any:
    """The file at `path` for Arrow, which would take a path such as 's3:/bucket/patches' for a URL."""
    return pa.OSFile(os.fsencode(path))


def footer_sha256(path: Path) -> str:
    """Hex sha256 of the last bytes of a Parquet file: its footer, the footer's length and the closing magic.

    Raises:
        OSError: it cannot be read.
        ValueError: it does not end like a Parquet file.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read()
        length = int.from_bytes(end[:4], "little") + 8
        if end[4:] != b"PAR1" or length > size:
            raise ValueError("it does not end like one")
        file.seek(size - length)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_samples(path: Path, footer_digest: str) -> pq.ParquetFile:
    """Open an index, footer and all, if its `footer_sha256` is `footer_digest` ('': not compared).

    Raises:
        DatasetError: it is no index of this format, or not the one that was written.
    """
    try:
        # Arrow ends the process at some footers that are damaged: its accessors of metadata let no exception through.
        if footer_digest and footer_sha256(path) != footer_digest:
            raise DatasetError(
                f"{path}: its footer is not the one that was written; copy the dataset again, or make it again"
            )
        index = pq.ParquetFile(open_file(path), page_checksum_verification=True)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, though there is a manifest; make the dataset again") from None
    except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: is not a Parquet file ({one_line(error)}); make the dataset again") from None
    found = {field.name: _plain_type(field.type) for field in index.schema_arrow}
    for field in SAMPLES_SCHEMA:
        if found.get(field.name) != _plain_type(field.type):
            index.close()
            was = f"a column {field.name!r} of type {found[field.name]}" if field.name in found else "no such column"
            expected = f"a column {field.name!r} of type {_plain_type(field.type)}"
            raise DatasetError(f"{path}: has {was}, expected {expected}; make the dataset again")
    return index


def read_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Any:
    """A table of one row group of an open file, whose text is UTF-8 and where nothing is missing that must be there.

    Raises ValueError, in one line, where it cannot be read as that.
    """
    try:
        rows = file.read_row_group(group, columns=list(columns))
        _check_rows(rows, columns)
    except _UNREADABLE as error:
        raise ValueError(f"cannot be read ({one_line(error)})") from None
    return rows


def _check_rows(rows: Any, columns: Sequence[str]) -> None:
    rows.validate(full=True)
    for name in columns:
        if name in _NEVER_NULL and rows[name].null_count:
            raise ValueError(f"it has rows without {name!r}")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain_type(data_type: Any) -> Any:
    """Which columns are dictionaries is up to whoever wrote them."""
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type


def _locate(path: Path, metadata: Any, schema: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    position = {schema.column(i).path: i for i in range(metadata.num_columns)}
    columns = [position[name] for name in COLUMNS]
    optional = [schema.column(i).max_definition_level for i in columns]
    counts = np.zeros(metadata.num_row_groups, np.int64)
    places = np.zeros((len(counts), len(COLUMNS), len(NUMBERS)), np.int64)
    for group in range(len(counts)):
        about = metadata.row_group(group)
        counts[group] = about.num_rows
        chunks = [about.column(i) for i in columns]
        places[group] = [_place(path, chunk, nulls) for chunk, nulls in zip(chunks, optional, strict=True)]
    return counts, places


def _place(path: Path, chunk: Any, optional: int) -> list[int]:
    if chunk.compression not in _CODECS:
        raise DatasetError(f"{path}: is compressed with {chunk.compression}; make the dataset again")
    return [
        optional,
        _CODECS[chunk.compression],
        chunk.dictionary_page_offset if chunk.has_dictionary_page else 0,
        chunk.data_page_offset,
        chunk.total_compressed_size,
        chunk.total_uncompressed_size,
    ]


def _footer(columns: Sequence[str], num_rows: int, places: NDArray[np.int64]) -> bytes:
    """A Parquet file of one row group that has a footer alone; `places` is int64 [len(COLUMNS), len(NUMBERS)]."""
    schema = [_struct((4, _BINARY, _binary(b"schema")), (5, _I32, _int(len(columns))))]
    chunks = []
    total = 0
    for name in columns:
        physical, length, is_text = _PHYSICAL[name]
        optional, codec, dictionary, data, compressed, uncompressed = places[COLUMNS.index(name)].tolist()
        total += uncompressed
        element = [(1, _I32, _int(physical)), (3, _I32, _int(optional)), (4, _BINARY, _binary(name.encode()))]
        if length:
            element.insert(1, (2, _I32, _int(length)))
        if is_text:
            element.append((6, _I32, _int(_UTF8)))
        schema.append(_struct(*element))
        about = [
            (1, _I32, _int(physical)),
            (2, _LIST, _list(_I32, [])),
            (3, _LIST, _list(_BINARY, [_binary(name.encode())])),
            (4, _I32, _int(codec)),
            (5, _I64, _int(num_rows)),
            (6, _I64, _int(uncompressed)),
            (7, _I64, _int(compressed)),
            (9, _I64, _int(data)),
        ]
        if dictionary:
            about.append((11, _I64, _int(dictionary)))
        chunks.append(_struct((2, _I64, _int(data)), (3, _STRUCT, _struct(*about))))
    group = _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, _int(total)), (3, _I64, _int(num_rows)))
    footer = _struct(
        (1, _I32, _int(2)),
        (2, _LIST, _list(_STRUCT, schema)),
        (3, _I64, _int(num_rows)),
        (4, _LIST, _list(_STRUCT, [group])),
    )
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _physical(data_type: Any) -> tuple[int, int, bool]:
    """Parquet's physical type, its bytes where they are fixed by the column, and whether it is text."""
    if pa.types.is_fixed_size_binary(data_type):
        return 7, data_type.byte_width, False
    if pa.types.is_string(data_type):
        return 6, 0, True
    return (1 if data_type == pa.int32() else 2), 0, False


_PHYSICAL = {field.name: _physical(_plain_type(field.type)) for field in SAMPLES_SCHEMA}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63))


def _binary(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """(field number, type, value) in the order of the numbers."""
    out, last = b"", 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) + value
        last = number
    return out + b"\0"
