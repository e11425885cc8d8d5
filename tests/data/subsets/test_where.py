"""--where against Python's own reading of the same condition."""

from __future__ import annotations

import ast

import numpy as np
import pyarrow as pa
import pytest

from dinowds.data.manifest import SAMPLES_SCHEMA
from dinowds.data.subsets.where import parse_where
from dinowds.errors import ConfigError
from tests.index_only import LABELS, Row, random_rows

ROWS = [{**row, "shard": place % 3} for place, row in enumerate(random_rows(200))]
PLAIN = pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in SAMPLES_SCHEMA])

CONDITIONS = [
    "cohort == 'cohort1' and label != 3",
    "label != 3",
    "not label == 3",
    "label == 2 or slide is None",
    "label is None",
    "label is not None and not slide is None",
    "label == None",
    "label != None",
    "None != label",
    "slide in ['slide1', 'slide2', 'other']",
    "slide not in ('slide1', None)",
    "slide in {None}",
    "slide in []",
    "slide not in []",
    "label in [1, 2.0, 2.5, 1e300, None]",
    "label in [99999999999]",
    "width in [4294967296, 17, -3]",
    "label_name == 'stroma'",
    "label_name != 'stroma'",
    "label_name in ['fat', 'mucus'] or label_name is None",
    "width == height",
    "x == y",
    "x != y or slide == slide",
    "width < height <= 200",
    "100 < width",
    "offset >= 549755813888.5",
    "size > 4000000000 or width < 10",
    "ext == 'png' and (cohort == 'cohort0' or cohort == 'cohort2') and not (shard == 1)",
    "key >= '0-000100'",
    "source_name != source and slide != cohort",
    "not not width > 100",
    "'A' == 'A'",
    "1 < 2",
    "ext == 'j\\x70g'",
]


def by_python(condition: str, row: Row) -> bool:
    names = {**row, "label_name": None if row["label"] is None else LABELS[row["label"]]}
    return bool(eval(condition, {"__builtins__": {}}, names))  # noqa: S307 - our own conditions


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_where__is_what_python_says(condition: str, rows: list[Row]) -> None:
    where = parse_where(condition, LABELS)
    table = pa.Table.from_pylist(rows, schema=PLAIN).select(list(where.columns or ("shard",)))
    found = where.test(table)
    assert found.null_count == 0
    assert found.to_pylist() == [by_python(condition, row) for row in rows]


@pytest.mark.parametrize(("operator", "expected"), [("<", 100), ("<=", 100), (">", 0), (">=", 0)])
def test_where__none_is_neither_less_nor_greater(operator: str, expected: int) -> None:
    for condition, holds in ((f"x {operator} 10", False), (f"not x {operator} 10", True)):
        table = pa.table({"x": pa.array([None], pa.int64())})
        assert parse_where(condition, ()).test(table).to_pylist() == [holds]
    table = pa.table({"x": pa.array([10**6], pa.int64())})
    assert parse_where(f"x {operator} {10**6 + (1 if expected == 100 else -1)}", ()).test(table).to_pylist() == [True]


def test_where__random_conditions() -> None:
    random = np.random.default_rng(0)
    simple = [f"({text})" for text in CONDITIONS]

    def condition(depth: int) -> str:
        if depth == 0:
            return simple[random.integers(len(simple))]
        kind = random.integers(3)
        parts = [condition(depth - 1) for _ in range(1 if kind == 2 else random.integers(2, 4))]
        return f"(not {parts[0]})" if kind == 2 else f"({[' and ', ' or '][kind].join(parts)})"

    table = pa.Table.from_pylist(ROWS, schema=PLAIN)
    for _ in range(60):
        text = condition(3)
        expected = [by_python(text, row) for row in ROWS]
        assert parse_where(text, LABELS).test(table).to_pylist() == expected, text


def test_where__long_lists_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting the text of an entry out of the condition goes through the whole condition."""

    def refuse(*_: object) -> str:
        raise AssertionError

    monkeypatch.setattr(ast, "get_source_segment", refuse)
    where = parse_where(f"width in {list(range(100))} and -1 <= label", LABELS)
    assert where.columns == ("width", "label")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("cohor == 'A'", "unknown column 'cohor'; did you mean 'cohort'?"),
        ("zzzzzz == 1", "unknown column 'zzzzzz'; there are key, shard"),
        ("cohort == A", "unknown column 'A'"),
        ("digest == 'x'", "column 'digest' is bytes"),
        (
            "label == 'tumour'",
            "with 'tumour', which is text; for a label's name use label_name",
        ),
        ("cohort < 3", "compares cohort, which is text, with 3, which is a number"),
        ("slide in ['a', 3]", "compares slide, which is text, with 3"),
        ("width == slide", "compares width, which is a number, with slide, which is text"),
        ("x < None", "None is neither less nor greater"),
        ("x is 3", "'is' is for None alone"),
        ("slide in cohort", "expected a list after 'in'"),
        ("slide in 'abc'", "expected a list after 'in'"),
        ("slide in [cohort]", "has the column cohort in a list"),
        ("cohort = 'A'", "cannot be understood"),
        ("", "cannot be understood"),
        ("cohort ==", "cannot be understood"),
        ("a\0b", "cannot be understood"),
        ("cohort", "where a comparison is expected"),
        ("True", "where a comparison is expected"),
        ("label == True", "has True"),
        ("-cohort == 3", "has -cohort"),
        ("label == 9223372036854775808", "has 9223372036854775808"),
        ("cohort == b'A'", "has b'A'"),
        ("cohort == '\\ud800'", "has '"),
        ("cohort.upper() == 'A'", "has cohort.upper()"),
        ("__import__('os') == 1", "has __import__('os')"),
        ("x + 1 == 3", "has x + 1"),
        ("[x for x in 'a'] == 1", "has [x for x in 'a']"),
        ("(lambda: 1)() == 1", "has (lambda: 1)()"),
        ("x == 1 if y else 2", "where a comparison is expected"),
        ("(y := 3) == 3", "has y := 3"),
        ("f'{x}' == 'a'", "has f'{x}'"),
        ("x[0] == 1", "has x[0]"),
        ("not " * 300 + "x == 1", "nested more than"),
        ("(" * 5000 + "x == 1" + ")" * 5000, "cannot be understood"),
    ],
)
def test_where__what_is_not_understood_is_one_line(condition: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_where(condition, LABELS)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--where ")
    assert "\n" not in str(caught.value)
