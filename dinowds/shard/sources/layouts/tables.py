"""Columns from the CSV and Parquet files that come with images, and what several sidecars say together."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dinowds.errors import SourceError
from dinowds.files import open_regular
from dinowds.shard.records import decode_name

_DELIMITERS = ",;\t"
_MAX_HEADER = 1 << 16
_PARQUET = b"PAR1"
_EXACT = 2**53

Names = Mapping[str, Sequence[str]]
"""What a column is called here → its names in files, in lower case, the first one that is there counts."""


def read_columns(file: Path, text: str, wanted: Names) -> Any:
    """The wanted columns that a table has, as large_binary [N]: a CSV's cells as written, null where empty.

    A CSV is separated by commas, semicolons or tabs, with a header. `text` names the file in errors.

    Raises:
        SourceError: it is damaged, or a line has another number of cells than the header.
    """
    try:
        with open(open_regular(file), "rb") as stream:
            head = stream.read(_MAX_HEADER)
            stream.seek(0)
            table = _read_parquet(stream, wanted) if head.startswith(_PARQUET) else _read_csv(stream, head, wanted)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{text}: cannot be read ({_said(error)}); write it again") from None
    except OSError as error:
        raise SourceError(f"{text}: cannot be read ({error.strerror or _said(error)})") from None
    return table


def integers(column: Any, name: str, text: str) -> Any:
    """A column of `read_columns` as int64 [N]. '512.0' is one, as some tools write it; nulls stay.

    Raises SourceError, which names the first line that holds something else.
    """
    texts = pc.utf8_trim_whitespace(strings(column, name, text))
    try:
        return pc.cast(texts, pa.int64())
    except pa.ArrowInvalid:
        pass
    try:
        values = pc.cast(texts, pa.float64())
        bad = pc.or_(pc.not_equal(pc.round(values), values), pc.greater_equal(pc.abs(values), float(_EXACT)))
        if not pc.any(bad).as_py():
            return pc.cast(values, pa.int64())
    except pa.ArrowInvalid:
        bad = pc.invert(pc.match_substring_regex(texts, r"^[+-]?[0-9]{1,15}(\.0*)?$"))
    row = pc.index(bad, True).as_py()
    raise SourceError(f"{text}: line {line_of(row)}: {name} is {_quoted(column[row])}, expected an integer")


def strings(column: Any, name: str, text: str) -> Any:
    """A column of `read_columns` as large_string [N]. Raises SourceError for what is not UTF-8."""
    try:
        return pc.cast(column, pa.large_string())
    except pa.ArrowInvalid:
        raise SourceError(f"{text}: its column {name} is not UTF-8; write it again as UTF-8") from None


def line_of(row: int) -> int:
    """The line of a row of a CSV, whose first line is its header."""
    return row + 2


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What sidecars say together: of each key the value, or the number of sidecars for each value.

    >>> summary([{"mpp": 0.5}, {"mpp": 0.5}])
    {'mpp': 0.5}
    >>> summary([{"mpp": 0.5}, {"mpp": 0.25}, {}])
    {'mpp': {'0.25': 1, '0.5': 1, 'unknown': 1}}
    """
    together: dict[str, Any] = {}
    for key in sorted({key for said in found for key in said}):
        counts = Counter(said.get(key, "unknown") for said in found)
        together[key] = next(iter(counts)) if len(counts) == 1 else dict(sorted((str(v), n) for v, n in counts.items()))
    return together


def positive(value: Any) -> float | None:
    """A number from a JSON file that can be a size or a spacing; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < math.inf else None


def _said(error: Exception) -> str:
    """One line, of an error that may repeat cells."""
    return "".join(filter(str.isprintable, " ".join(str(error).split())))


def _quoted(cell: Any) -> str:
    return repr(decode_name(cell.as_py())[:100])


def _choose(present: Sequence[str], wanted: Names) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(present)}
    return {here: by_name[name] for here, names in wanted.items() for name in names[::-1] if name in by_name}


def _header(head: bytes, wanted: Names) -> tuple[str, list[str]]:
    """Delimiter and column names: of the delimiters the one that finds most columns."""
    line = head.decode("utf-8-sig", "replace").partition("\n")[0].rstrip("\r")
    splits = [(delimiter, _split(line, delimiter)) for delimiter in _DELIMITERS]
    return max(splits, key=lambda split: len(_choose(split[1], wanted)))


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _read_csv(stream: Any, head: bytes, wanted: Names) -> Any:
    delimiter, present = _header(head, wanted)
    chosen = _choose(present, wanted)
    if not chosen:
        return pa.table({})
    positions = [present.index(name) for name in chosen.values()]
    numbered = [str(position) for position in range(len(present))]
    table = pa_csv.read_csv(
        stream,
        pa_csv.ReadOptions(column_names=numbered, skip_rows=1, use_threads=False),
        pa_csv.ParseOptions(delimiter=delimiter),
        pa_csv.ConvertOptions(
            include_columns=[str(position) for position in positions],
            column_types=dict.fromkeys(numbered, pa.large_binary()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    return table.rename_columns(list(chosen))


def _read_parquet(stream: Any, wanted: Names) -> Any:
    file = pq.ParquetFile(stream)
    chosen = _choose(file.schema_arrow.names, wanted)
    table = file.read(columns=list(chosen.values()), use_threads=False)
    columns = {}
    for here, name in chosen.items():
        is_bytes = pa.types.is_binary(table[name].type) or pa.types.is_large_binary(table[name].type)
        cells = table[name] if is_bytes else pc.cast(table[name], pa.large_string())
        columns[here] = pc.cast(cells, pa.large_binary())
    return pa.table(columns)
