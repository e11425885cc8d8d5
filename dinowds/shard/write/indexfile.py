"""Writing samples.parquet anew from the row groups of others, whatever further columns those have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import one_line, open_samples, read_rows
from dinowds.data.manifest import SAMPLES_SCHEMA, Manifest
from dinowds.errors import DatasetError
from dinowds.files import atomic_write


class IndexReader:
    """All columns of an index, one row group at a time. Raises DatasetError where it cannot be read."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._file = open_samples(path, manifest.samples_footer_sha256)
        self.schema: Any = self._file.schema_arrow

    def close(self) -> None:
        self._file.close()

    def read(self, group: int) -> Any:
        """The table of one row group."""
        try:
            rows = read_rows(self._file, group, SAMPLES_SCHEMA.names)
            for name in self.schema.names:
                if name not in rows.column_names:
                    more = self._file.read_row_group(group, columns=[name])
                    more.validate(full=True)
                    rows = rows.append_column(name, more[name])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DatasetError(f"{self._path}: row group {group} cannot be read ({one_line(error)})") from None
        return rows


class IndexWriter:
    """One row group a shard, in the order in which they are given."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema
        self._shard = 0

    def write(self, rows: Any) -> None:
        """Write the rows of the next shard, with its number. No value of rows that were filtered out is written."""
        arrays = []
        for field in self._schema:
            if field.name == "shard":
                arrays.append(pa.array(np.full(len(rows), self._shard, np.int32)))
            elif field.name in rows.column_names:
                arrays.append(_fresh(rows[field.name], field.type))
            else:
                arrays.append(pa.nulls(len(rows), field.type))
        self._writer.write_table(pa.table(arrays, schema=self._schema), row_group_size=len(rows))
        self._shard += 1


@contextmanager
def write_index(path: Path, schema: Any) -> Iterator[IndexWriter]:
    """A new index at `path`, whole or not at all."""
    with (
        atomic_write(path) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=_categories(schema), write_page_checksum=True
        ) as writer,
    ):
        yield IndexWriter(writer, schema)


def _categories(schema: Any) -> list[str]:
    """Columns of few values: of others a dictionary only takes time and room."""
    return [field.name for field in schema if pa.types.is_dictionary(field.type)]


def joined_schema(schemas: Iterable[Any], names: Sequence[str]) -> Any:
    """The columns of all of them, by name: those of every index, then the others, which may be null.

    Raises DatasetError where a column differs in type between two of the datasets `names`.
    """
    fields = {field.name: field for field in SAMPLES_SCHEMA}
    first: dict[str, str] = {}
    for schema, name in zip(schemas, names, strict=True):
        for field in schema:
            known = fields.setdefault(field.name, pa.field(field.name, field.type))
            owner = first.setdefault(field.name, name)
            if field.name not in SAMPLES_SCHEMA.names and known.type != field.type:
                raise DatasetError(
                    f"{name}: column {field.name!r} of its index is {field.type}, that of {owner} is {known.type}; "
                    "make one of the two datasets again"
                )
    return pa.schema(list(fields.values()))


def _fresh(column: Any, data_type: Any) -> Any:
    """The column as one array of that type; a dictionary has the values that there are, and no more."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if not pa.types.is_dictionary(data_type):
        return array.cast(data_type)
    plain = array.cast(data_type.value_type)
    return pc.dictionary_encode(plain).cast(data_type)
