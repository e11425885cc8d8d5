"""Folders of classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import classes
from dinowds.shard.sources.source import Request
from tests.shard.conftest import MakeImage

CRC = ("ADI", "BACK", "MUC", "TUM")


def write_classes(root: Path, make_image: MakeImage, names: tuple[str, ...] = CRC) -> Path:
    """As CRC-100K comes: TIFF in one folder a class."""
    for seed, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for letters in ("AAAFLCLY", "YYVKNREE"):
            (root / name / f"{name}-{letters}.tif").write_bytes(make_image(seed, kind="TIFF"))
    return root


def names(*members: bytes) -> Any:
    return pa.array(members, pa.large_binary())


def test_open_source__is_one_folder(tmp_path: Path, make_image: MakeImage) -> None:
    root = write_classes(tmp_path / "NCT-CRC-HE-100K", make_image)

    assert classes.recognises(root)
    source = classes.open_source(root, Request(str(root)))

    assert (source.cohort, source.layout) == ("NCT-CRC-HE-100K", "classes")
    assert [(file.file, file.kind, file.prefix, file.slide) for file in source.files] == [(root, "folder", "", None)]
    assert classes.open_source(root, Request(str(root), cohort="crc")).cohort == "crc"


def test_facts__label_is_the_first_folder_and_never_a_slide(tmp_path: Path, make_image: MakeImage) -> None:
    source = classes.open_source(write_classes(tmp_path, make_image), Request("."))

    table = classes.facts(
        source,
        0,
        names(
            b"ADI/ADI-A.tif", b"TUM/slide_1/3_4.png", b"TUM/s/imgs/1.png", b"MUC/imgs/1.png", b"\xff/a.tif", b"b.tif"
        ),
    )

    assert table.schema.types == [pa.string(), pa.string()]
    assert table["label"].to_pylist() == ["ADI", "TUM", "TUM", "MUC", "\\xff", None]
    assert table["slide"].to_pylist() == [None, "slide_1", "s", None, None, None]


@pytest.fixture
def splits(tmp_path: Path, make_image: MakeImage) -> Path:
    for split in ("train", "val"):
        write_classes(tmp_path / "crc" / split, make_image)
    return tmp_path / "crc"


def test_open_source__takes_one_split(splits: Path) -> None:
    assert classes.recognises(splits)
    source = classes.open_source(splits, Request(str(splits), split="val"))

    assert source.files[0].file == splits / "val"
    assert source.cohort == "crc"


def test_open_source__lists_the_splits_to_choose_from(splits: Path) -> None:
    with pytest.raises(SourceError, match=r"crc: has splits \(train, val\); choose one with --split"):
        classes.open_source(splits, Request(str(splits)))
    with pytest.raises(SourceError, match=r"crc: has no split 'test'; there are: train, val"):
        classes.open_source(splits, Request(str(splits), split="test"))
    with pytest.raises(SourceError, match=r"has no split 'test'; there are: none"):
        classes.open_source(splits / "val", Request("val", split="test"))


def test_open_source__a_split_is_no_way_out_of_the_folder(splits: Path) -> None:
    with pytest.raises(SourceError, match="has no split"):
        classes.open_source(splits, Request(str(splits), split="../crc/train"))


def test_open_source__refuses_what_has_no_folders(tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "a.tif").write_bytes(make_image(0))
    for path in (tmp_path, tmp_path / "a.tif"):
        with pytest.raises(SourceError, match="folder"):
            classes.open_source(path, Request(str(path)))


def test_recognises__a_class_named_like_a_split_is_a_class(tmp_path: Path, make_image: MakeImage) -> None:
    root = write_classes(tmp_path / "crc", make_image, ("ADI", "test"))

    assert not classes.recognises(root)
    assert classes.open_source(root, Request("crc")).files[0].file == root


@pytest.mark.parametrize(
    "members",
    [
        ("ADI/a.tif",),
        ("slide_1/a.png", "slide_2/a.png"),
        ("TCGA-AA/1_2.png", "TCGA-BB/1_2.png"),
        ("first/000000_x1_y2.png", "second/a.png"),
        ("images/a.png", "masks/a.png"),
        ("ADI/imgs/a.png", "TUM/imgs/a.png"),
        ("ADI/a.tif", "TUM/notes.txt"),
        ("ADI/a.tif", "TUM/b.tif", "c.tif"),
        ("a.tif",),
        (),
    ],
)
def test_recognises__nothing_that_may_be_slides(
    tmp_path: Path, make_image: MakeImage, members: tuple[str, ...]
) -> None:
    for member in members:
        (tmp_path / member).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / member).write_bytes(make_image(0))

    assert not classes.recognises(tmp_path)


def test_recognises__every_split_must_be_of_classes(splits: Path) -> None:
    shutil.move(splits / "val" / "ADI", splits / "val" / "ADI_1")

    assert not classes.recognises(splits)
    assert not classes.recognises(splits / "absent")
