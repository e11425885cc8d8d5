"""Lists and tables of samples that users bring, and what their entries mean."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dinowds.data.matching import FORMS, TEXT, Matches, match_entries, without_root
from dinowds.errors import ConfigError
from dinowds.shard.repeats import first_equals, positions_in

NAME_COLUMNS = ("filename", "file_name", "image_path", "path", "name", "image", "key", "slide_id", "slide")
"""Where names are looked for in a table: in the first of these that it has."""

_DELIMITERS = ",;\t"
_MAX_HEADER = 1 << 16
_SHOWN = 3
_BETTER = {
    "path": "cohort/path",
    "path without extension": "the path with its extension, or cohort/path",
    "cohort/path without extension": "cohort/path with its extension",
    "slide/file name without extension": "slide/file name with its extension, or the path in the source",
    "slide/file name": "the path in the source, or cohort/path",
    "cohort/path": "a list without it: it cannot be told which is meant",
}
_ELSE_BETTER = "slide/file name, or the path in the source"


class Table:
    """A CSV whose header has been read: UTF-8, fields between the commas, semicolons or tabs of that line."""

    def __init__(self, option: str, path: Path) -> None:
        """Raises ConfigError: it cannot be read, or is empty."""
        self.option, self.path = option, path
        with file_errors(option, path):
            with open(path, encoding="utf-8-sig", newline="") as file:
                line = file.readline(_MAX_HEADER)
            self.delimiter = max(_DELIMITERS, key=line.count)
            header = next(csv.reader([line], delimiter=self.delimiter), [])
        self.columns = [name.strip() for name in header]

    def find(self, column: str | None, defaults: Sequence[str], option: str) -> str:
        """The column that was named, or the first of the defaults that there is. Raises ConfigError."""
        name = column or next((name for name in defaults if name in self.columns), None)
        if self.columns.count(name or "") == 1 and name:
            return name
        title = f"{self.option} {self.path}"
        if name in self.columns:
            raise ConfigError(f"{title}: has {self.columns.count(name)} columns {name!r}, expected one")
        if column:
            near = difflib.get_close_matches(column, self.columns, 1)
            raise ConfigError(
                f"{title}: has no column {column!r} of {option}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" (columns: {', '.join(self.columns)})"
            )
        expected = defaults[0] if len(defaults) == 1 else f"of {', '.join(defaults)}"
        raise ConfigError(
            f"{title}: has no column {expected} (columns: {', '.join(self.columns)}); name one with {option}"
        )

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """large_string arrays, without white space at the ends of values, of the columns `names`."""
        wanted = {name: str(self.columns.index(name)) for name in names}
        with file_errors(self.option, self.path):
            table = pyarrow.csv.read_csv(
                self.path,
                pyarrow.csv.ReadOptions(
                    use_threads=False, skip_rows=1, column_names=[str(i) for i in range(len(self.columns))]
                ),
                pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                pyarrow.csv.ConvertOptions(
                    include_columns=list(wanted.values()), column_types=dict.fromkeys(wanted.values(), TEXT)
                ),
            )
        return {name: pc.utf8_trim_whitespace(table[column]).combine_chunks() for name, column in wanted.items()}


def read_list(option: str, path: Path) -> Any:
    """The entries of a list, large_string [M], without doubles, in the order of the file.

    The file has one entry a line; empty lines and those that begin with '#' are skipped. Or it is a CSV whose first
    line has one of NAME_COLUMNS.

    Raises:
        ConfigError: it cannot be read, or holds nothing.
    """
    table = Table(option, path)
    if set(NAME_COLUMNS) & set(table.columns):
        name = table.find(None, NAME_COLUMNS, "")
        entries = table.read([name])[name]
        entries = entries.filter(pc.not_equal(entries, ""))
    else:
        with file_errors(option, path):
            content = pa.array([path.read_bytes().removeprefix(b"\xef\xbb\xbf")], pa.large_binary()).cast(TEXT)
        lines = pc.utf8_trim_whitespace(pc.split_pattern(content, "\n").values)
        is_entry = pc.and_(pc.not_equal(lines, ""), pc.invert(pc.starts_with(lines, "#")))
        entries = lines.filter(is_entry)
    if not len(entries):
        raise ConfigError(f"{option} {path}: holds no entry; expected one a line")
    entries = without_root(entries)
    return entries.filter(pa.array(first_equals(entries) == np.arange(len(entries))))


def find_listed(option: str, path: Path, columns: Any) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """bool [N]: which samples the list names, by themselves or by their slide; and notices.

    Args:
        columns: Arrow table [N] as for `match_entries`.

    Raises:
        ConfigError: the list cannot be read, an entry means several samples, or no entry means any.
    """
    entries = read_list(option, path)
    matches, notices = find_entries(option, path, entries, columns)
    listed = np.zeros(len(columns), np.bool_)
    listed[matches.samples] = True
    return listed, notices


def find_entries(option: str, path: Path, entries: Any, columns: Any) -> tuple[Matches, list[str]]:
    """What entries, text [M] that all differ, mean, and notices of those that mean nothing.

    Raises:
        ConfigError: an entry that does not name a slide means several samples, or no entry means any.
    """
    matches = match_entries(entries, columns, positions_in)
    ambiguous = np.flatnonzero((matches.count > 1) & ~matches.names_slides)
    if len(ambiguous):
        worst = int(ambiguous[0])
        form = FORMS[matches.form[worst]].title
        others = f", and {len(ambiguous) - 1} more entries are as unclear" if len(ambiguous) > 1 else ""
        raise ConfigError(
            f"{option} {path}: entry {entries[worst].as_py()!r} is the {form} of {matches.count[worst]} samples"
            f"{others}; give {_BETTER.get(form, _ELSE_BETTER)}"
        )
    missing = np.flatnonzero(matches.count == 0)
    if not len(missing):
        return matches, []
    shown = ", ".join(repr(entries[index].as_py()) for index in missing[:_SHOWN].tolist())
    shown += ", …" if len(missing) > _SHOWN else ""
    if len(missing) == len(entries):
        example = f"; they have names like {columns['path'][0].as_py()!r}" if len(columns) else ""
        raise ConfigError(f"{option} {path}: no entry is a sample or slide of the sources ({shown}){example}")
    return matches, [
        f"{option} {path}: {len(missing)} of {len(entries)} entries are no sample or slide of the sources: {shown}"
    ]


@contextmanager
def file_errors(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror}); expected a text file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option} {path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (pa.ArrowInvalid, csv.Error) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{option} {path}: cannot be read as UTF-8 text or CSV ({reason})") from None
