"""Shards that are not as `dinowds shard` writes them: with samples that are in no index, or sources as they came."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import SAMPLES_SCHEMA, Manifest, Shard, read_manifest, write_manifest
from dinowds.data.verify import Damage, verify_dataset
from dinowds.files import sha256_of
from dinowds.shard.finished.withdraw import withdraw_slides
from tests.shard.finished.datasets import make_finished

NAMES = ["./s1/1_2.jpg", "s1/notes.txt", f"{'deep/' * 30}3_4.jpg", "s1/Gewebe_ö.jpg", "plain.jpg"]


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture(params=[tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def in_place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A dataset whose only shard is a source tar elsewhere; rows in another order than members, one has a label."""
    source, rows = tmp_path / "source.tar", []
    names = [name for name in NAMES if request.param != tarfile.USTAR_FORMAT or name.isascii()]
    with tarfile.open(source, "w", format=request.param) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(name.encode() * 700))
    with tarfile.open(source) as tar:
        for number, member in enumerate(tar):
            if member.name.endswith(".txt"):
                continue
            payload = source.read_bytes()[member.offset_data : member.offset_data + 700]
            rows.append(
                {
                    **{"key": f"key{number}", "shard": 0, "offset": member.offset_data, "size": 700, "ext": "jpg"},
                    **{"digest": xxhash.xxh3_128_digest(payload), "cohort": "source", "width": 8, "height": 8},
                    **{"label": 0 if number == 0 else None, "source": str(source), "source_name": member.name},
                }
            )
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[::-1], SAMPLES_SCHEMA), folder / "samples.parquet")
    (folder / "quarantine.jsonl").write_text("")
    write_manifest(
        folder,
        Manifest(
            name="data",
            kind="image",
            shards=(Shard(str(source), len(rows), source.stat().st_size, sha256_of(source)),),
            cohorts={"source": len(rows)},
            label_names=("0",),
            seed=0,
            samples_sha256=sha256_of(folder / "samples.parquet"),
            samples_footer_sha256=footer_sha256(folder / "samples.parquet"),
            metadata={"in_place": True},
        ),
    )
    return folder


def test_verify__sources_in_place_are_compared_by_their_own_names(in_place: Path) -> None:
    assert verify_dataset(in_place) == []
    manifest = read_manifest(in_place)
    source = Path(manifest.shards[0].url)
    rows = {row["key"]: row for row in pq.read_table(in_place / "samples.parquet").to_pylist()}
    for key in ("key0", "key2"):
        change_byte(source, rows[key]["offset"] + 5)
    assert verify_dataset(in_place) == [
        Damage(str(source), key, "its bytes are not those that were written") for key in ("key0", "key2")
    ]
    for key in ("key0", "key2"):
        change_byte(source, rows[key]["offset"] + 5)
    write_manifest(in_place, replace(manifest, metadata={}))
    assert any("its member is called" in damage.problem for damage in verify_dataset(in_place))
    write_manifest(in_place, replace(manifest, metadata={"in_place": {"data": True}}))  # as of a merged dataset
    assert verify_dataset(in_place) == []


def test_verify__other_member_in_place_of_a_sample_is_found(in_place: Path) -> None:
    source = Path(read_manifest(in_place).shards[0].url)
    with tarfile.open(source) as tar:
        last = tar.getmembers()[-1]
    content = bytearray(source.read_bytes())
    header = tarfile.TarInfo("other.jpg")
    header.size = 700
    content[last.offset_data - 512 : last.offset_data] = header.tobuf(tarfile.USTAR_FORMAT)
    source.write_bytes(content)
    (damage,) = verify_dataset(in_place)
    assert damage.problem == "its member is called 'other.jpg', expected 'plain.jpg'"


def test_verify__withdrawn_samples_are_no_damage_and_hide_none(tmp_path: Path) -> None:
    folder = make_finished(
        tmp_path / "data", [("a", "s1"), ("a", "s2"), ("a", "s3")], label_names=("x", "y"), extra="sharpness"
    )
    (tmp_path / "list").write_text("s2\n")
    withdraw_slides(folder, tmp_path / "list")
    assert verify_dataset(folder) == []
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    shards = read_manifest(folder).shards
    for row in rows:
        path = folder / shards[row["shard"]].url
        for position in (row["offset"] - 512, row["offset"] + 3, row["offset"] + -(-row["size"] // 512) * 512 + 512):
            change_byte(path, position)
            assert [damage.key for damage in verify_dataset(folder)] == [row["key"]]
            change_byte(path, position)


def test_verify__indexes_of_other_readers_are_no_damage(tmp_path: Path) -> None:
    folder = make_finished(tmp_path / "data", [("a", "s1")])
    for name in ("data-000000.idx", "data-000000.tar.idx"):
        (folder / "shards" / name).write_text(json.dumps({}))
    assert verify_dataset(folder) == []
    (folder / "shards" / "data-000000.tar.txt").write_text("")
    assert len(verify_dataset(folder)) == 1
