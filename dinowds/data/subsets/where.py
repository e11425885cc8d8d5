"""The conditions of `dinowds subset --where`: a small language with Python's syntax, evaluated by Arrow.

    cohort == 'A' and (label_name in ['tumour', 'stroma'] or label is None) and 0 <= x < 4096

Names are columns of samples.parquet and `label_name`. A condition compares them with each other or with numbers, text
and None, by == != < <= > >= in, not in, is, is not; conditions are joined by and, or, not. Nothing else is understood.

Every condition is true or false, never unknown: None equals only None, and is neither less nor greater than anything.
So `label != 3` holds for a sample without a label, as in Python.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dinowds.data.manifest import SAMPLES_SCHEMA
from dinowds.errors import ConfigError

LABEL_NAME = "label_name"

Kind = Literal["number", "text", "None"]

_ORDER = {ast.Lt: pc.less, ast.LtE: pc.less_equal, ast.Gt: pc.greater, ast.GtE: pc.greater_equal}
_MAX_DEPTH = 200


class _Operand(NamedTuple):
    kind: Kind
    value: Any
    """The literal, or what gives the column of a table."""
    node: ast.expr
    is_column: bool


_Test = Callable[[Any], Any]
"""Arrow table → boolean array of its rows, without nulls."""


class Where(NamedTuple):
    """A condition that was understood."""

    columns: tuple[str, ...]
    """Columns of samples.parquet that it reads."""
    test: _Test
    """A table with these columns → boolean Arrow array [rows], without nulls."""


def parse_where(text: str, label_names: Sequence[str]) -> Where:
    """Understand a condition.

    Args:
        label_names: the manifest's.

    Raises:
        ConfigError: it is not of this language, or has an unknown name or values that cannot be compared.
    """
    return _Parser(text, label_names).where()


class _Parser:
    def __init__(self, text: str, label_names: Sequence[str]) -> None:
        self._text, self._label_names = text, list(label_names)
        self._columns: dict[str, None] = {}

    def where(self) -> Where:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes in text
                tree = ast.parse(self._text.strip(), mode="eval")
        except SyntaxError as error:
            raise self._error(f"cannot be understood ({error.msg})") from None
        except (ValueError, MemoryError, RecursionError):
            raise self._error("cannot be understood") from None
        test = self._condition(tree.body, 0)
        return Where(tuple(self._columns), test)

    def _condition(self, node: ast.expr, depth: int) -> _Test:
        if depth > _MAX_DEPTH:
            raise self._error(f"is nested more than {_MAX_DEPTH} deep")
        if isinstance(node, ast.BoolOp):
            tests = [self._condition(value, depth + 1) for value in node.values]
            join = pc.and_ if isinstance(node.op, ast.And) else pc.or_
            return lambda rows: _joined(join, [test(rows) for test in tests])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._condition(node.operand, depth + 1)
            return lambda rows: pc.invert(inner(rows))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            tests = [self._comparison(*pair) for pair in pairs]
            return lambda rows: _joined(pc.and_, [test(rows) for test in tests])
        raise self._error(f"has {self._source(node)} where a comparison is expected, such as cohort == 'A'")

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> _Test:
        if isinstance(operator, (ast.In, ast.NotIn)):
            test = self._membership(self._operand(left), right)
            return test if isinstance(operator, ast.In) else lambda rows: pc.invert(test(rows))
        one, two = self._operand(left), self._operand(right)
        if isinstance(operator, (ast.Is, ast.IsNot)):
            if "None" not in (one.kind, two.kind):
                raise self._error("'is' is for None alone; compare other values with ==")
            test = self._equality(one, two)
            return test if isinstance(operator, ast.Is) else lambda rows: pc.invert(test(rows))
        if isinstance(operator, (ast.Eq, ast.NotEq)):
            test = self._equality(one, two)
            return test if isinstance(operator, ast.Eq) else lambda rows: pc.invert(test(rows))
        self._check_kinds(one, two)
        if "None" in (one.kind, two.kind):
            raise self._error("None is neither less nor greater than anything; use 'is None' or 'is not None'")
        compare = _ORDER[type(operator)]
        return lambda rows: _filled(compare(_column(one, rows), _column(two, rows)))

    def _equality(self, one: _Operand, two: _Operand) -> _Test:
        self._check_kinds(one, two)

        def test(rows: Any) -> Any:
            first, second = _column(one, rows), _column(two, rows)
            nulls = pc.and_(pc.is_null(first), pc.is_null(second))
            if "None" in (one.kind, two.kind):
                return nulls
            return pc.or_(_filled(pc.equal(first, second)), nulls)

        return test

    def _membership(self, one: _Operand, right: ast.expr) -> _Test:
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            raise self._error(f"expected a list after 'in', such as ['A', 'B'], found {self._source(right)}")
        entries = [self._operand(entry) for entry in right.elts]
        for entry in entries:
            if entry.is_column:
                raise self._error(
                    f"has the column {self._source(entry.node)} in a list; expected numbers, text or None"
                )
            self._check_kinds(one, entry)
        values = [entry.value for entry in entries if entry.kind != "None"]
        with_none = len(values) < len(entries)

        def test(rows: Any) -> Any:
            column = _column(one, rows)
            found = _filled(pc.is_in(column, value_set=_value_set(values, column.type))) if values else None
            nulls = pc.is_null(column) if with_none else None
            tests = [part for part in (found, nulls) if part is not None]
            return _joined(pc.or_, tests) if tests else pc.and_(pc.is_null(column), pc.is_valid(column))

        return test

    def _operand(self, node: ast.expr) -> _Operand:
        if isinstance(node, ast.Name):
            return self._named(node)
        whole, sign = node, 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
            if not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
                raise self._error(f"has {self._source(whole)}, expected a column, a number, text or None")
        if isinstance(node, ast.Constant):
            value = node.value
            if value is None:
                return _Operand("None", None, whole, False)
            if isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value):
                return _Operand("text", value, whole, False)
            if type(value) is float or (type(value) is int and -(1 << 63) <= sign * value < 1 << 63):
                return _Operand("number", sign * value, whole, False)
        raise self._error(f"has {self._source(whole)}, expected a column, a number, text or None")

    def _named(self, node: ast.Name) -> _Operand:
        name = node.id
        if name == LABEL_NAME:
            self._columns["label"] = None
            names = pa.array(self._label_names, pa.string())
            return _Operand("text", lambda rows: _names_of(rows["label"], names), node, True)
        known = {field.name: _kind(field.type) for field in SAMPLES_SCHEMA}
        if known.get(name) is None:
            usable = [column for column, kind in known.items() if kind] + [LABEL_NAME]
            near = difflib.get_close_matches(name, usable, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(usable)}"
            if name in known:
                raise self._error(f"column {name!r} is bytes and cannot be compared; {advice}")
            raise self._error(f"unknown column {name!r}; {advice} (text needs quotes)")
        self._columns[name] = None
        return _Operand(known[name] or "text", lambda rows: rows[name], node, True)

    def _check_kinds(self, one: _Operand, two: _Operand) -> None:
        if one.kind != two.kind and "None" not in (one.kind, two.kind):
            advice = ""
            texts = self._source(one.node), self._source(two.node)
            if "label" in texts:
                advice = f"; for a label's name use {LABEL_NAME}"
            raise self._error(
                f"compares {texts[0]}, which is {_a(one.kind)}, with {texts[1]}, which is {_a(two.kind)}{advice}"
            )

    def _source(self, node: ast.expr) -> str:
        """For errors alone: looks for the line in the whole text."""
        return ast.get_source_segment(self._text.strip(), node) or "something"

    def _error(self, problem: str) -> ConfigError:
        text = " ".join(self._text.split())
        return ConfigError(f"--where {(text if len(text) <= 100 else text[:99] + '…')!r}: {' '.join(problem.split())}")


def _a(kind: Kind) -> str:
    return "a number" if kind == "number" else kind


def _kind(data_type: Any) -> Kind | None:
    if pa.types.is_dictionary(data_type) or pa.types.is_string(data_type):
        return "text"
    return "number" if pa.types.is_integer(data_type) or pa.types.is_floating(data_type) else None


def _column(operand: _Operand, rows: Any) -> Any:
    """The column of an operand; a literal as an array of as many values."""
    if operand.is_column:
        return operand.value(rows)
    return pa.repeat(pa.scalar(operand.value), len(rows))


def _value_set(values: list[Any], data_type: Any) -> Any:
    """Those of the values that the column can hold."""
    if not pa.types.is_integer(data_type):
        return pa.array(values, data_type)
    bits = data_type.bit_width - 1
    return pa.array([int(v) for v in values if v == v // 1 and -(1 << bits) <= v < 1 << bits], data_type)


def _names_of(labels: Any, names: Any) -> Any:
    known = pc.if_else(_filled(pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))), labels, None)
    return pc.take(names, known)


def _filled(test: Any) -> Any:
    return pc.fill_null(test, False)


def _joined(join: Callable[[Any, Any], Any], tests: Sequence[Any]) -> Any:
    found = tests[0]
    for test in tests[1:]:
        found = join(found, test)
    return found
