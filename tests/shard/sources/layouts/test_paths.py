"""Lists of images."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import paths
from dinowds.shard.sources.source import Items, Request, Source
from tests.shard.conftest import MakeImage

COLUMNS: dict[str, list[Any]] = {
    "image_path": ["images/b/1_2.jpg", "images/a/3_4.png"],
    "label": ["TUM", "=cmd|' /C calc'!A0"],
    "cohort": ["one", "two"],
    "slide_id": ["s1", "007"],
    "x": [512, -3],
    "y": [0, 2**40],
    "medical_center": ["A", "B"],
}


@pytest.fixture
def folder(tmp_path: Path, make_image: MakeImage) -> Path:
    for seed, name in enumerate(("a/3_4.png", "b/1_2.jpg", "b/other.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(make_image(seed))
    return tmp_path


def write_csv(file: Path, columns: Mapping[str, Sequence[Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with open(file, "w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def opened(file: Path) -> Source:
    assert paths.recognises(file)
    return paths.open_source(file, Request(str(file)))


def listed(file: Path) -> Items:
    return paths.list_items(opened(file), 0, lambda _place, _size: b"")


@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "excel", "parquet", "categories"])
def test_list_items__reads_every_form(folder: Path, form: str) -> None:
    if form in ("parquet", "categories"):
        file = folder / "list.parquet"
        table = pa.table(COLUMNS)
        if form == "categories":
            table = table.set_column(1, "label", table["label"].dictionary_encode())
        pq.write_table(table, file)
    else:
        delimiter = {"semicolon": ";", "tab": "\t"}.get(form, ",")
        encoding = "utf-8-sig" if form == "excel" else "utf-8"
        file = write_csv(folder / ("list.tsv" if form == "tab" else "list.csv"), COLUMNS, delimiter, encoding)

    source, items = opened(file), listed(file)

    assert (source.cohort, source.layout) == ("list", "paths")
    assert [(each.file, each.kind) for each in source.files] == [(folder / "images", "folder")]
    assert [(each.file, each.num_bytes) for each in source.sidecars] == [(file, file.stat().st_size)]
    assert items.names.type == pa.large_binary()
    assert items.names.to_pylist() == [b"b/1_2.jpg", b"a/3_4.png"]
    assert items.places.tolist() == [0, 1]
    assert items.sizes.tolist() == [(folder / "images" / name).stat().st_size for name in ("b/1_2.jpg", "a/3_4.png")]
    assert list(items.quarantine) == []
    assert items.facts.to_pydict() == {
        "slide": ["s1", "007"],
        "label": COLUMNS["label"],
        "cohort": ["one", "two"],
        "x": [512, -3],
        "y": [0, 2**40],
    }
    assert [str(kind) for kind in items.facts.schema.types] == ["string"] * 3 + ["int64"] * 2


def test_list_items__takes_absolute_paths_and_paths_out_of_its_folder(folder: Path) -> None:
    (folder / "lists").mkdir()
    rows = [str(folder / "images/a/3_4.png"), "../images//b/./1_2.jpg", "../images/b/../b/other.jpg"]
    file = write_csv(folder / "lists" / "l.csv", {"path": rows})

    assert opened(file).files[0].file == folder / "images"
    assert listed(file).names.to_pylist() == [b"a/3_4.png", b"b/1_2.jpg", b"b/other.jpg"]
    assert listed(file).facts is None


def test_list_items__works_from_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(folder / "list.csv", {"path": ["images/a/3_4.png"]})
    monkeypatch.chdir(folder)

    source = paths.open_source(Path("list.csv"), Request("list.csv"))
    assert source.files[0].file == folder / "images" / "a"
    assert paths.list_items(source, 0, lambda _place, _size: b"").names.to_pylist() == [b"3_4.png"]


def test_list_items__folders_that_only_begin_alike_have_their_parent_in_common(
    folder: Path, make_image: MakeImage
) -> None:
    for name in ("images/b-c/1.jpg", "images/bc/1.jpg"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(make_image(0))
    file = write_csv(folder / "l.csv", {"file": ["images/b/1_2.jpg", "images/bc/1.jpg", "images/b-c/1.jpg"]})

    assert listed(file).names.to_pylist() == [b"b/1_2.jpg", b"bc/1.jpg", b"b-c/1.jpg"]


def test_list_items__places_may_be_written_as_floats_and_missing(folder: Path) -> None:
    file = write_csv(
        folder / "l.csv", {"path": COLUMNS["image_path"], "x": ["512.0", ""], "y": ["7", ""], "label": ["", "NA"]}
    )

    assert listed(file).facts.to_pydict() == {"label": [None, "NA"], "x": [512, None], "y": [7, None]}


def test_list_items__leaves_out_what_is_no_image_file(folder: Path) -> None:
    images = folder / "images"
    (images / "link.jpg").symlink_to("a/3_4.png")
    os.mkfifo(images / "pipe.jpg")
    (images / "notes.txt").write_text("x")
    (images / "empty.jpg").write_bytes(b"")
    rows = ["link.jpg", "b/1_2.jpg", "pipe.jpg", "a", "notes.txt", "empty.jpg", "a/3_4.png"]
    file = write_csv(images / "l.csv", {"path": rows, "label": list("abcdefg")})

    items = listed(file)

    assert items.names.to_pylist() == [b"b/1_2.jpg", b"empty.jpg", b"a/3_4.png"]
    assert items.places.tolist() == [1, 5, 6]
    assert items.facts["label"].to_pylist() == ["b", "f", "g"]
    assert list(items.quarantine) == [
        (0, b"link.jpg", "symbolic link"),
        (2, b"pipe.jpg", "device or pipe"),
        (3, b"a", "directory"),
        (4, b"notes.txt", "not an image file"),
    ]


def test_list_items__a_folder_and_a_file_in_it_have_its_parent_in_common(folder: Path) -> None:
    items = listed(write_csv(folder / "l.csv", {"path": ["images/a", "images/a/3_4.png"]}))

    assert items.names.to_pylist() == [b"a/3_4.png"]
    assert list(items.quarantine) == [(0, b"a", "directory")]


def test_list_items__counts_the_files_that_are_absent(folder: Path) -> None:
    rows = ["images/b/1_2.jpg", "images/gone.jpg", "images/b/1_2.jpg/x.jpg", "x" * 300 + ".jpg"]
    file = write_csv(folder / "l.csv", {"path": rows})

    with pytest.raises(SourceError, match=r"l\.csv: 3 of the 4 files .* the first is .*images/gone\.jpg \(line 3\)"):
        listed(file)


def test_list_items__a_path_with_nul_is_absent(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["images/b/1_2.jpg", "images/a\0.jpg"]}), folder / "l.parquet")

    with pytest.raises(SourceError, match="1 of the 2 files"):
        listed(folder / "l.parquet")


def test_list_items__finds_names_that_are_no_text(folder: Path, make_image: MakeImage) -> None:
    path = os.fsencode(folder) + b"/images/\xff.jpg"
    with open(path, "wb") as stream:
        stream.write(make_image(0))
    (folder / "l.csv").write_bytes(b"path\nimages/\xff.jpg\n")

    assert listed(folder / "l.csv").names.to_pylist() == [b"\xff.jpg"]


def test_list_items__refuses_a_file_that_is_listed_twice(folder: Path) -> None:
    file = write_csv(folder / "l.csv", {"path": ["images/b/1_2.jpg", "images/a/3_4.png", "images/a/../b/1_2.jpg"]})

    with pytest.raises(SourceError, match=r"l\.csv: line 4: b/1_2\.jpg is also on line 2; list each file once"):
        listed(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,label\na,b\n", "has no column of paths; expected one named path, image_path"),
        (b"", "has no column of paths"),
        (b"\0\1\2\3" * 50, "has no column of paths"),
        (b"path\n", "lists nothing"),
        (b"path,label\na.jpg,1\n,2\n", "line 3: has no path"),
        (b"path,label\na.jpg,1\nb.jpg\n", "Row #3: Expected 2 columns, got 1"),
        (b"path\n" + b"a" * 3_000_000, "cannot be read"),
        (b"path\n" + b"a," * 10_000, "Expected 1 columns, got 10001"),
        (b"PAR1" + b"\xff" * 50 + b"\x10\0\0\0PAR1", "cannot be read"),
    ],
)
def test_open_source__names_what_is_wrong_with_a_list(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l.csv").write_bytes(content)

    with pytest.raises(SourceError, match=rf"l\.csv: [^\n]*{message}") as caught:
        opened(tmp_path / "l.csv")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("value", ["1.5", "nan", "inf", "abc", "1e300", "99999999999999999999"])
def test_list_items__names_the_line_of_a_place_that_is_none(folder: Path, value: str) -> None:
    file = write_csv(folder / "l.csv", {"path": COLUMNS["image_path"], "x": ["1", value]})

    with pytest.raises(SourceError, match=rf"l\.csv: line 3: x is '{value}', expected an integer"):
        listed(file)


def test_list_items__a_label_that_is_no_text_is_an_error(folder: Path) -> None:
    (folder / "l.csv").write_bytes(b"path,label\nimages/b/1_2.jpg,\xff\n")

    with pytest.raises(SourceError, match=r"l\.csv: its column label is not UTF-8"):
        listed(folder / "l.csv")


def test_recognises__tables_alone(folder: Path) -> None:
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    (folder / "a.txt").write_text("path\n")

    for name in ("folder.csv", "pipe.csv", "a.txt", "images/b/1_2.jpg", "absent.csv"):
        assert not paths.recognises(folder / name)
    with pytest.raises(SourceError):
        paths.open_source(folder / "pipe.csv", Request("pipe.csv"))
