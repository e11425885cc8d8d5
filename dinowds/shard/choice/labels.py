"""Labels from a table, joined with those that the sources bring."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.matching import TEXT, without_root
from dinowds.errors import ConfigError
from dinowds.shard.choice.lists import NAME_COLUMNS, Table, find_entries
from dinowds.shard.repeats import first_equals

_OPTION = "--labels"
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_SAME_INTEGER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")


@dataclass(frozen=True)
class LabelTable:
    """Labels as they were read: `entries`, large_string [M] that all differ, and `codes`, int64 [M], the position of
    each one's label in `label_names`.

    `is_ordered`: the order of the names was given. `num_empty` rows have no label and are not among the entries.
    """

    path: Path
    entries: Any
    codes: npt.NDArray[np.int64]
    label_names: tuple[str, ...]
    is_ordered: bool
    num_empty: int


def read_labels(
    path: Path, name_column: str | None = None, label_column: str | None = None, class_column: str | None = None
) -> LabelTable:
    """Read a CSV of labels: UTF-8; commas, semicolons or tabs; a header.

    Labels are integers (1 and 1.0 are the same, as tables with gaps are often written so) or names. Label names are
    the names of the class column in the order of its integers; without one the integers in their order, or the names in
    the order of their text. They are of all rows, so that parts of a cohort with one table are numbered alike.

    Args:
        name_column: names of samples or slides; None for the first of NAME_COLUMNS that there is.
        label_column: None for `label`.
        class_column: the names that belong to integers; None for none.

    Raises:
        ConfigError: the file, a column or a value cannot be used; one entry has two labels, or none has any.
    """
    table = Table(_OPTION, path)
    name_column = table.find(name_column, NAME_COLUMNS, "--name-column")
    label_column = table.find(label_column, ("label",), "--label-column")
    columns = [name_column, label_column]
    if class_column is not None:
        class_column = table.find(class_column, (), "--class-column")
        columns.append(class_column)
    rows = pa.table(table.read(list(dict.fromkeys(columns))))
    rows = rows.filter(pc.not_equal(rows[name_column], ""))
    full = rows.filter(pc.not_equal(rows[label_column], ""))
    if not len(full):
        raise ConfigError(f"{_OPTION} {path}: has no row with a name and a label")
    labels = full[label_column].combine_chunks().dictionary_encode()
    texts = _same_integers(labels.dictionary.to_pylist())
    names = texts if class_column is None else _class_names(path, labels, texts, full[class_column])
    label_names = in_order(names) if class_column is None else tuple(_by_number(texts, names))
    position = {name: index for index, name in enumerate(label_names)}
    codes = np.array([position[name] for name in names], np.int64)[labels.indices.to_numpy()]
    entries, codes = _one_each(path, without_root(full[name_column].combine_chunks()), codes, label_names)
    return LabelTable(path, entries, codes, label_names, class_column is not None, len(rows) - len(full))


def match_labels(table: LabelTable | None, columns: Any) -> tuple[npt.NDArray[np.int64], tuple[str, ...], list[str]]:
    """Labels of N samples: the table's, and for samples that it gives none those of the sources.

    Label names are the table's and those that samples have from the sources, in one order (`in_order`); where a class
    column orders the table's, the sources' others come after them.

    Args:
        columns: Arrow table [N] as for `match_entries`; and `label`, text or integers, where the sources have labels.

    Returns:
        Positions in the label names, int64 [N], -1 for none; the label names; notices.

    Raises:
        ConfigError: an entry means several samples, no entry means any, or one sample has two labels.
    """
    notices: list[str] = []
    codes = np.full(len(columns), -1, np.int64)
    names: tuple[str, ...] = ()
    if table is not None:
        codes, notices = _apply(table, columns)
        names = table.label_names
    if "label" in columns.column_names:
        brought = pc.cast(columns["label"], TEXT).combine_chunks()
        codes, names = _join(codes, names, table is not None and table.is_ordered, brought)
    if table is not None:
        title = f"{_OPTION} {table.path}"
        if "label" in columns.column_names and (both := len(brought) - brought.null_count):
            notices.append(f"{title}: {both} samples have a label in the sources, too; the table's go before those")
        if without := int(np.count_nonzero(codes < 0)):
            notices.append(f"{title}: {without} of {len(codes)} samples have no label")
    return codes, names, notices


def _apply(table: LabelTable, columns: Any) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The table's labels of N samples, -1 for none, and notices."""
    matches, notices = find_entries(_OPTION, table.path, table.entries, columns)
    if table.num_empty:
        notices.append(f"{_OPTION} {table.path}: {table.num_empty} rows have no label and are left out")
    codes = np.full(len(columns), -1, np.int64)
    new = table.codes[matches.entries]
    codes[matches.samples] = new
    other = np.flatnonzero(codes[matches.samples] != new)
    if len(other):
        sample = matches.samples[other[0]]
        raise _two_labels(table.path, columns["path"][sample].as_py(), table.label_names, new[other[0]], codes[sample])
    return codes, notices


def _join(
    codes: npt.NDArray[np.int64], names: tuple[str, ...], is_ordered: bool, brought: Any
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """`codes` of N samples, positions in `names`, filled with the labels that the sources brought, text [N]."""
    without = codes < 0
    encoded = brought.filter(pa.array(without)).dictionary_encode()
    others = encoded.dictionary.to_pylist()
    joined = names + in_order(set(others) - set(names)) if is_ordered else in_order({*names, *others})
    position = {name: index for index, name in enumerate(joined)}
    number, other = (np.array([*map(position.get, part), -1], np.int64) for part in (names, others))
    codes = number[codes]  # the last is for -1
    codes[without] = other[encoded.indices.fill_null(-1).to_numpy()]
    return codes, joined


def _two_labels(path: Path, name: str, label_names: tuple[str, ...], first: int, second: int) -> ConfigError:
    return ConfigError(
        f"{_OPTION} {path}: {name!r} has the labels {label_names[first]!r} and {label_names[second]!r}; "
        "expected one for each sample"
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Without doubles: by value where all are integers, else by text."""
    once = set(names)
    if all(_INTEGER.fullmatch(name) for name in once):
        return tuple(sorted(once, key=lambda name: (int(name), name)))
    return tuple(sorted(once))


def _same_integers(values: list[str]) -> list[str]:
    """All values in their shortest form where all are integers."""
    matches = [_SAME_INTEGER.fullmatch(value) for value in values]
    return [str(int(match[1])) for match in matches if match] if all(matches) else values


def _class_names(path: Path, labels: Any, texts: list[str], classes: Any) -> list[str]:
    """The class name of each distinct label."""
    if words := [text for text in texts if not _INTEGER.fullmatch(text)]:
        raise ConfigError(f"{_OPTION} {path}: label {words[0]!r} is no integer, as --class-column needs; leave it out")
    pairs = pa.table({"label": labels.indices, "class": classes}).group_by(["label", "class"]).aggregate([])
    name_of: dict[str, str] = {}
    number_of: dict[str, str] = {}
    for index, name in zip(pairs["label"].to_pylist(), pairs["class"].to_pylist(), strict=True):
        number = texts[index]
        if not name:
            raise ConfigError(f"{_OPTION} {path}: label {number} has a row without a class name; give each one")
        if name_of.setdefault(number, name) != name:
            raise ConfigError(
                f"{_OPTION} {path}: label {number} is called {name_of[number]!r} and {name!r}; expected one class name"
            )
        if number_of.setdefault(name, number) != number:
            raise ConfigError(
                f"{_OPTION} {path}: class {name!r} has the labels {number_of[name]} and {number}; expected one"
            )
    return [name_of[text] for text in texts]


def _by_number(texts: list[str], names: list[str]) -> Iterable[str]:
    return dict.fromkeys(name for _, name in sorted(zip(map(int, texts), names, strict=True)))


def _one_each(
    path: Path, names: Any, codes: npt.NDArray[np.int64], label_names: tuple[str, ...]
) -> tuple[Any, npt.NDArray[np.int64]]:
    """Each name once, with its label."""
    first = first_equals(names)
    other = np.flatnonzero(codes != codes[first])
    if len(other):
        row = int(other[0])
        raise _two_labels(path, names[row].as_py(), label_names, codes[first[row]], codes[row])
    is_first = first == np.arange(len(names))
    return names.filter(pa.array(is_first)), codes[is_first]
