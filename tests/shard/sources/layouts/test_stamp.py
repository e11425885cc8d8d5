"""STAMP's zips, one a slide; and zips that were made to hurt."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources import zipscan
from dinowds.shard.sources.layouts import stamp
from dinowds.shard.sources.source import Request, Source
from dinowds.shard.sources.tarscan import FILE, FileData, Members
from dinowds.shard.sources.zipscan import COMPRESSED, list_spooled_zip, list_zip, needs_spool, spool_zip
from tests.shard.conftest import MakeImage

HASH = "0123456789abcdef" * 4
PLACES = ((0.0, 0.0), (256.0, 0.0), (3071.999999999, 1280.4), (1e3, 2.5))


def write_slide(
    file: Path, make_image: MakeImage, places: Sequence[tuple[float, float]] = PLACES, um: float = 256.0, px: int = 224
) -> Path:
    """As STAMP 2 caches one slide's tiles."""
    parameters = {"slide_path": "/slides/s.svs", "tile_size_um": um, "tile_size_px": px, "code_sha256": HASH}
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("tiler_params.json", "w") as stream:
            stream.write(json.dumps(parameters).encode())
        for seed, (x, y) in enumerate(places):
            with archive.open(f"tile_({float(x)}, {float(y)}).jpg", "w") as stream:
                stream.write(make_image(seed))
    return file


@pytest.fixture
def cache(tmp_path: Path, make_image: MakeImage) -> Path:
    """A tile cache with two slides."""
    folder = tmp_path / "cache"
    folder.mkdir()
    write_slide(folder / f"b.1.{HASH}.zip", make_image)
    write_slide(folder / "a.zip", make_image, PLACES[:1])
    (folder / "notes.txt").write_text("mine")
    return folder


def opened(path: Path) -> Source:
    assert stamp.recognises(path)
    return stamp.open_source(path, Request(str(path)))


def test_open_source__finds_the_slides(cache: Path) -> None:
    source = opened(cache)

    assert source.cohort == "cache"
    assert source.layout == "stamp"
    assert [(file.slide, file.prefix, file.kind) for file in source.files] == [
        ("a", "a/", "zip"),
        ("b.1", "b.1/", "zip"),
    ]
    assert all(file.num_bytes == file.file.stat().st_size and file.mtime_ns for file in source.files)
    assert source.metadata == {"mpp": 256 / 224, "tile_size": 224}


def test_open_source__takes_one_slide(cache: Path) -> None:
    source = opened(cache / f"b.1.{HASH}.zip")

    assert (source.cohort, len(source.files)) == ("b.1", 1)


def test_open_source__refuses_a_slide_that_is_there_twice(cache: Path, make_image: MakeImage) -> None:
    write_slide(cache / f"a.{HASH}.zip", make_image)

    with pytest.raises(SourceError, match=r"a\.zip: is of the slide 'a', as is .*; keep one"):
        opened(cache)


def test_open_source__counts_sizes_that_differ(cache: Path, make_image: MakeImage) -> None:
    write_slide(cache / "c.zip", make_image, um=112.0)

    assert opened(cache).metadata == {
        "mpp": {"0.5": 1, str(256 / 224): 2},
        "tile_size": 224,
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"tile_size_um": "x", "tile_size_px": 0}', "[" * 60_000])
def test_open_source__ignores_parameters_that_are_none(tmp_path: Path, content: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("tiler_params.json", content)

    assert opened(tmp_path).metadata == {}


def test_recognises__no_other_zips(tmp_path: Path, make_image: MakeImage) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("ADI/ADI-AAAFLCLY.jpg", make_image(0))
    (tmp_path / "not.txt").write_bytes(b"")

    for path in (tmp_path, tmp_path / "a.zip", tmp_path / "not.txt", tmp_path / "absent.zip"):
        assert not stamp.recognises(path)


def test_facts__are_whole_micrometres(cache: Path) -> None:
    source = opened(cache)
    members = [name for _, name, _, _ in list_zip(source.files[1].file, "zip")]

    table = stamp.facts(source, 1, pa.array([*members, b"thumbnail.jpg", b"tile_(3, -4).png"], pa.large_binary()))

    assert members[0] == b"tiler_params.json"
    assert table.schema.types == [pa.int64(), pa.int64()]
    assert table["x"].to_pylist() == [None, 0, 256, 3072, 1000, None, 3]
    assert table["y"].to_pylist() == [None, 0, 0, 1280, 2, None, -4]


# Zips


def write_zip(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED, **fields: Any) -> Path:
    with zipfile.ZipFile(file, "w", method, **fields) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def read_at(file: Path, place: int, size: int) -> bytes:
    return file.read_bytes()[place : place + size]


def test_list_zip__stored_members_lie_where_it_says(tmp_path: Path, make_image: MakeImage) -> None:
    members = {f"slide/Gewebe_ö {seed}.jpg": make_image(seed) for seed in range(3)}
    file = write_zip(tmp_path / "a.zip", members)

    found = {name.decode(): read_at(file, place, size) for kind, name, place, size in list_zip(file, "a.zip")}

    assert found == members
    assert not needs_spool(file, "a.zip")


def test_list_zip__finds_zip64_and_data_descriptors(tmp_path: Path, make_image: MakeImage) -> None:
    class Pipe(io.RawIOBase):
        """What cannot be sought gets its sizes after each member."""

        def __init__(self, file: Path) -> None:
            self._file = open(file, "wb")  # noqa: SIM115

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return self._file.write(data)

        def close(self) -> None:
            self._file.close()
            super().close()

    with Pipe(tmp_path / "piped.zip") as pipe, zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("a.jpg", make_image(0))
    with zipfile.ZipFile(tmp_path / "64.zip", "w") as archive, archive.open("a.jpg", "w", force_zip64=True) as stream:
        stream.write(make_image(0))
    prefixed = tmp_path / "prefixed.zip"
    prefixed.write_bytes(b"#!/bin/sh\n" + (tmp_path / "64.zip").read_bytes())

    for name in ("piped.zip", "64.zip", "prefixed.zip"):
        ((kind, _, place, size),) = list_zip(tmp_path / name, name)
        assert (kind, read_at(tmp_path / name, place, size)) == (FILE, make_image(0)), name


def test_list_zip__goes_by_the_order_of_bytes(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": b"a", "b.jpg": b"b"})
    content = file.read_bytes()
    start, end = directory(content), content.find(b"PK\x05\x06")
    middle = (start + end) // 2
    file.write_bytes(content[:start] + content[middle:end] + content[start:middle] + content[end:])

    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["b.jpg", "a.jpg"]
    assert [name for _, name, _, _ in list_zip(file, "a.zip")] == [b"a.jpg", b"b.jpg"]


def test_list_zip__finds_more_members_than_a_plain_zip_can_have(tmp_path: Path) -> None:
    file = tmp_path / "many.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"{index}.jpg"), b"x")

    assert b"PK\x06\x07" in file.read_bytes()[-200:]
    assert sum(1 for _ in list_zip(file, "many.zip")) == 70_000


def test_list_zip__tells_apart_what_is_no_stored_file(tmp_path: Path, make_image: MakeImage) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("deflated.jpg", make_image(0), zipfile.ZIP_DEFLATED)
        archive.writestr("other.jpg", make_image(0), zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"/etc/passwd")
        archive.writestr("/absolute.jpg", make_image(0))
        archive.writestr("../../outside.jpg", make_image(0))
    kinds = {name: kind for kind, name, _, _ in list_zip(file, "a.zip")}

    assert kinds == {
        b"folder/": "directory",
        b"deflated.jpg": COMPRESSED,
        b"other.jpg": zipscan.OTHER_METHOD,
        b"link.jpg": "symbolic link",
        b"/absolute.jpg": FILE,
        b"../../outside.jpg": FILE,
    }


def names_in(tar: io.BytesIO) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar.getvalue())) as members:
        return members.getnames()


def test_list_zip__encrypted_members_are_no_files(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": make_image(0)})
    content = file.read_bytes()
    file.write_bytes(change(change(content, 6, b"\x01"), directory(content) + 8, b"\x01"))

    ((kind, name, _, _),) = list_zip(file, "a.zip")
    out = io.BytesIO()
    spool_zip(file, "a.zip", out)

    assert (kind, name) == (zipscan.ENCRYPTED, b"a.jpg")
    assert names_in(out) == []


def directory(content: bytes) -> int:
    return content.find(b"PK\x01\x02")


def change(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


HURTS: dict[str, Callable[[bytes], bytes]] = {
    "no zip": lambda content: b"this is text" * (len(content) // 12),
    "empty": lambda content: content[:0],
    "cut short": lambda content: content[:-40],
    "begins late": lambda content: content[300:],
    "offset outside": lambda content: change(content, directory(content) + 42, b"\xf0\xff\xff\x7f"),
    "lies on another": lambda content: change(
        content, content.rfind(b"PK\x01\x02") + 42, content[directory(content) + 42 :][:4]
    ),
    "overlaps": lambda content: change(content, directory(content) + 20, struct.pack("<II", 600, 600)),
    "goes past the end": lambda content: change(
        change(content, content.rfind(b"PK\x01\x02") + 20, struct.pack("<II", 9999, 9999)),
        content.rfind(b"PK\x03\x04") + 18,
        struct.pack("<II", 9999, 9999),
    ),
    "two sizes": lambda content: change(
        change(content, directory(content) + 24, struct.pack("<I", 5)), 22, struct.pack("<I", 5)
    ),
    "another size": lambda content: change(content, directory(content) + 24, struct.pack("<I", 5)),
    "another name": lambda content: change(content, content.find(b"a.jpg"), b"b.jpg"),
    "another method": lambda content: change(content, content.find(b"PK\x03\x04") + 8, b"\x08"),
    "no local header": lambda content: change(content, 0, b"XX"),
    "a name that is no UTF-8": lambda content: change(
        change(content, directory(content) + 9, b"\x08"), directory(content) + 46, b"\xff\xff"
    ),
    "damaged directory": lambda content: change(content, directory(content), b"XX"),
    "a later version": lambda content: change(content, directory(content) + 6, b"\xff\x00"),
    "negative start": lambda content: change(content, content.rfind(b"PK\x05\x06") + 12, b"\xff\xff\xff\x00"),
}


@pytest.mark.parametrize("how", HURTS)
def test_list_zip__refuses_a_zip_that_hurts(tmp_path: Path, how: str) -> None:
    good = write_zip(tmp_path / "good.zip", {"a.jpg": b"a" * 500, "c.jpg": b"c" * 500}).read_bytes()
    file = tmp_path / "bad.zip"
    file.write_bytes(HURTS[how](good))

    with pytest.raises(SourceError, match=r"^bad\.zip: [^\n]+$"):
        list(list_zip(file, "bad.zip"))
    assert len(list(list_zip(tmp_path / "good.zip", "good.zip"))) == 2


def test_list_zip__refuses_a_file_that_is_absent_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("absent.zip", "pipe.zip"):
        with pytest.raises(SourceError, match=name):
            list(list_zip(tmp_path / name, name))
    assert not stamp.recognises(tmp_path / "pipe.zip")


def test_list_zip__refuses_a_directory_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_zip(tmp_path / "a.zip", {f"{index}.jpg": b"x" for index in range(2000)})
    assert len(list(list_zip(file, "a.zip"))) == 2000

    monkeypatch.setattr(zipscan, "MAX_DIRECTORY", 90_000)

    with pytest.raises(SourceError, match=r"a\.zip: .*its directory has \d+ bytes, expected at most 90000"):
        list(list_zip(file, "a.zip"))


def test_list_zip__never_crashes_on_damaged_bytes(tmp_path: Path, make_image: MakeImage) -> None:
    random_bytes = random.Random(0)
    members = {f"tile_({i}, {i}).jpg": make_image(i) for i in range(4)}
    good = write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED).read_bytes()
    heads = [place for place in range(len(good)) if good[place : place + 2] == b"PK"]
    refused = 0
    for _ in range(400):
        content = bytearray(good)
        for _ in range(random_bytes.choice((1, 2, 8))):
            content[min(random_bytes.choice(heads) + random_bytes.randrange(60), len(content) - 1)] = (
                random_bytes.randrange(256)
            )
        file = tmp_path / "damaged.zip"
        file.write_bytes(content)
        try:
            list(list_zip(file, "damaged.zip"))
            spool_zip(file, "damaged.zip", io.BytesIO())
        except SourceError:
            refused += 1
    assert refused > 100


# Spooling


def spooled(file: Path, tmp_path: Path) -> dict[bytes, tuple[str, bytes]]:
    """Name → kind and content, as listed from the spool."""
    tar = tmp_path / "spool.tar"
    with open(tar, "wb") as out:
        spool_zip(file, "a.zip", out)
    with open(tar, "rb") as stream:
        data = FileData(stream.fileno())
        found = {}
        for member in list_spooled_zip(data, file, "a.zip"):
            for kind, name, place, size in _rows(member) if isinstance(member, Members) else [member]:
                found[name] = (kind, data.read(place, size))
    return found


def _rows(members: Members) -> list[tuple[str, bytes, int, int]]:
    return [
        (FILE, name, int(place), int(size))
        for name, place, size in zip(members.names.to_pylist(), members.places, members.sizes, strict=True)
    ]


def test_spool_zip__writes_whole_images_under_whole_names(tmp_path: Path, make_image: MakeImage) -> None:
    long = "deep/" * 60 + "Gewebe_ö_組織.jpg"
    members = {long: make_image(0), "b.PNG": make_image(1, kind="PNG"), "b.cls": b"3", "big.bmp": bytes(3_000_000)}
    file = write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("stored.jpg", make_image(2), zipfile.ZIP_STORED)
        archive.writestr("readme.txt", "text" * 100, zipfile.ZIP_DEFLATED)
        archive.writestr("folder/", b"")

    found = spooled(file, tmp_path)

    assert needs_spool(file, "a.zip")
    with tarfile.open(tmp_path / "spool.tar") as tar:
        assert tar.getnames() == [*members, "stored.jpg"]
    expected = {name.encode(): (FILE, content) for name, content in members.items()}
    assert {name: found.pop(name) for name in [*expected, b"stored.jpg"]} == {
        **expected,
        b"stored.jpg": (FILE, make_image(2)),
    }
    assert {name: kind for name, (kind, _) in found.items()} == {b"readme.txt": FILE, b"folder/": "directory"}


def test_needs_spool__not_for_a_text(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": make_image(0)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readme.txt", "text" * 100, zipfile.ZIP_DEFLATED)

    assert not needs_spool(file, "a.zip")


def test_spool_zip__is_the_same_each_time(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": make_image(0)}, zipfile.ZIP_DEFLATED)
    outs = (io.BytesIO(), io.BytesIO())
    for out in outs:
        spool_zip(file, "a.zip", out)

    assert outs[0].getvalue() == outs[1].getvalue()


def test_spool_zip__keeps_names_that_are_no_text(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"aXX.jpg": make_image(0)}, zipfile.ZIP_DEFLATED)
    file.write_bytes(file.read_bytes().replace(b"aXX.jpg", b"a\xff\xfe.jpg"))

    assert spooled(file, tmp_path) == {b"a\xff\xfe.jpg": (FILE, make_image(0))}


def test_spool_zip__a_name_with_nul_is_left_out(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"aXX.jpg": make_image(0)}, zipfile.ZIP_DEFLATED)
    file.write_bytes(file.read_bytes().replace(b"aXX.jpg", b"a\0X.jpg"))

    assert {name: kind for name, (kind, _) in spooled(file, tmp_path).items()} == {b"a\0X.jpg": zipscan.NAME_WITH_NUL}


def test_spool_zip__writes_what_comes_before_a_damage(tmp_path: Path, make_image: MakeImage) -> None:
    image = make_image(0, 200, 200)
    file = write_zip(tmp_path / "a.zip", {"a.jpg": image, "b.jpg": make_image(1)}, zipfile.ZIP_DEFLATED)
    ((_, _, place, _), _) = list_zip(file, "a.zip")
    content = bytearray(file.read_bytes())
    content[place + len(image) // 2 : place + len(image) // 2 + 64] = bytes(64)
    file.write_bytes(content)
    whole = bytearray(content)
    whole[place : place + 64] = b"\xff" * 64
    (tmp_path / "all.zip").write_bytes(whole)

    found, none = spooled(file, tmp_path), spooled(tmp_path / "all.zip", tmp_path)

    assert found[b"a.jpg"][1] != image
    assert found[b"a.jpg"][1][:4000] == image[:4000]
    assert none[b"a.jpg"] == (FILE, b"\0")
    assert found[b"b.jpg"] == none[b"b.jpg"] == (FILE, make_image(1))


def test_spool_zip__writes_no_more_than_a_member_says(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(2_000_000)}, zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    for place, offset in ((content.find(b"PK\x03\x04"), 22), (content.find(b"PK\x01\x02"), 24)):
        content[place + offset : place + offset + 4] = struct.pack("<I", 1000)
    file.write_bytes(content)

    assert spooled(file, tmp_path) == {b"a.jpg": (FILE, bytes(1000))}


def test_spool_zip__refuses_a_bomb(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "a.zip", {f"{index}.jpg": bytes(1_000_000) for index in range(3)}, zipfile.ZIP_DEFLATED)
    content = bomb.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 2_000_000_000))
    bomb.write_bytes(content)
    out = io.BytesIO()

    with pytest.raises(SourceError, match=r"a\.zip: its images say that they have 6000000000 bytes"):
        spool_zip(bomb, "a.zip", out)
    assert len(out.getvalue()) < 1 << 16


def test_spool_zip__an_image_over_two_gigabytes_is_left_out(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(1_000_000)}, zipfile.ZIP_DEFLATED)
    file.write_bytes(file.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 3_000_000_000)))

    assert [kind for kind, *_ in list_zip(file, "a.zip")] == ["image is too large"]
    out = io.BytesIO()
    spool_zip(file, "a.zip", out)
    assert names_in(out) == []


def test_spool_zip__a_full_disk_is_no_fault_of_the_zip(tmp_path: Path, make_image: MakeImage) -> None:
    file = write_zip(tmp_path / "a.zip", {"a.jpg": make_image(0, 900, 900)}, zipfile.ZIP_DEFLATED)

    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        spool_zip(file, "a.zip", Full())


def test_list_zip__two_members_of_one_name_are_both_there(tmp_path: Path, make_image: MakeImage) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("same.jpg", make_image(0))
            archive.writestr("same.jpg", make_image(1))

    found = [read_at(tmp_path / "a.zip", place, size) for _, _, place, size in list_zip(tmp_path / "a.zip", "a.zip")]

    assert found == [make_image(0), make_image(1)]
