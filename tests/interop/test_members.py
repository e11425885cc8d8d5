"""Where members lie, against tarfile."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.index.shardrows import Row
from dinowds.errors import DatasetError
from dinowds.interop.facts import shard_members
from dinowds.interop.members import Member, SampleMembers, computed_members, has_member, read_members, walked_members

Files = list[tuple[str, bytes]]


def write_tar(path: Path, files: Files, form: int = tarfile.USTAR_FORMAT) -> list[SampleMembers]:
    """A tar as `dinowds shard` writes it, ended by two zero blocks; where tarfile finds its members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as tar:
        for name, payload in files:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
        end = tar.offset
    path.write_bytes(content.getvalue()[:end] + bytes(1024))
    found: dict[str, list[tarfile.TarInfo]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            found.setdefault(member.name.partition(".")[0], []).append(member)
    return [
        SampleMembers(
            key,
            members[0].offset,
            tuple(Member(m.name[len(key) + 1 :], m.offset_data, m.size) for m in members),
        )
        for key, members in found.items()
    ]


def rows_of(samples: list[SampleMembers], labels: list[int]) -> list[Row]:
    """What samples.parquet says: the first member of each sample is the image."""
    return [
        Row(sample.key, sample.members[0].offset, sample.members[0].size, sample.members[0].ext, b"", label)
        for sample, label in zip(samples, labels, strict=True)
    ]


def random_files(seed: int, extras: tuple[str, ...]) -> tuple[Files, list[int]]:
    """Images of 0 to 2,000 bytes, some with labels of one to three digits and with other members; and the labels."""
    rng = np.random.default_rng(seed)
    files: Files = []
    labels = []
    for index in range(20):
        key = f"slide_{index % 3}/{index}_7"
        labels.append(int(rng.choice([-1, 3, 42, 512])))
        files.append((f"{key}.{rng.choice(['jpg', 'png'])}", bytes(int(rng.choice([0, 1, 512, 513, 2000])))))
        files += [(f"{key}.cls", str(labels[-1]).encode())] if labels[-1] >= 0 else []
        files += [(f"{key}.{ext}", bytes(int(rng.integers(1, 900)))) for ext in extras if rng.random() < 0.5]
    return files, labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extras", [(), ("json",), ("json", "mask.png")])
def test_members__are_those_that_tarfile_finds(tmp_path: Path, seed: int, extras: tuple[str, ...]) -> None:
    files, labels = random_files(seed, extras)
    expected = write_tar(tmp_path / "a.tar", files)
    rows = rows_of(expected, labels)
    assert read_members(tmp_path / "a.tar", rows, (tmp_path / "a.tar").stat().st_size) == expected
    assert (computed_members(rows) == expected) == (not extras)


def test_members__of_shards_that_dinowds_wrote_need_no_walk(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    walked = []
    for shard in range(4):
        descriptor = os.open(dataset.shard_url(shard), os.O_RDONLY)
        walked.append(walked_members(descriptor, Path("a.tar")))
        os.close(descriptor)
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert [shard_members(dataset, shard) for shard in range(4)] == walked
    assert reads == [512] * 8  # of the first and the last sample of each shard


def test_members__a_label_that_is_none_is_seen(tmp_path: Path) -> None:
    """One block of JSON where the index makes one expect a label."""
    files = [("a.jpg", b"x"), ("a.json", b"{}"), ("b.jpg", b"y"), ("b.json", b"{}")]
    expected = write_tar(tmp_path / "a.tar", files)
    assert read_members(tmp_path / "a.tar", rows_of(expected, [1, 1]), 5120) == expected


def test_members__withdrawn_samples_are_refused(tmp_path: Path) -> None:
    files, labels = random_files(1, ())
    rows = rows_of(write_tar(tmp_path / "a.tar", files), labels)
    for kept in (rows[1:], rows[:-1], rows[:7] + rows[8:]):
        with pytest.raises(DatasetError, match=r"holds 20 samples, of which samples.parquet lists 19; .*--rewrite"):
            read_members(tmp_path / "a.tar", kept, (tmp_path / "a.tar").stat().st_size)


@pytest.mark.parametrize("change", ["key", "place", "order", "more"])
def test_members__other_samples_than_the_index_are_refused(tmp_path: Path, change: str) -> None:
    files, labels = random_files(2, ())
    rows = rows_of(write_tar(tmp_path / "a.tar", files), labels)
    if change == "key":
        rows[0] = rows[0]._replace(key="another")
    elif change == "place":
        rows[4] = rows[4]._replace(offset=rows[4].offset + 512)
    elif change == "order":
        rows[3], rows[4] = rows[4], rows[3]
    else:
        rows.append(rows[0]._replace(key="more"))
    with pytest.raises(DatasetError, match="its members are not the samples"):
        read_members(tmp_path / "a.tar", rows, (tmp_path / "a.tar").stat().st_size)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("with space.jpg", tarfile.USTAR_FORMAT),
        ("no_extension", tarfile.USTAR_FORMAT),
        ("folder.jpg/name", tarfile.USTAR_FORMAT),
        (".jpg", tarfile.USTAR_FORMAT),
        ("a/.jpg", tarfile.USTAR_FORMAT),
        ("__a.jpg", tarfile.USTAR_FORMAT),
        ("ü.jpg", tarfile.GNU_FORMAT),
        (f"{'a' * 60}/{'b' * 60}.jpg", tarfile.USTAR_FORMAT),
        (f"{'a' * 60}/{'b' * 60}.jpg", tarfile.GNU_FORMAT),
        (f"{'a' * 60}/{'b' * 60}.jpg", tarfile.PAX_FORMAT),
    ],
)
def test_members__names_that_readers_differ_on_are_refused(tmp_path: Path, name: str, form: int) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), (name, b"y")], form)
    row = Row("a", 512, 1, "jpg", b"", -1)
    with pytest.raises(DatasetError, match=r"a\.tar: the member at byte 1024 is not a plain file"):
        read_members(tmp_path / "a.tar", [row], (tmp_path / "a.tar").stat().st_size)


def test_members__a_tar_of_another_size_is_refused(tmp_path: Path) -> None:
    rows = rows_of(write_tar(tmp_path / "a.tar", [("a.jpg", b"x")]), [-1])
    with pytest.raises(DatasetError, match="has 2048 bytes, the manifest says 4096; copy the dataset again"):
        read_members(tmp_path / "a.tar", rows, 4096)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1024])
    with pytest.raises(DatasetError, match="ends without its end marker"):
        read_members(tmp_path / "a.tar", rows, 1024)
    with pytest.raises(DatasetError, match=r"b\.tar: cannot be read \(No such file"):
        read_members(tmp_path / "b.tar", rows, 1024)


def test_has_member__is_true_of_what_is_there_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x/a.jpg", b"x"), ("x/a.cls", b"12")])
    tar = tmp_path / "a.tar"
    assert has_member(tar, "x/a.cls", Member("cls", 1536, 2))
    assert not has_member(tar, "x/b.cls", Member("cls", 1536, 2))
    assert not has_member(tar, "x/a.cls", Member("cls", 1536, 1))
    assert not has_member(tar, "x/a.cls", Member("cls", 2048, 2))
    assert not has_member(tar, "x/a.cls", Member("cls", 99 * 512, 2))
    assert not has_member(tmp_path / "b.tar", "x/a.cls", Member("cls", 1536, 2))
