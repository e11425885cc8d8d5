"""Labels of a table and of the sources."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dinowds.errors import ConfigError
from dinowds.shard.choice.labels import match_labels, read_labels

from .support import images

COLUMNS = images(["s1/a.jpg", "s1/b.jpg", "s2/a.jpg", "s2/c.jpg"])


def labels_of(
    tmp_path: Path, content: str | None, brought: list[str | None] | None = None, class_column: str | None = None
) -> tuple[list[str | None], tuple[str, ...], list[str]]:
    """The label's name of each of COLUMNS, all names, and the notices without the file's."""
    columns = COLUMNS if brought is None else COLUMNS.append_column("label", pa.array(brought, pa.string()))
    table = None
    if content is not None:
        file = tmp_path / "labels.csv"
        file.write_text(content, encoding="utf-8")
        table = read_labels(file, class_column=class_column)
    codes, names, notices = match_labels(table, columns)
    texts = [names[code] if code >= 0 else None for code in codes.tolist()]
    return texts, names, [notice.partition("labels.csv: ")[2] for notice in notices]


@pytest.mark.parametrize(
    ("content", "expected", "names"),
    [
        ("filename,label\ns1/a.jpg,10\nb.jpg,2\ns2/a,2\nc,0\n", ["10", "2", "2", "0"], ("0", "2", "10")),
        ("filename;label\ns1/a.jpg;1.0\nb.jpg;-2.\ns2/a;007\nc;7\n", ["1", "-2", "7", "7"], ("-2", "1", "7")),
        ("label\timage_path\nb\ts1/a.jpg\nB\tb.jpg\n10\ts2/a\n9\tc\n", ["b", "B", "10", "9"], ("10", "9", "B", "b")),
        ("slide_id,label\ns2,no\ns1,yes\n", ["yes", "yes", "no", "no"], ("no", "yes")),
        ('filename,label\n"s1/a.jpg","x, y"\nb.jpg,z\ns2/a,z\nc,z\n', ["x, y", "z", "z", "z"], ("x, y", "z")),
        ("slide, label \n s1 , 1\ns2,0\n", ["1", "1", "0", "0"], ("0", "1")),
    ],
)
def test_labels__of_a_table(tmp_path: Path, content: str, expected: list[str], names: tuple[str, ...]) -> None:
    assert labels_of(tmp_path, content) == (expected, names, [])


def test_labels__have_the_class_columns_names_in_the_integers_order(tmp_path: Path) -> None:
    content = "slide,label,kind\ns1,10,aa\ns2,9,zz\nlost,2,mm\n"
    texts, names, notices = labels_of(tmp_path, content, class_column="kind")
    assert (texts, names) == (["aa", "aa", "zz", "zz"], ("mm", "zz", "aa"))
    assert notices == ["1 of 3 entries are no sample or slide of the sources: 'lost'"]


def test_labels__that_lack_are_counted_and_none(tmp_path: Path) -> None:
    texts, names, notices = labels_of(tmp_path, "filename,label\ns1/a.jpg,1\nb.jpg,\nlost.jpg,5\n,3\n")
    assert (texts, names) == (["1", None, None, None], ("1", "5"))
    assert notices == [
        "1 of 2 entries are no sample or slide of the sources: 'lost.jpg'",
        "1 rows have no label and are left out",
        "3 of 4 samples have no label",
    ]


def test_labels__of_a_table_go_before_those_of_the_sources(tmp_path: Path) -> None:
    texts, names, notices = labels_of(tmp_path, "slide,label\ns1,2\n", ["0", "2", "10", None])
    assert (texts, names) == (["2", "2", "10", None], ("2", "10"))
    assert notices == [
        "3 samples have a label in the sources, too; the table's go before those",
        "1 of 4 samples have no label",
    ]
    texts, names, _ = labels_of(tmp_path, "slide,label\ns1,2\n", ["0", "2", "10", "x"])
    assert (texts, names) == (["2", "2", "10", "x"], ("10", "2", "x"))
    texts, names, _ = labels_of(tmp_path, "slide,label,k\ns1,2,b\nlost,1,c\n", ["0", "2", "c", "a"], class_column="k")
    assert (texts, names) == (["b", "b", "c", "a"], ("c", "b", "a"))


def test_labels__of_sources_alone(tmp_path: Path) -> None:
    assert labels_of(tmp_path, None) == ([None] * 4, (), [])
    assert labels_of(tmp_path, None, ["10", None, "9", "10"]) == (["10", None, "9", "10"], ("9", "10"), [])
    assert labels_of(tmp_path, None, ["b", "a", None, "9"])[1] == ("9", "a", "b")
    codes, names, _ = match_labels(None, COLUMNS.append_column("label", pa.array([5, -1, None, 30], pa.int64())))
    assert (codes.tolist(), names) == ([1, 0, -1, 2], ("-1", "5", "30"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("filename,labels\na,1\n", r"has no column label \(columns: filename, labels\); name one with --label-column"),
        ("file,label\na,1\n", "has no column of filename, file_name, .* name one with --name-column"),
        ("filename,label,label\na,1,2\n", "has 2 columns 'label'"),
        ("filename,label\n", "has no row with a name and a label"),
        ("", "has no column of filename"),
        ("filename,label\nb.jpg,1\nb.jpg,2\n", "'b.jpg' has the labels '1' and '2'"),
        ("filename,label\nb.jpg,1\n./b.jpg,2\n", "'b.jpg' has the labels '1' and '2'"),
        ("filename,label\nb.jpg,1\ns1/b.jpg,2\n", "'s1/b.jpg' has the labels"),
        ("filename,label\nb.jpg,1\ns1,2\n", "'s1/.*' has the labels"),
        ("filename,label\na.jpg,1\n", "'a.jpg' is the file name of 2 samples"),
        ("filename,label\nx.jpg,1\n", "no entry is a sample or slide"),
        ("filename,label\nb.jpg,1,2\n", "Expected 2 columns, got 3"),
    ],
)
def test_labels__that_cannot_be_used_are_an_error(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        labels_of(tmp_path, content)
    assert str(error.value).startswith(f"--labels {tmp_path}/labels.csv: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("slide,label,k\ns1,1,a\ns1,1,b\n", "label 1 is called 'a' and 'b'"),
        ("slide,label,k\ns1,1,a\ns2,2,a\n", "class 'a' has the labels 1 and 2"),
        ("slide,label,k\ns1,one,a\n", "label 'one' is no integer"),
        ("slide,label,k\ns1,1,\n", "label 1 has a row without a class name"),
        ("slide,label,kk\ns1,1,\n", r"has no column 'k' of --class-column; did you mean 'kk'\? \(columns: slide, "),
    ],
)
def test_classes__that_do_not_fit_the_labels_are_an_error(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        labels_of(tmp_path, content, class_column="k")


def test_columns__can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("filename,where,label,stage\nx,s1,7,II\ny,s2,8,I\n")
    table = read_labels(file, name_column="where", label_column="stage")
    assert (table.entries.to_pylist(), table.codes.tolist(), table.label_names) == (["s1", "s2"], [1, 0], ("I", "II"))
