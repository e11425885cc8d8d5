"""What is written, what is refused, and what is stale."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinowds.data.manifest import read_manifest, write_manifest
from dinowds.errors import ConfigError, DatasetError, DinowdsError, OutputError
from dinowds.files import sha256_of
from dinowds.interop.names import READERS, list_interop_files
from dinowds.interop.stale import stale_indexes
from dinowds.interop.write import Indexed, write_indexes
from dinowds.shard.build import ShardOptions, build_dataset
from tests.interop.conftest import Labelled, write_labelled
from tests.interop.test_members import write_tar


@pytest.fixture
def folder(labelled: Labelled, tmp_path: Path) -> Path:
    """A dataset that is not indexed."""
    return _copy(labelled.folder, tmp_path / "patches")


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    for name in list_interop_files(to):
        (to / name).unlink()
    (to / ".nv-meta").rmdir()
    return to


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _change_index(
    folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], **manifest: Any
) -> None:
    """Write samples.parquet and the manifest anew, as another command would."""
    path = folder / "samples.parquet"
    table = pq.read_table(path)
    groups = [[row for row in table.to_pylist() if row["shard"] == shard] for shard in range(4)]
    with pq.ParquetWriter(path, table.schema) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(change(rows), table.schema))
    found = replace(read_manifest(folder), samples_sha256=sha256_of(path), samples_footer_sha256="")
    write_manifest(folder, replace(found, **manifest))


def test_write__same_again_is_the_same_to_the_byte(folder: Path, labelled: Labelled) -> None:
    write_indexes(str(folder), READERS)
    once = _content(folder)
    assert once == _content(labelled.folder)
    write_indexes(str(folder), READERS)
    assert _content(folder) == once


def test_write__each_reader_gets_its_own_files_alone(folder: Path) -> None:
    expected = {
        "wids": [],
        "dali": [f"shards/patches-00000{shard}.idx" for shard in range(4)],
        "timm": ["_info.json"],
        "hf": ["README.md"],
    }
    for reader, files in expected.items():
        done = write_indexes(str(folder), [reader])
        assert [(w.reader, w.files) for w in done.written] == [(reader, files)]
        assert done.written[0].num_bytes == sum((folder / name).stat().st_size for name in files)
        assert list_interop_files(folder) == files
        for name in files:
            (folder / name).unlink()


def test_write__no_shard_is_touched(folder: Path) -> None:
    before = _content(folder)
    write_indexes(str(folder), READERS)
    assert {name: content for name, content in _content(folder).items() if name in before} == before


def test_write__reports_come_to_their_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_indexes(str(folder), ["dali"], report=lambda *now: seen.append(now))
    assert seen == [(done, 8) for done in range(1, 9)]


def _refused(folder: Path, reader: str, message: str, kind: type[DinowdsError] = DatasetError) -> None:
    before = _content(folder)
    with pytest.raises(kind, match=message) as error:
        write_indexes(str(folder), [reader])
    assert "\n" not in str(error.value)
    assert _content(folder) == before


def _taken(folder: Path, reader: str) -> Indexed:
    return write_indexes(str(folder), [reader])


def test_write__labels_of_some_samples_alone(tmp_path: Path) -> None:
    write_labelled(tmp_path / "source", 20)
    for number in range(5):
        (tmp_path / "source" / f"slide{number % 3}" / f"{number}_{2 * number}.cls").unlink()
    folder = tmp_path / "patches"
    build_dataset([tmp_path / "source"], folder, ShardOptions(max_count=8))
    _refused(folder, "timm", "by timm: it wants a label in every sample, and 5 of 20 have none; give all a label$")
    _refused(folder, "hf", r"by hf: .* found jpg \+ cls \(15\), jpg \(5\); convert all images to one format")
    assert _taken(folder, "energon").notices == (
        "energon: 5 of 20 samples have no label, so dataset.yaml gives images alone",
    )
    assert "__class__: ImageSample" in (folder / ".nv-meta" / "dataset.yaml").read_text()
    assert "cls" not in (folder / ".nv-meta" / "dataset.yaml").read_text()
    for reader in ("wids", "dali"):
        assert _taken(folder, reader).notices == ()


def test_write__hostile_sources_make_shards_that_readers_take(hostile_folder: Path) -> None:
    _refused(hostile_folder, "hf", r"found jpg \(3\), \w+ \(3\), \w+ \(3\); convert")
    _refused(hostile_folder, "timm", "it wants a label in every sample")
    assert _taken(hostile_folder, "energon").notices == ()
    assert "image: jpg,png,tif,webp\n" in (hostile_folder / ".nv-meta" / "dataset.yaml").read_text()
    _taken(hostile_folder, "dali")
    tool = pytest.importorskip("wds2idx")
    for tar in (hostile_folder / "shards").glob("*.tar"):
        with tool.IndexCreator(str(tar), str(hostile_folder / "idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == (hostile_folder / "idx").read_bytes()


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A dataset of four formats without labels."""
    from PIL import Image

    source = tmp_path / "source"
    source.mkdir()
    for number, kind in enumerate(("JPEG", "PNG", "TIFF", "WEBP") * 3):
        Image.new("RGB", (8, 8), (20 * number, 9, 7)).save(source / f"a b.{number}.ä.{kind.lower()}", kind)
    build_dataset([source], tmp_path / "patches", ShardOptions(max_count=5))
    return tmp_path / "patches"


def test_write__timm_is_told_the_formats(folder: Path) -> None:
    def as_tif(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "ext": "tif"} for row in rows]

    for tar in (folder / "shards").glob("*.tar"):
        files = [(name.replace(".jpg", ".tif"), payload) for name, payload in _files(tar)]
        write_tar(tar, files)
    _change_index(folder, as_tif)
    assert _taken(folder, "timm").notices == (
        "timm: open it with input_key='tif', since not all images are jpg, png or webp",
    )


def _files(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as opened:
        return [(member.name, (opened.extractfile(member) or io.BytesIO()).read()) for member in opened]


def test_write__other_members_are_listed_too(folder: Path) -> None:
    """A JSON behind each label: the index of dinowds knows nothing of it."""
    places: dict[str, int] = {}
    for tar in sorted((folder / "shards").glob("*.tar")):
        files = []
        for name, payload in _files(tar):
            files.append((name, payload))
            if name.endswith(".cls"):
                files.append((name.replace(".cls", ".json"), json.dumps({"of": name}).encode()))
        places.update({sample.key: sample.members[0].offset for sample in write_tar(tar, files)})
    shards = [replace(s, num_bytes=(folder / s.url).stat().st_size) for s in read_manifest(folder).shards]
    _change_index(folder, lambda rows: [{**row, "offset": places[row["key"]]} for row in rows], shards=tuple(shards))
    write_indexes(str(folder), READERS)
    assert stale_indexes(str(folder), read_manifest(folder)) == []
    entry = re.compile(r"jpg \d+ \d+ (\S+)\.jpg cls \d+ \d+ \1\.cls json \d+ \d+ \1\.json")
    with closing(sqlite3.connect(folder / ".nv-meta" / "index.sqlite")) as connection:
        parts = connection.execute(
            "SELECT tar_file_id, sample_key, content_byte_offset, content_byte_size FROM sample_parts "
            "JOIN samples USING (tar_file_id, sample_index) WHERE part_name = 'json'"
        ).fetchall()
    assert len(parts) == 40
    for position, shard in enumerate(shards):
        lines = (folder / shard.url).with_suffix(".idx").read_text().splitlines()[1:]
        assert all(entry.fullmatch(line) for line in lines)
        content = (folder / shard.url).read_bytes()
        for key, offset, size in (part[1:] for part in parts if part[0] == position):
            assert json.loads(content[offset : offset + size]) == {"of": f"{key}.cls"}


def test_write__withdrawn_samples_are_refused_for_all(folder: Path) -> None:
    shards = [replace(s, num_samples=s.num_samples - 1) for s in read_manifest(folder).shards]
    _change_index(folder, lambda rows: rows[1:], shards=tuple(shards))
    for reader in READERS:
        _refused(folder, reader, "holds 11 samples, of which samples.parquet lists 10; .* 'dinowds withdraw --rewrite'")


def test_write__shards_of_which_all_is_withdrawn_are_refused(folder: Path) -> None:
    first, *others = read_manifest(folder).shards
    shards = (replace(first, num_samples=0), *others)
    _change_index(folder, lambda rows: [row for row in rows if row["shard"]], shards=shards)
    for reader in READERS:
        _refused(folder, reader, r"patches-000000\.tar: no sample of it is left")


def test_write__shards_elsewhere_are_for_wids_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "shards").rename(tmp_path / "elsewhere")
    for url in (f"{tmp_path}/elsewhere/", "../elsewhere/"):
        shards = [replace(s, url=f"{url}{Path(s.url).name}") for s in read_manifest(folder).shards]
        write_manifest(folder, replace(read_manifest(folder), shards=tuple(shards)))
        for reader in ("dali", "energon", "timm", "hf"):
            _refused(folder, reader, rf"by {reader}: the shard {re.escape(url)}patches-000000\.tar is not in shards/")
        assert _taken(folder, "wids").written[0].files == []
    shards = [replace(s, url=f"s3://user:SECRET@bucket/{s.url}") for s in shards]
    write_manifest(folder, replace(read_manifest(folder), shards=tuple(shards)))
    with pytest.raises(DinowdsError) as error:
        _taken(folder, "wids")
    assert "SECRET" not in str(error.value)
    assert "lies remote, expected a shard on this host" in str(error.value)


def test_write__urls_and_subsets_are_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="s3://bucket/patches: lies at a URL, expected a folder"):
        write_indexes("s3://bucket/patches", READERS)
    with pytest.raises(ConfigError, match="is a subset, and other readers take whole datasets; give "):
        write_indexes(f"{folder}:fold_0", READERS)


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        ("hf", "README.md"),
        ("timm", "_info.json"),
        ("energon", ".nv-meta/dataset.yaml"),
        ("energon", ".nv-meta/split.yaml"),
    ],
)
def test_write__files_of_others_stay(folder: Path, reader: str, name: str) -> None:
    (folder / ".nv-meta").mkdir()
    (folder / name).write_text("mine\n")
    _refused(folder, reader, f"{re.escape(name)}: was not written by 'dinowds index'; move it, or give", OutputError)
    write_indexes(str(folder), [reader], overwrite=True)
    assert name in list_interop_files(folder)


def test_write__what_cannot_be_written_is_one_line(folder: Path) -> None:
    (folder / ".nv-meta").write_text("a file")
    _refused(folder, "energon", r"its indexes cannot be written \(File exists\)", OutputError)


def test_stale__nothing_is_after_a_run(labelled: Labelled) -> None:
    manifest = read_manifest(labelled.folder)
    assert stale_indexes(str(labelled.folder), manifest) == []
    assert stale_indexes("s3://bucket/patches", manifest) == []


def test_stale__all_are_of_a_dataset_that_was_made_again(labelled: Labelled, tmp_path: Path) -> None:
    source = labelled.folder.parent / "source"
    build_dataset([source], tmp_path / "patches", ShardOptions(max_count=9, seed=5))
    for name in list_interop_files(labelled.folder):
        (tmp_path / "patches" / name).parent.mkdir(exist_ok=True)
        shutil.copy(labelled.folder / name, tmp_path / "patches" / name)
    stale = stale_indexes(str(tmp_path / "patches"), read_manifest(tmp_path / "patches"))
    same = {".nv-meta/dataset.yaml", ".nv-meta/index.sqlite", "README.md"}
    assert {*list_interop_files(labelled.folder)} - {*stale} == same


def test_stale__same_counts_in_another_order_are_found(labelled: Labelled, tmp_path: Path) -> None:
    source = labelled.folder.parent / "source"
    build_dataset([source], tmp_path / "patches", ShardOptions(max_count=11, seed=5))
    for name in list_interop_files(labelled.folder):
        (tmp_path / "patches" / name).parent.mkdir(exist_ok=True)
        shutil.copy(labelled.folder / name, tmp_path / "patches" / name)
    stale = stale_indexes(str(tmp_path / "patches"), read_manifest(tmp_path / "patches"))
    assert {f"shards/patches-00000{shard}.idx" for shard in range(4)} <= {*stale}
    assert ".nv-meta/index.uuid" in stale


def test_stale__shards_that_are_gone_and_leftovers_of_a_kill(folder: Path) -> None:
    write_indexes(str(folder), READERS)
    manifest = read_manifest(folder)
    fewer = replace(manifest, shards=manifest.shards[:3])
    (folder / "shards" / ".patches-000000.idx.0123456789abcdef.tmp").write_bytes(b"")
    (folder / "shards" / "patches-000001.idx").write_text("v1.2 11\n")
    (folder / "shards" / "patches-000002.tar.idx").write_bytes(b"short")
    (folder / ".nv-meta" / "index.sqlite").write_bytes(b"no database")
    assert stale_indexes(str(folder), fewer) == [
        *(".nv-meta/.info.json", ".nv-meta/index.sqlite", ".nv-meta/index.uuid", ".nv-meta/split.yaml", "_info.json"),
        *(f"shards/{name}" for name in (".patches-000000.idx.0123456789abcdef.tmp", "patches-000001.idx")),
        *(f"shards/patches-00000{name}" for name in ("2.tar.idx", "3.idx", "3.tar.idx")),
    ]
