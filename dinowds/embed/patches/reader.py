"""Features on disk: a folder that `dinowds embed patch` wrote, or Parquet files of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dinowds.errors import DatasetError

FORMAT_VERSION = 1
ABOUT_NAME = "features.json"
"""Written last: a folder of `dinowds embed patch` without it is unfinished."""
UNFINISHED_NAME = ".unfinished.json"
FEATURE, TOKENS = "feature", "tokens"

FEATURES_NAME = "features-{:06d}.parquet"
"""By the number of the dataset's shard."""

_POSITION = ("slide", "x", "y")
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, pa.ArrowException)
"""What pyarrow raises for a damaged file."""


def features_schema(dim: int, dtype: Any, token_values: int | None) -> Any:
    """Columns of what `dinowds embed patch` writes.

    Args:
        dtype: Arrow's float16 or float32.
        token_values: T · D, the values of an image's patch tokens; None without these.
    """
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("slide", pa.string()),
        pa.field("x", pa.int64()),  # of the patch's left edge in its slide, in the units of the source's names
        pa.field("y", pa.int64()),  # of the patch's top edge
        pa.field("label", pa.int64()),  # position in `label_names`
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # px, of the image as it is stored
        pa.field("height", pa.int32(), nullable=False),
        pa.field(FEATURE, vector_type(dim, dtype), nullable=False),  # NaN where the image could not be read
    ]
    if token_values is not None:
        columns.append(pa.field(TOKENS, vector_type(token_values, dtype), nullable=False))
    return pa.schema(columns)


def vector_type(length: int, dtype: Any) -> Any:
    """Fixed-size list of numbers without nulls."""
    return pa.list_(pa.field("element", dtype, nullable=False), length)


@dataclass(frozen=True)
class Features:
    """Rows of features in one or more Parquet files. Holds none of them open."""

    path: str
    files: tuple[Path, ...]
    """In their order, which is that of the rows."""
    dim: int
    """D."""
    dtype: np.dtype[Any]
    """float16 or float32, of the features as stored; of others' files also float64."""
    counts: tuple[int, ...]
    """Rows of each file."""
    about: dict[str, Any]
    """What `features.json` says; {} for files of others."""

    def __len__(self) -> int:
        """Rows."""
        return sum(self.counts)

    def tables(self, columns: Sequence[str] = (*_POSITION, FEATURE)) -> Iterator[Any]:
        """Arrow tables of these columns, a row group each, in the order of the rows. x and y come as int64.

        Raises:
            DatasetError: a file has changed since, is damaged, or has no such column.
        """
        for path, count in zip(self.files, self.counts, strict=True):
            with _opened(path) as file:
                _check_columns(path, file.schema_arrow, columns)
                if file.metadata.num_rows != count:
                    raise DatasetError(f"{path}: has {file.metadata.num_rows} rows now, had {count}; begin anew")
                for group in range(file.num_row_groups):
                    yield _read(path, file, group, columns)

    def matrix(self, table: Any) -> NDArray[Any]:
        """The features of a table that `tables` gave: `dtype` [n, D]. A row that is NaN has no feature.

        Raises:
            DatasetError: a feature is missing, or not of D values.
        """
        return vectors(table.column(FEATURE), self.dim, self.path)


def read_features(location: str | Path) -> Features:
    """Open a folder that `dinowds embed patch` wrote; or a Parquet file of others, or a folder of such files.

    Files of others need the columns `slide` (text), `x` and `y` (integers) and `feature` (lists of D float16, float32
    or float64); of a folder, all `*.parquet` in the order of their names, each with the same D and type. Only footers
    and the first row of each file are read here.

    Raises:
        DatasetError: there are no features, they are unfinished, damaged, or not of this form.
    """
    path = Path(location)
    about = _about(path)
    if about:
        files = tuple(path / FEATURES_NAME.format(shard) for shard in range(about["shards"]))
    else:
        files = (path,) if path.is_file() else tuple(sorted(path.glob("*.parquet")))
    if not files:
        raise DatasetError(
            f"{path}: has no *.parquet; give a folder that 'dinowds embed patch' wrote, or Parquet files"
        )
    counts, found = [], []
    for file_path in files:
        with _opened(file_path) as file:
            _check_columns(file_path, file.schema_arrow, (*_POSITION, FEATURE))
            counts.append(file.metadata.num_rows)
            if file.metadata.num_rows:
                found.append((file_path, _dim_and_dtype(file_path, file)))
    if not found:
        raise DatasetError(f"{path}: has no rows, expected features")
    if other := next((entry for entry in found if entry[1] != found[0][1]), None):
        raise DatasetError(
            f"{other[0]}: features are {_say(other[1])}, those of {found[0][0].name} {_say(found[0][1])}"
        )
    if about and sum(counts) != about["samples"]:
        raise DatasetError(f"{path}: has {sum(counts)} rows, {ABOUT_NAME} says {about['samples']}; make it again")
    (dim, dtype) = found[0][1]
    return Features(str(location), files, dim, dtype, tuple(counts), about)


def vectors(column: Any, length: int, where: str) -> NDArray[Any]:
    """An Arrow column of lists of `length` numbers each → [n, length].

    Raises:
        DatasetError: a list or a number in one is missing, or a list has another length.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        raise DatasetError(f"{where}: {array.null_count} rows have no feature, expected one in each")
    lengths = pc.list_value_length(array)
    if len(array) and pc.min_max(lengths).as_py() != {"min": length, "max": length}:
        raise DatasetError(f"{where}: features of {pc.min_max(lengths).as_py()} values, expected {length} in each")
    flat = array.flatten()
    if flat.null_count:
        raise DatasetError(f"{where}: {flat.null_count} values of features are null, expected numbers")
    found: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(array), length)
    return found


def _about(path: Path) -> dict[str, Any]:
    """What features.json says; {} where there is none and none is due."""
    try:
        content = json.loads((path / ABOUT_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (path / UNFINISHED_NAME).exists():
            raise DatasetError(f"{path}: unfinished features; run the same 'dinowds embed' again to go on") from None
        if not path.exists():
            raise DatasetError(f"{path}: no such folder or file; give what 'dinowds embed patch' wrote") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path / ABOUT_NAME}: cannot be read ({error}); make the features again") from None
    try:
        version, kind = content["format_version"], content["kind"]
        numbers = [int(content[name]) for name in ("shards", "samples", "dim")]
    except (LookupError, TypeError, ValueError):
        raise DatasetError(f"{path / ABOUT_NAME}: not of features of dinowds; give another folder") from None
    if (kind, version) != ("features", FORMAT_VERSION):
        raise DatasetError(
            f"{path / ABOUT_NAME}: is of {kind!r}, version {version!r}; this dinowds reads 'features', {FORMAT_VERSION}"
        )
    if min(numbers) < 0:
        raise DatasetError(f"{path / ABOUT_NAME}: has a negative number of shards or samples; make the features again")
    return dict(content)


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; make the features again") from None
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from None


def _read(path: Path, file: Any, group: int, columns: Sequence[str]) -> Any:
    try:
        table = file.read_row_group(group, columns=list(columns)).select(list(columns))
        for name in ("x", "y"):
            if name in columns:
                at = table.column_names.index(name)
                table = table.set_column(at, name, table.column(name).cast(pa.int64()))
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: row group {group} cannot be read ({_first_line(error)})") from None
    return table


def _check_columns(path: Path, schema: Any, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in schema.names]:
        raise DatasetError(f"{path}: has no column {missing[0]!r}, expected {', '.join(columns)}")
    for name in columns:
        found = schema.field(name).type
        if name in ("x", "y") and not pa.types.is_integer(found):
            raise DatasetError(f"{path}: column {name!r} is {found}, expected integers")
        if name in ("width", "height") and not pa.types.is_integer(found):
            raise DatasetError(f"{path}: column {name!r} is {found}, expected integers")
        if name in ("slide", "cohort") and not _is_text(found):
            raise DatasetError(f"{path}: column {name!r} is {found}, expected text")
        if name == "label" and pa.types.is_nested(found):
            raise DatasetError(f"{path}: column 'label' is {found}, expected text or numbers")
        if name in (FEATURE, TOKENS) and not (_is_list(found) and pa.types.is_floating(found.value_type)):
            raise DatasetError(f"{path}: column {name!r} is {found}, expected lists of float16, float32 or float64")


def _is_text(found: Any) -> bool:
    plain = found.value_type if pa.types.is_dictionary(found) else found
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))


def _is_list(found: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(found) or pa.types.is_list(found) or pa.types.is_large_list(found))


def _dim_and_dtype(path: Path, file: Any) -> tuple[int, np.dtype[Any]]:
    found = file.schema_arrow.field(FEATURE).type
    dtype = np.dtype(found.value_type.to_pandas_dtype())
    if pa.types.is_fixed_size_list(found):
        return found.list_size, dtype
    try:
        first = next(file.iter_batches(batch_size=1, columns=[FEATURE])).column(0)[0]
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read ({_first_line(error)})") from None
    if not first.is_valid or not len(first):
        raise DatasetError(f"{path}: its first row has no feature, expected one in each")
    return len(first), dtype


def _say(form: tuple[int, np.dtype[Any]]) -> str:
    return f"{form[0]} × {form[1]}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
