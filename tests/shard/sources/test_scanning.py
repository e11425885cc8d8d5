"""What an input is, and its list."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dinowds.errors import SourceError
from dinowds.shard.sources import listing
from dinowds.shard.sources.check import Checks
from dinowds.shard.sources.layouts import open_sources
from dinowds.shard.sources.listing import Listing, match_labels
from dinowds.shard.sources.scanning import scan_sources
from dinowds.shard.sources.source import Source, SourceFile
from dinowds.shard.sources.spool import spool

MakeTar = Callable[..., Path]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def listing_of(path: Path, folder: Path | None = None) -> Listing:
    ((scanned,),) = scan_sources(open_sources([path]), folder, Checks(), 1, lambda _: None)
    return scanned.listing


def quarantine_of(listing: Listing) -> dict[str, str]:
    return {row["member"].decode(): row["reason"] for row in listing.quarantine.to_pylist()}


@pytest.mark.parametrize(
    ("name", "cohort"),
    [("a.tar", "a"), ("a.b.tar", "a.b"), ("x.tiles.tar.gz", "x.tiles"), ("y.TGZ", "y"), ("z.data", "z"), ("n", "n")],
)
def test_open__cohort_is_the_tars_stem(tmp_path: Path, name: str, cohort: str) -> None:
    (source,) = open_sources([write_tar(tmp_path / name, {"a.jpg": b"x"})])
    assert source.cohort == cohort


def test_open__cohort_of_a_folder_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "co.hort").mkdir()
    monkeypatch.chdir(tmp_path / "co.hort")
    assert [source.cohort for source in open_sources([Path()])] == ["co.hort"]
    assert open_sources([Path("../co.hort")])[0].path == "../co.hort"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd -d"),
        (b"text" * 300, "is not a tar"),
        (b"short", "is not a tar"),
    ],
)
def test_open__what_is_no_tar_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"a\.tar: .*{message}"):
        open_sources([path])


def test_open__missing_special_and_double_inputs_are_errors(tmp_path: Path, make_tar: MakeTar) -> None:
    with pytest.raises(SourceError, match="nowhere: no such file or folder"):
        open_sources([tmp_path / "nowhere"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        open_sources([tmp_path / "pipe"])
    (tmp_path / "other").mkdir()
    tars = [make_tar(tmp_path / "a.tar", 1), make_tar(tmp_path / "other" / "a.tar", 1)]
    with pytest.raises(SourceError, match="its cohort name 'a' is also that of"):
        open_sources(tars)


def test_open__what_is_given_twice_is_an_error(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 1)
    (tmp_path / "link.tar").symlink_to(source)
    os.link(source, tmp_path / "hard.tar")
    (tmp_path / "folder" / "inner" / "most").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "folder" / "inner")
    for first, second in (
        ("a.tar", "a.tar"),
        ("a.tar", "link.tar"),
        ("hard.tar", "a.tar"),
        ("folder", "folder"),
        ("folder", "folder/inner/most"),
        ("folder/inner/most", "folder"),
        ("folder", "way"),
    ):
        with pytest.raises(SourceError, match="is given twice, also"):
            open_sources([tmp_path / first, tmp_path / second])
    assert len(open_sources([source, tmp_path / "folder"])) == 2


def test_list__without_images_says_what_is_there(tmp_path: Path, make_tar: MakeTar) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        make_tar(folder / f"{number}.tar", 1)
    with pytest.raises(SourceError, match="has no image files, but 3 tars: give those"):
        listing_of(folder)
    (tmp_path / "void").mkdir()
    with pytest.raises(SourceError, match="this folder has no image files"):
        listing_of(tmp_path / "void")
    with pytest.raises(SourceError, match=r"this tar has no image files \(2 \.txt, 1 \.csv\)"):
        listing_of(write_tar(tmp_path / "texts.tar", {"a.txt": b"1", "b.txt": b"2", "c.csv": b"3"}))
    inner = {"1.tar": b"x", "2.tar.gz": b"x", "3.tgz": b"x", "4.csv.gz": b"x"}
    with pytest.raises(SourceError, match=r"but 3 tars inside: take them out \(tar -xf .*outer\.tar\) and give those"):
        listing_of(write_tar(tmp_path / "outer.tar", inner))
    with pytest.raises(SourceError, match=r"no image files \(2 \.csv\.gz\)"):
        listing_of(write_tar(tmp_path / "tables.tar", {"a/b.csv.gz": b"x", "c.CSV.GZ": b"x"}))
    (tmp_path / "void" / "a.jpg").write_bytes(b"")
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "void" / name).symlink_to("a.jpg")
    with pytest.raises(SourceError, match=r"no image files \(2 × symbolic link, 1 × empty file\)"):
        listing_of(tmp_path / "void")
    with pytest.raises(SourceError, match="holds nothing"):
        listing_of(write_tar(tmp_path / "empty.tar", {}))


def test_list__folder_is_sorted_and_follows_no_link(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    root = tmp_path / "root"
    for name in ("b/2.jpg", "b/10.jpg", "a/x.png", "a.b/y.jpg", "z.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_image(0))
    (root / "b" / "link.jpg").symlink_to("2.jpg")
    (root / "loop").symlink_to(root)
    (root / "b" / "._2.jpg").write_bytes(b"fork")
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff.jpg"))).write_bytes(make_image(1))
    listing = listing_of(root)
    assert listing.images["name"].to_pylist() == [
        b"a/x.png",
        b"a.b/y.jpg",
        b"b/10.jpg",
        b"b/2.jpg",
        b"z.jpg",
        b"\xff.jpg",
    ]
    assert quarantine_of(listing) == {"b/link.jpg": "symbolic link", "loop": "symbolic link"}
    assert listing.skipped == {"directories": 3, "macOS files": 1}
    before = listing.digest
    assert listing_of(root).digest == before
    os.utime(root / "z.jpg", ns=(1, 1))
    assert listing_of(root).digest != before


def test_list__labels_go_to_the_images_of_their_stem(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    image = make_image(0)
    members = {"s/a.jpg": image, "s/a.cls": b"7\n", "b.jpg": image, "c.cls": b"-2", "c.png": image, "c.jpg": image}
    members |= {"d.jpg": image, "d.cls": b"dog", "lost.cls": b"3", "e.jpg": image, "e.cls": b"9" * 40, "f.cls": b""}
    listing = listing_of(write_tar(tmp_path / "a.tar", members))
    found = {row["name"].decode(): row["label"] for row in listing.images.to_pylist()}
    assert found == {"s/a.jpg": "7", "b.jpg": None, "c.png": "-2", "c.jpg": "-2", "d.jpg": None, "e.jpg": None}
    assert quarantine_of(listing) == {
        "d.cls": "label is not an integer",
        "lost.cls": "label without an image",
        "e.cls": "label is not an integer",
        "f.cls": "empty file",
    }


def test_match_labels__of_a_stem_used_twice_go_in_order() -> None:
    images = pa.array([b"a.jpg", b"b.jpg", b"a.jpg", b"a.png", b"c.jpg"], pa.large_binary())
    labels = pa.array([b"b.cls", b"a.cls", b"a.cls"], pa.large_binary())
    assert match_labels(images, labels).tolist() == [1, 0, 2, 2, -1]


def columns_of(listing: Listing) -> pa.Table:
    return listing.images.select(["name", "place", "size"])


@pytest.mark.parametrize("packing", COMPRESSORS)
def test_compressed__stream_and_spool_list_like_the_plain_tar(tmp_path: Path, make_tar: MakeTar, packing: str) -> None:
    plain = make_tar(tmp_path / "a.tar", 30)
    packed = tmp_path / "packed.bin"
    packed.write_bytes(COMPRESSORS[packing](plain.read_bytes()))
    (source,) = open_sources([packed])
    assert [(file.kind, file.packing) for file in source.files] == [("tar", packing)]
    expected = listing_of(plain)
    assert columns_of(listing_of(packed)) == columns_of(expected)
    assert listing_of(packed, tmp_path).digest == expected.digest
    path = spool(source.files[0], tmp_path, lambda _: None)
    assert path.read_bytes() == plain.read_bytes()
    os.truncate(packed, 0)
    assert spool(source.files[0], tmp_path, lambda _: None) == path


def test_compressed__joined_tars_and_junk_stream_as_they_list(tmp_path: Path, make_tar: MakeTar) -> None:
    joined = b"".join(make_tar(tmp_path / f"{n}.tar", 3).read_bytes() for n in "ab")
    for number, content in enumerate((joined, joined + bytes(2 << 20) + joined, joined + b"j" * 1000)):
        (tmp_path / "x.tar").write_bytes(content)
        (tmp_path / f"{number}.tar.gz").write_bytes(gzip.compress(content))
        streamed = listing_of(tmp_path / f"{number}.tar.gz")
        assert columns_of(streamed) == columns_of(listing_of(tmp_path / "x.tar"))
        assert len(streamed.images) == (12 if number == 1 else 6)
        assert quarantine_of(streamed) == ({"": "data after the end marker"} if number == 2 else {})


@pytest.mark.parametrize("packing", COMPRESSORS)
def test_compressed__cut_or_damaged_is_an_error(tmp_path: Path, make_tar: MakeTar, packing: str) -> None:
    content = COMPRESSORS[packing](make_tar(tmp_path / "a.tar", 30).read_bytes())
    packed, folder = tmp_path / "packed.tar.x", tmp_path / "folder"
    folder.mkdir()
    half = len(content) // 2
    damaged = content[:half] + bytes(byte ^ 0x55 for byte in content[half : half + 50]) + content[half + 50 :]
    for broken, message in ((content[:half], "is cut short"), (damaged, "cannot be decompressed|cannot be read")):
        packed.write_bytes(broken)
        with pytest.raises(SourceError, match=message):
            listing_of(packed, folder)
        # As a stream, bytes that decompress to something else are met by the scan.
        with pytest.raises(SourceError, match=rf"packed\.tar\.x: .*({message}|tar)"):
            listing_of(packed)
    assert list(folder.iterdir()) == []


def test_compressed__that_is_no_tar_inside_is_an_error(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(b"text" * 999))
    with pytest.raises(SourceError, match=r"a\.gz: is not a tar"):
        listing_of(packed)
    with pytest.raises(SourceError, match=r"a\.gz: is not a tar"):
        listing_of(packed, tmp_path)
    assert list(tmp_path.iterdir()) == [packed]


def test_open__returns_what_was_given(tmp_path: Path, make_tar: MakeTar) -> None:
    path = make_tar(tmp_path / "a.tar", 1)
    found = path.stat()
    file = SourceFile(str(path), path, "tar", "", found.st_size, found.st_mtime_ns)
    assert open_sources([path]) == [Source(str(path), "a", "tar", (file,))]


class Ended(Exception):
    """What a thread is told when the command ends."""


def end_after(calls: int) -> Callable[[int], None]:
    seen: list[int] = []

    def report(count: int) -> None:
        seen.append(count)
        if len(seen) > calls:
            raise Ended

    return report


@pytest.mark.parametrize("kind", ["gz", "zip", "regions"])
def test_spool__ends_when_it_is_told_to(tmp_path: Path, make_tar: MakeTar, kind: str) -> None:
    """Not only once a file of any size is unpacked whole."""
    plain, source = make_tar(tmp_path / "a.tar", 30), tmp_path / "source.bin"
    if kind == "gz":
        source.write_bytes(gzip.compress(plain.read_bytes() * 99))
    elif kind == "zip":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jpg", b"a" * 999)
    else:
        source.mkdir()
        torch.save(torch.zeros(4, 2), source / "s_0_0.pt")
    (file,) = open_sources([source])[0].files
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(Ended):
        spool(file, folder, end_after(1))
    assert list(folder.iterdir()) == []


def test_scan__of_a_list_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BATCH", 2)
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number}.jpg\n" for number in range(5)))
    seen: list[int] = []
    with pytest.raises(SourceError, match="not one image"):
        scan_sources(open_sources([tmp_path / "list.csv"]), None, Checks(), 1, seen.append)
    assert seen[-3:] == [2, 4, 5]
