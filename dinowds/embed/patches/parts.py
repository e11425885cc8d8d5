"""The files of features, one for each shard of the dataset: how they are written, and whether one is whole."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dinowds.embed.patches.reader import FEATURE, TOKENS
from dinowds.errors import OutputError
from dinowds.files import atomic_write

_ABOUT = b"dinowds"
"""Key of the file's metadata under which `Part` stands, as JSON."""
_GROUP_BYTES = 64 << 20
"""Features of a row group, at least: all of a shard's but for patch tokens."""


@dataclass(frozen=True)
class Part:
    """What a finished file says of itself."""

    question: str
    """`folder.digest_of` what its content follows from."""
    shard: int
    bad: list[dict[str, str]]
    """Samples that could not be read: `url` of the shard, `key` and `reason`."""
    samples: int = 0
    """Rows."""


def read_part(path: Path) -> Part | None:
    """None where there is no such file, or not a whole one. Reads its footer alone."""
    try:
        metadata = pq.read_metadata(path)
        about = json.loads(metadata.metadata[_ABOUT])
        return Part(about["question"], about["shard"], about["bad"], metadata.num_rows)
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError):
        return None


class PartWriter:
    """Writes one file, which appears when it is finished. Raises OutputError where it cannot be written."""

    def __init__(self, path: Path, schema: Any) -> None:
        """`schema`: of `reader.features_schema`."""
        self._path, self._schema = path, schema
        self._tables: list[Any] = []
        self._stack = ExitStack()
        self._writer: Any = None
        try:
            file = self._stack.enter_context(atomic_write(path))
            plain = [name for name in schema.names if name not in (FEATURE, TOKENS)]
            self._writer = pq.ParquetWriter(
                file,
                schema,
                use_dictionary=["slide", "cohort"],
                compression=dict.fromkeys(plain, "zstd"),  # floats would hardly shrink
                write_statistics=plain,
                write_page_checksum=True,
            )
        except OSError as error:
            raise self._failed(error) from None

    def add(self, rows: Any, vectors: dict[str, NDArray[Any]]) -> None:
        """Append rows: an Arrow table of the plain columns, and [n, length] arrays by column."""
        columns = [
            _as_lists(vectors[field.name], field.type) if field.name in vectors else rows[field.name]
            for field in self._schema
        ]
        self._tables.append(pa.table(columns, schema=self._schema))
        if sum(table.nbytes for table in self._tables) >= _GROUP_BYTES:
            self._write()

    def finish(self, part: Part) -> None:
        """The file is whole."""
        try:
            self._write()
            about = {"question": part.question, "shard": part.shard, "bad": part.bad}
            self._writer.add_key_value_metadata({_ABOUT: json.dumps(about)})
            self._writer.close()
            self._stack.close()
        except OSError as error:
            raise self._failed(error) from None

    def abandon(self) -> None:
        """Leave nothing of it. After `finish` it does nothing."""
        if self._writer is not None:
            with suppress(OSError, ValueError, pa.ArrowException):
                self._writer.close()
            self._writer.is_open = False  # where closing failed, its __del__ would try again, and complain
        with suppress(_Abandoned, OSError), self._stack:
            raise _Abandoned

    def _write(self) -> None:
        table = pa.concat_tables(self._tables) if self._tables else ()
        self._tables = []
        if len(table):
            try:
                self._writer.write_table(table, row_group_size=len(table))
            except OSError as error:
                raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        self.abandon()
        return OutputError(
            f"{self._path}: cannot be written ({error.strerror or error}); make room there, or let this user write "
            "there, and give the same command again to go on"
        )


class _Abandoned(Exception):
    pass


def _as_lists(vectors: NDArray[Any], list_type: Any) -> Any:
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1), list_type.value_type)
    return pa.FixedSizeListArray.from_arrays(values, list_type.list_size).cast(list_type)
