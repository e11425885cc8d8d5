"""The header scan against tarfile, on tars of every format, and on broken ones; with and without the C library."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dinowds.errors import SourceError
from dinowds.shard import kernels
from dinowds.shard.sources.tarscan import (
    AFTER_END,
    DIRECTORY,
    FILE,
    LONG_NAME,
    NO_END,
    FileData,
    Member,
    Members,
    TarData,
    scan_tar,
)
from dinowds.shard.tarheader import is_header, parse_number, parse_pax

FORMATS: dict[str, Literal[0, 1, 2]] = {"ustar": 0, "gnu": 1, "pax": 2}
"""tarfile's own numbers."""
LETTERS = "abcXYZ019 _-.()'äß組𝄞"


def flattened(found: Iterable[Member | Members]) -> Iterator[Member]:
    """Runs of members, one by one."""
    for item in found:
        if isinstance(item, Members):
            columns = (item.names.to_pylist(), item.places.tolist(), item.sizes.tolist())
            yield from ((FILE, name, place, size) for name, place, size in zip(*columns, strict=True))
        else:
            yield item


def outcome(data: TarData) -> tuple[list[Member], str]:
    """The members up to the end or the error, and the error."""
    members = []
    try:
        for member in flattened(scan_tar(data, "x")):
            members.append(member)
    except SourceError as error:
        return members, str(error)
    return members, ""


def in_c_and_in_python(path: Path) -> list[tuple[list[Member], str]]:
    """The outcome with the C library, with its replacement in Python, and without runs."""
    outcomes = [outcome(BytesData(path.read_bytes()))] if path.stat().st_size < 64 << 20 else []
    with open(path, "rb") as file, pytest.MonkeyPatch.context() as patch:
        outcomes.append(outcome(FileData(file.fileno())))
        patch.setattr(kernels, "_library", lambda: None)
        outcomes.append(outcome(FileData(file.fileno())))
    return outcomes


def scan(path: Path) -> list[Member]:
    first, *others = in_c_and_in_python(path)
    assert all(other == first for other in others)
    if first[1]:
        raise SourceError(first[1].replace("x:", f"{path}:", 1))
    return first[0]


def scan_with_tarfile(path: Path) -> list[Member]:
    """What tarfile finds, in the scan's terms."""
    kinds = {tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "symbolic link", tarfile.DIRTYPE: DIRECTORY}
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        return [
            (
                FILE if m.isreg() else kinds.get(m.type, "device or pipe"),
                m.name.encode("utf-8", "surrogateescape"),
                m.offset_data,
                m.size,
            )
            for m in tar
        ]


def random_member(random: np.random.Generator, form: str) -> tuple[tarfile.TarInfo, bytes]:
    length = int(random.choice([3, 20, 99, 100, 101, 150, 255] if form == "ustar" else [3, 99, 100, 101, 156, 600]))
    alphabet = LETTERS[:14] if form == "ustar" else LETTERS
    letters = "".join(random.choice(list(alphabet), length))
    if form == "ustar" and length > 100:
        letters = letters[: length - 90] + "/" + letters[length - 89 :]
        letters = letters[-240:]
    member = tarfile.TarInfo(letters.strip() or "x")
    kinds = [tarfile.REGTYPE] * 6 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
    member.type = kinds[random.integers(len(kinds))]
    if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        member.linkname = "t" * int(random.choice([5, 99] if form == "ustar" else [5, 99, 180]))
    payload = random.bytes(int(random.choice([0, 1, 511, 512, 513, 3000]))) if member.isreg() else b""
    member.size = len(payload)
    if form == "pax" and random.random() < 0.5:
        member.pax_headers = {"comment": "a" * int(random.integers(700)), "mtime": "1.5"}
    return member, payload


@pytest.mark.parametrize("form", FORMATS)
def test_scan__equals_tarfile_on_random_tars(tmp_path: Path, form: str) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        path = tmp_path / f"{seed}.tar"
        headers = {"comment": "for all", "LIBARCHIVE.x": "ü"} if form == "pax" and seed % 2 else None
        with tarfile.open(path, "w", format=FORMATS[form], pax_headers=headers) as tar:
            for _ in range(int(random.integers(0, 25))):
                member, payload = random_member(random, form)
                tar.addfile(member, io.BytesIO(payload))
        found = [(kind, name.rstrip(b"/") if kind == DIRECTORY else name, *rest) for kind, name, *rest in scan(path)]
        assert found == scan_with_tarfile(path)


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_scan__reads_sizes_over_8_gib(tmp_path: Path, form: str) -> None:
    path = tmp_path / "huge.tar"
    huge = tarfile.TarInfo("huge.bin")
    huge.size = (9 << 30) + 5
    after = tarfile.TarInfo("after.jpg")
    after.size = 3
    with open(path, "wb") as file:  # sparse on disk
        file.write(huge.tobuf(FORMATS[form]))
        file.seek(-(-huge.size // 512) * 512, os.SEEK_CUR)
        file.write(after.tobuf(FORMATS[form]) + b"abc".ljust(512, b"\0") + bytes(1024))
    members = scan(path)
    assert members == scan_with_tarfile(path)
    assert [(name, size) for _, name, _, size in members] == [(b"huge.bin", huge.size), (b"after.jpg", 3)]


def test_scan__knows_v7_and_old_gnu_headers(tmp_path: Path) -> None:
    v7 = tarfile.TarInfo("old.jpg").tobuf(tarfile.USTAR_FORMAT)
    v7 = _with_checksum(v7[:257] + bytes(255))
    times = _with_checksum(tarfile.TarInfo("gnu.jpg").tobuf(tarfile.GNU_FORMAT)[:345] + b"14123456701\0" + bytes(155))
    folder = _with_checksum(tarfile.TarInfo("folder/").tobuf()[:156] + b"\0" + tarfile.TarInfo("folder/").tobuf()[157:])
    path = tmp_path / "old.tar"
    path.write_bytes(v7 + times + folder + bytes(1024))
    members = scan(path)
    assert [member[:2] for member in members] == [(FILE, b"old.jpg"), (FILE, b"gnu.jpg"), (DIRECTORY, b"folder/")]


def test_scan__finds_sparse_members_and_what_follows_them(tmp_path: Path) -> None:
    sparse = bytearray(tarfile.TarInfo("sparse.jpg").tobuf(tarfile.GNU_FORMAT))
    sparse[124:136] = b"00000000007\0"
    sparse[156:157] = b"S"
    sparse[482] = 1
    pax = tarfile.TarInfo("GNUSparseFile.0/b.jpg")
    pax.size = 600
    pax.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.jpg"}
    content = (
        _with_checksum(bytes(sparse))
        + bytes(504)
        + b"\1"
        + bytes(7)
        + bytes(512)
        + b"payload".ljust(512, b"\0")
        + pax.tobuf(tarfile.PAX_FORMAT)
        + bytes(1024)
        + tarfile.TarInfo("after.jpg").tobuf()
        + bytes(1024)
    )
    path = tmp_path / "sparse.tar"
    path.write_bytes(content)
    members = scan(path)
    assert [(kind, name, size) for kind, name, _, size in members] == [
        ("sparse member", b"sparse.jpg", 7),
        ("sparse member", b"b.jpg", 600),
        (FILE, b"after.jpg", 0),
    ]


def test_scan__applies_global_path_and_size_only_where_a_member_has_none_of_its_own(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = {"path": "own.jpg"}
    content = (
        tarfile.TarInfo.create_pax_global_header({"path": "shared.jpg"})
        + member.tobuf(tarfile.PAX_FORMAT)
        + tarfile.TarInfo("b.jpg").tobuf(tarfile.USTAR_FORMAT)
        + bytes(1024)
    )
    path = tmp_path / "shared.tar"
    path.write_bytes(content)
    assert [name for _, name, _, _ in scan(path)] == [b"own.jpg", b"shared.jpg"]


def test_scan__goes_on_after_joined_tars(tmp_path: Path) -> None:
    parts = []
    for name in ("a", "b"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(f"{name}.jpg"))
        parts.append(content.getvalue())
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(parts))
    assert [name for _, name, _, _ in scan(path)] == [b"a.jpg", b"b.jpg"]


def test_scan__cut_anywhere_is_an_error_or_lacks_its_end_marker(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.jpg", "n" * 120, "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(range(1, 141)) * 5))
    content = whole.getvalue()
    path = tmp_path / "cut.tar"
    path.write_bytes(content)
    ends = {offset + 1024 for _, _, offset, _ in scan(path)} | {0}
    for length in range(0, max(ends) + 1, 64):
        path.write_bytes(content[:length])
        if length in ends:
            assert scan(path)[-1][0] == NO_END
        else:
            with pytest.raises(SourceError, match=rf"cut\.tar: is cut short: it ends at byte {length} "):
                scan(path)


def test_scan__ordinary_files_come_in_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index in range(10_000):
            if index == 6000:
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
                tar.addfile(link)
            member = tarfile.TarInfo(f"{index}.jpg")
            if index % 3 == 0:
                member.name = f"{index}_ö_" + "n" * 120
                member.pax_headers = {"mtime": "1.5", "comment": "c" * 300}
            tar.addfile(member)
        large = tarfile.TarInfo("large")
        large.size = 65 << 20
        tar.addfile(large, io.BytesIO(bytes(large.size)))
        tar.addfile(tarfile.TarInfo("after"))
    with open(path, "rb") as file:
        runs = list(scan_tar(FileData(file.fileno()), "x"))
    sizes = [len(run.sizes) if isinstance(run, Members) else 0 for run in runs]
    assert sizes == [4096, 6000 - 4096, 0, 4001, 1]
    assert list(flattened(runs)) == scan_with_tarfile(path)


def test_scan__global_comment_does_not_end_the_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of git archive"}) as tar:
        for index in range(3):
            tar.addfile(tarfile.TarInfo(f"{index}.jpg"))
    with open(path, "rb") as file:
        (run,) = scan_tar(FileData(file.fileno()), "x")
    assert isinstance(run, Members)
    assert run.names.to_pylist() == [b"0.jpg", b"1.jpg", b"2.jpg"]


def test_scan__hostile_tars_in_c_as_in_python(hostile_tars: list[Path]) -> None:
    for path in hostile_tars:
        found = [(kind, name.rstrip(b"/") if kind == DIRECTORY else name, *rest) for kind, name, *rest in scan(path)]
        assert found == scan_with_tarfile(path)


@pytest.mark.parametrize("form", FORMATS)
def test_scan__damage_is_told_in_c_as_in_python(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.tar"
    for seed in range(150):
        random = np.random.default_rng(seed)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=FORMATS[form]) as tar:
            for _ in range(4):
                member, payload = random_member(random, form)
                tar.addfile(member, io.BytesIO(payload))
        changed = bytearray(content.getvalue()[: -int(random.choice([1, 1024, 9000]))])
        headers = [at for at in range(0, len(changed) - 511, 512) if changed[at + 257 : at + 262] == b"ustar"]
        block = int(random.choice(headers))
        start, stop = [(0, 512), (124, 136), (148, 158), (512, 600)][random.integers(4)]
        for _ in range(random.integers(1, 4)):
            at = min(block + int(random.integers(start, stop)), len(changed) - 1)
            changed[at] = int(random.choice([0, 32, 45, 47, 48, 55, 56, 61, 95, 128, 255, int(random.integers(256))]))
        if random.random() < 0.8:
            changed[block : block + 512] = _with_checksum(bytes(changed[block : block + 512]))
        path.write_bytes(changed)
        first, *others = in_c_and_in_python(path)
        assert others == [first, first]


def test_scan__damaged_header_is_an_error_that_names_the_place() -> None:
    content = bytearray(tarfile.TarInfo("a.jpg").tobuf() + tarfile.TarInfo("b.jpg").tobuf() + bytes(1024))
    content[512 + 3] ^= 1
    with pytest.raises(SourceError, match="no tar header at byte 512"):
        list(scan_tar(BytesData(bytes(content)), "x"))
    with pytest.raises(SourceError, match="is not a tar"):
        list(scan_tar(BytesData(b"j" * 2048), "x"))


@pytest.mark.parametrize("junk", [b"j", b"\n", b"j" * 512, b"j" * 1000, bytes(511) + b"j", b"j" * (3 << 20)])
def test_scan__junk_after_the_end_marker_is_one_member_of_its_own(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "a.tar"
    content = tarfile.TarInfo("a.jpg").tobuf() + bytes(1024)
    path.write_bytes(content + junk)
    assert scan(path) == [(FILE, b"a.jpg", 512, 0), (AFTER_END, b"", len(content), 0)]
    assert scan_with_tarfile(path) == scan(path)[:1]
    # Zeros before more members are a hole, not an end.
    path.write_bytes(content + junk.ljust(3 << 20, b"j") + tarfile.TarInfo("b.jpg").tobuf() + bytes(1024))
    with pytest.raises(SourceError, match=f"no tar header at byte {len(content)}"):
        scan(path)


def test_scan__size_of_twelve_digits_is_read_whole(tmp_path: Path) -> None:
    for size in (8, 8**11 - 1, 8**11 + 7, 8**12 - 1):
        header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
        header[124:136] = b"%012o" % size
        path = tmp_path / "a.tar"
        path.write_bytes(_with_checksum(bytes(header)))
        os.truncate(path, 512 + -(-size // 512) * 512 + 1024)
        assert scan(path) == scan_with_tarfile(path) == [(FILE, b"a.jpg", 512, size)]


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_scan__names_that_no_one_could_use_are_not_kept(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.tar"
    names = ["n" * 4096, "m" * 4097, "o" * 500_000, "after.jpg"]
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    found = [(kind, name) for kind, name, _, _ in scan(path)]
    assert found == [(FILE, b"n" * 4096), (LONG_NAME, b"m" * 200), (LONG_NAME, b"o" * 200), (FILE, b"after.jpg")]
    assert [member[2:] for member in scan(path)] == [member[2:] for member in scan_with_tarfile(path)]
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        tar.addfile(tarfile.TarInfo("p" * (2 << 20)))
    with pytest.raises(SourceError, match="bytes of metadata"):
        scan(path)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\xff" * 12, b"\x80\x01" + bytes(10), b"0000008\0" + bytes(4)])
def test_scan__sizes_that_cannot_be_are_errors(tmp_path: Path, size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = size
    path = tmp_path / "a.tar"
    path.write_bytes(_with_checksum(bytes(header)) + bytes(1024))
    with pytest.raises(SourceError, match="damaged tar header at byte 0"):
        scan(path)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"11 path=abc\n",
            b"99 path=ab\n",
            b"path=ab\n",
            b"6 pat\n",
            b"-5 a=\n",
            b"12 path=abcd",
            b"4 a\n",
            b"0 a=b\n",
        ),
        *(b"11 path=ab\n", b"7 path=\n", b"9 size=7\n", b"11 path=ab\n11 path=cd\n", b"11 path=ab\n\0junk", b"5 =b\n"),
        *(
            b"7 path=\n" + b"11 path=ab\n",
            b"12 path=a\nb\n",
            b"11 path=a\0\n",
            b"011 path=ab\n",
            b"",
            b"\0",
            b"9 a=b=c\n1",
        ),
    ],
)
def test_scan__records_of_pax_in_c_as_in_python(tmp_path: Path, content: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    path = tmp_path / "a.tar"
    blocks = content + bytes(-len(content) % 512)
    path.write_bytes(header.tobuf() + blocks + tarfile.TarInfo("own.jpg").tobuf() + bytes(1024))
    first, *others = in_c_and_in_python(path)
    assert others == [first, first]


def test_is_header__holds_for_tarfile_and_fails_for_each_changed_byte() -> None:
    header = bytearray(tarfile.TarInfo("äöü" * 20).tobuf(tarfile.GNU_FORMAT, "latin-1"))
    assert is_header(bytes(header))
    assert is_header(_with_checksum(bytes(header), signed=True))
    for position in [*range(148), *range(156, 512)]:
        header[position] ^= 0x15
        assert not is_header(bytes(header))
        header[position] ^= 0x15


@pytest.mark.parametrize("value", [0, 1, 8**11 - 1, 8**11, 2**62])
def test_parse_number__reads_octal_and_base_256(value: int) -> None:
    assert parse_number(tarfile.itn(value, 12, tarfile.GNU_FORMAT)) == value  # type: ignore[attr-defined]


def test_parse_pax__refuses_records_that_do_not_fit() -> None:
    assert parse_pax(b"11 path=ab\n11 x=a\nb=c\n" + bytes(9)) == {b"path": b"ab", b"x": b"a\nb=c"}
    for content in (b"11 path=abc\n", b"99 path=ab\n", b"path=ab\n", b"6 pat\n", b"-5 a=\n"):
        with pytest.raises(ValueError, match="PAX record"):
            parse_pax(content)


class BytesData:
    """`TarData` of bytes at hand."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def size(self) -> int:
        return len(self._content)


def _with_checksum(header: bytes, signed: bool = False) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in blank)
    return header[:148] + b"%06o\0 " % (total & 0o777777) + header[156:]
