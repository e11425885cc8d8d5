"""hs2p's tars, one a slide, with their places in CSV files."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import hs2p
from dinowds.shard.sources.source import Request, Source, check_unchanged
from tests.shard.conftest import MakeImage

PLACES = ((1024, 2048), (1280, 2048), (1024, 2304))


def write_slide(
    tiles: Path,
    slide: str,
    image: bytes,
    places: Sequence[tuple[int, int]] = PLACES,
    spacing: float = 0.5,
    stem: str = "",
) -> Path:
    """As hs2p 6 writes one slide's tiles."""
    tiles.mkdir(parents=True, exist_ok=True)
    stem = stem or f"{slide}.tiles"
    with (
        tarfile.open(tiles / f"{stem}.tar", "w") as tar,
        open(tiles / f"{stem}.manifest.csv", "w", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, ["tile_index", "x", "y"])
        writer.writeheader()
        for index, (x, y) in enumerate(places):
            member = tarfile.TarInfo(f"{index:06d}.jpg")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
            writer.writerow({"tile_index": index, "x": x, "y": y})
    meta = {
        "provenance": {"sample_id": slide, "image_path": f"/slides/{slide}.svs"},
        "slide": {"base_spacing_um": 0.2527},
        "tiling": {"requested_tile_size_px": 256, "requested_spacing_um": spacing, "tile_size_lv0": 507},
        "segmentation": {"seg_spacing_um": 4.0},
    }
    (tiles / f"{slide}.coordinates.meta.json").write_text(json.dumps(meta, indent=2))
    return tiles / f"{stem}.tar"


@pytest.fixture
def run(tmp_path: Path, make_image: MakeImage) -> Path:
    """A run of hs2p with two slides."""
    write_slide(tmp_path / "cohort" / "tiles", "slide.b", make_image(0))
    write_slide(tmp_path / "cohort" / "tiles", "slide_a", make_image(1), PLACES[:2])
    (tmp_path / "cohort" / "process_list.csv").write_text("sample_id,image_path\n")
    return tmp_path / "cohort"


def names(*members: str) -> Any:
    return pa.array([member.encode() for member in members], pa.large_binary())


def opened(path: Path) -> Source:
    assert hs2p.recognises(path)
    return hs2p.open_source(path, Request(str(path)))


@pytest.mark.parametrize("inner", ["", "tiles"])
def test_open_source__finds_the_slides_from_the_run_and_from_its_tiles(run: Path, inner: str) -> None:
    source = opened(run / inner)

    assert source.cohort == "cohort"
    assert source.layout == "hs2p"
    assert [(file.slide, file.prefix, file.kind) for file in source.files] == [
        ("slide.b", "slide.b/", "tar"),
        ("slide_a", "slide_a/", "tar"),
    ]
    assert all(file.num_bytes == file.file.stat().st_size and file.mtime_ns for file in source.files)
    assert sorted(file.file.name for file in source.sidecars) == sorted(
        f"{slide}.{end}" for slide in ("slide.b", "slide_a") for end in ("tiles.manifest.csv", "coordinates.meta.json")
    )
    assert source.metadata == {"mpp": 0.5, "tile_size": 256}


def test_open_source__takes_one_slide(run: Path) -> None:
    source = opened(run / "tiles" / "slide_a.tiles.tar")

    assert source.cohort == "slide_a"
    assert [file.slide for file in source.files] == ["slide_a"]


def test_open_source__takes_the_cohort_that_was_asked_for(run: Path) -> None:
    assert hs2p.open_source(run, Request("run", cohort="mine")).cohort == "mine"


def test_open_source__knows_the_slide_of_an_annotation(tmp_path: Path, make_image: MakeImage) -> None:
    write_slide(tmp_path / "tiles" / "tumor", "s1", make_image(0), stem="s1.tumor.tiles")

    source = opened(tmp_path / "tiles" / "tumor")

    assert [(file.slide, file.prefix) for file in source.files] == [("s1", "s1.tumor/")]
    assert source.cohort == "tumor"
    assert source.metadata == {"mpp": 0.5, "tile_size": 256}
    assert hs2p.facts(source, 0, names("000002.jpg")).to_pylist() == [{"x": 1024, "y": 2304}]


def test_open_source__counts_spacings_that_differ(run: Path, make_image: MakeImage) -> None:
    write_slide(run / "tiles", "c", make_image(2), spacing=0.25)
    (run / "tiles" / "slide_a.coordinates.meta.json").unlink()

    assert opened(run).metadata == {
        "mpp": {"0.25": 1, "0.5": 1, "unknown": 1},
        "tile_size": {"256": 2, "unknown": 1},
    }


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_open_source__names_a_json_that_is_none(run: Path, content: bytes) -> None:
    (run / "tiles" / "slide_a.coordinates.meta.json").write_bytes(content)

    with pytest.raises(SourceError, match=r"slide_a\.coordinates\.meta\.json: is not JSON as hs2p writes it"):
        opened(run)


@pytest.mark.parametrize("value", ['"0.5"', "0", "-1", "Infinity", "NaN", "true", "null", "{}"])
def test_open_source__ignores_a_spacing_that_is_none(run: Path, value: str) -> None:
    for slide in ("slide_a", "slide.b"):
        content = f'{{"tiling": {{"requested_spacing_um": {value}}}}}'
        (run / "tiles" / f"{slide}.coordinates.meta.json").write_text(content)

    assert opened(run).metadata == {}


def test_open_source__says_how_to_go_on_without_a_csv(run: Path) -> None:
    (run / "tiles" / "slide_a.tiles.manifest.csv").unlink()

    with pytest.raises(SourceError, match=r"slide_a\.tiles\.manifest\.csv: is missing.*--layout tar"):
        opened(run)
    assert not hs2p.recognises(run / "tiles" / "slide_a.tiles.tar")


def test_recognises__no_other_folders_and_tars(tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "1_2.jpg").write_bytes(make_image(0))
    (tmp_path / "tiles").mkdir()

    for path in (tmp_path, tmp_path / "a.tar", tmp_path / "tiles", tmp_path / "absent"):
        assert not hs2p.recognises(path)


def test_facts__joins_places_by_number_in_any_order(run: Path) -> None:
    (run / "tiles" / "slide.b.tiles.manifest.csv").write_text("x,tile_index,y,why\n7,2,8,\n-5,0,6,ok\n3,1,4,\n")

    table = hs2p.facts(opened(run), 0, names("000000.jpg", "sub/000002.png", "1.jpg"))

    assert table.schema.types == [pa.int64(), pa.int64()]
    assert table.to_pylist() == [{"x": -5, "y": 6}, {"x": 7, "y": 8}, {"x": 3, "y": 4}]


def test_facts__are_of_the_file_at_that_position(run: Path) -> None:
    source = opened(run)
    (run / "tiles" / "slide_a.tiles.manifest.csv").write_text("tile_index,x,y\n0,9,9\n")

    assert hs2p.facts(source, 1, names("000000.jpg")).to_pylist() == [{"x": 9, "y": 9}]
    assert hs2p.facts(source, 0, names("000000.jpg")).to_pylist() == [{"x": 1024, "y": 2048}]
    assert hs2p.facts(source, 0, names()).num_rows == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "tile_index,x,y\n0,1,2\n2,1,2\n",
            r"has no line for 1 of the 3 tiles of .*slide\.b\.tiles\.tar.*'000001\.jpg'",
        ),
        ("tile_index,x,y\n", r"has no line for 3 of the 3 tiles .*'000000\.jpg'"),
        ("tile_index,x,y\n0,1,2\n1,1,2\n2,1,2\n1,3,4\n", "line 5: tile_index 1 is also that of line 3"),
        ("tile_index,x,y\n0,1,2\n1,1.5,2\n2,1,2\n", "line 3: x is '1.5', expected an integer"),
        ("tile_index,x,y\n0,1,2\n1,1,\n2,1,2\n", "line 3: y is empty, expected an integer"),
        ("tile_index,x,y\n0,1,2\n1,1\n2,1,2\n", "Row #3: Expected 3 columns, got 2"),
        ("tile,x,y\n0,1,2\n", "has no column tile_index; expected tile_index,x,y"),
        ("", "has no column tile_index, x, y"),
    ],
)
def test_facts__names_file_and_line_of_a_bad_csv(run: Path, content: str, message: str) -> None:
    (run / "tiles" / "slide.b.tiles.manifest.csv").write_text(content)

    with pytest.raises(SourceError, match=rf"slide\.b\.tiles\.manifest\.csv: .*{message}"):
        hs2p.facts(opened(run), 0, names("000000.jpg", "000001.jpg", "000002.jpg"))


def test_facts__a_tile_without_a_number_has_no_line(run: Path) -> None:
    (run / "tiles" / "slide.b.tiles.manifest.csv").write_text("tile_index,x,y\n0,1,2\n-1,1,2\n")

    with pytest.raises(SourceError, match=r"1 of the 2 tiles .*'overview\.jpg'"):
        hs2p.facts(opened(run), 0, names("000000.jpg", "overview.jpg"))


def test_sidecars__a_change_is_a_change_of_the_source(run: Path) -> None:
    source = opened(run)
    check_unchanged([source])
    (run / "tiles" / "slide_a.tiles.manifest.csv").write_text("tile_index,x,y\n")

    with pytest.raises(SourceError, match=r"slide_a\.tiles\.manifest\.csv: changed"):
        check_unchanged([source])
