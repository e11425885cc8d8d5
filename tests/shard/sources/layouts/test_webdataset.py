"""Existing WebDatasets: samples are those that webdataset itself reads, and all their members are kept."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import webdataset
from dinowds.shard.sources.layouts.webdataset import (
    IMAGES_KEPT,
    MAC_FILES,
    NO_FIELD,
    NO_IMAGE,
    NOT_TEXT,
    RESERVED,
    TWICE,
    UNSAFE,
)
from dinowds.shard.sources.source import Items
from tests.shard.sources.layouts import list_all, open_one, payloads

MakeImage = Callable[..., bytes]


def _tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return path


def _write_shards(folder: Path, make_image: MakeImage, pattern: str = "%06d.tar", count: int = 7) -> None:
    folder.mkdir(exist_ok=True)
    with wds.ShardWriter(f"{folder}/{pattern}", maxcount=3, verbose=0) as writer:
        for index in range(count):
            sample = {"__key__": f"a/{index:05d}", "jpg": make_image(index), "cls": index % 2}
            writer.write({**sample, "json": {"x": index, "label": 9}, "feature.npy": np.arange(index)})


def _read_with_webdataset(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as stream:
        return list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))


def _extras(items: Items, content: bytes) -> list[dict[str, bytes]]:
    """Of each sample its further members' bytes by extension."""
    if "extras" not in items.facts.column_names:
        return [{}] * len(items.names)
    rows = items.facts["extras"].to_pylist()
    return [{row["ext"]: content[row["place"] : row["place"] + row["size"]] for row in extras} for extras in rows]


def _reasons(items: Items) -> dict[bytes, str]:
    return {name: reason for _, name, reason in items.quarantine}


def test_folder__gives_the_samples_that_webdataset_reads(tmp_path: Path, make_image: MakeImage) -> None:
    _write_shards(tmp_path / "shards", make_image)
    source = open_one(webdataset, tmp_path / "shards")
    assert source.cohort == "shards"
    assert [file.file.name for file in source.files] == ["000000.tar", "000001.tar", "000002.tar"]
    assert all(file.num_bytes and file.mtime_ns for file in source.files)
    seen = 0
    for (items, content), file in zip(list_all(webdataset, source), source.files, strict=True):
        expected = _read_with_webdataset(file.file)
        seen += len(expected)
        assert items.facts["key"].to_pylist() == [sample["__key__"] for sample in expected]
        assert payloads(items, content) == [sample["jpg"] for sample in expected]
        assert items.facts["label"].to_pylist() == [sample["cls"].decode() for sample in expected]
        assert _extras(items, content) == [{name: s[name] for name in ("json", "feature.npy")} for s in expected]
        assert not items.quarantine
        assert not items.skipped
    assert seen == 7


def _hostile(image: MakeImage) -> list[tuple[str, bytes]]:
    return [
        ("__meta__", b"x"),
        ("__index__/a.jpg", image(0)),
        ("__a.jpg", image(1)),
        ("s/1.2.jpg", image(2)),
        ("s/1.3.jpg", image(3)),
        ("s/._5.jpg", b"resource fork"),
        ("s/5.seg.png", image(4, kind="PNG")),
        ("s/5.JPG", image(5)),
        ("s/5.CLS", " tumour ö\n".encode()),
        ("s/6.jpg", image(6)),
        ("t.d/6.jpg", image(7)),
        ("README", b"text"),
        ("t.d/6.cls", b"007"),
        ("s/6.json", b"{}"),
        ("t.d/7.cls", b"\xff\xfe"),
        ("t.d/7.a b", b"unsafe"),
        ("t.d/7.", b"no extension"),
        ("t.d/7.tiff", image(8, kind="TIFF")),
        ("t.d/8.cls", b"x" * 1000),
        ("t.d/8.jpg", image(9)),
        ("t.d/9.jpg", image(10)),
        ("t.d/9.cls", b"two\nlines"),
        ("long/" * 40 + "10.jpg", image(11)),
        ("long/" * 40 + "10.txt", b"caption"),
        ("組/ö.webp", image(12, kind="WEBP")),
        ("t.d/6.jpg", image(13)),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_grouping__is_that_of_webdataset(tmp_path: Path, make_image: MakeImage, form: int) -> None:
    members = _hostile(make_image)
    tar = _tar(tmp_path / "x-000000.tar", members, form)
    [(items, content)] = list_all(webdataset, open_one(webdataset, tmp_path))
    # webdataset takes the resource fork for a sample of its own, between s/1 and s/5.
    expected = [
        sample
        for sample in _read_with_webdataset(tar)
        if not sample["__key__"].endswith("s/") and any(key.rpartition(".")[2] in _IMAGES for key in sample)
    ]
    assert items.facts["key"].to_pylist() == [sample["__key__"] for sample in expected]
    for sample, payload, extras in zip(expected, payloads(items, content), _extras(items, content), strict=True):
        fields = {
            key: value for key, value in sample.items() if not key.startswith("__") and key not in ("cls", "", "a b")
        }
        assert sorted([*extras.values(), payload]) == sorted(fields.values())
    assert items.facts["label"].to_pylist() == [None, None, "tumour ö", None, "7", *[None] * 6][: len(items.names)]
    assert _reasons(items) == {
        b"README": NO_FIELD,
        b"s/6.json": NO_IMAGE,
        b"t.d/7.cls": NOT_TEXT,
        b"t.d/7.a b": UNSAFE,
        b"t.d/7.": UNSAFE,
        b"t.d/8.cls": NOT_TEXT,
        b"t.d/9.cls": NOT_TEXT,
    }
    assert items.skipped == {RESERVED: 2, MAC_FILES: 1, IMAGES_KEPT: 2}


_IMAGES = {"jpg", "png", "tiff", "webp"}


def test_image__is_the_one_that_is_nothing_else(tmp_path: Path) -> None:
    """A mask that comes first is not the image."""
    members = [("1.mask.png", b"m"), ("1.jpg", b"i"), ("2.image.png", b"i"), ("2.mask.png", b"m")]
    _tar(tmp_path / "x-000000.tar", members)
    [(items, content)] = list_all(webdataset, open_one(webdataset, tmp_path))
    assert payloads(items, content) == [b"i", b"i"]
    assert _extras(items, content) == [{"mask.png": b"m"}] * 2


def test_repeats__within_a_sample_are_left_out(tmp_path: Path) -> None:
    """webdataset ends with an error there."""
    _tar(
        tmp_path / "x-000000.tar", [("1.jpg", b"a"), ("1.txt", b"b"), ("1.jpg", b"c"), ("1.TXT", b"d"), ("2.jpg", b"e")]
    )
    [(items, content)] = list_all(webdataset, open_one(webdataset, tmp_path))
    assert payloads(items, content) == [b"a", b"e"]
    assert _extras(items, content) == [{"txt": b"b"}, {}]
    assert [(name, reason) for _, name, reason in items.quarantine] == [(b"1.jpg", TWICE), (b"1.TXT", TWICE)]


def test_braces__name_shards_in_order(tmp_path: Path, make_image: MakeImage) -> None:
    _write_shards(tmp_path, make_image, "train-%04d.tar", 9)
    source = open_one(webdataset, f"{tmp_path}/train-{{0001..0002}}.tar")
    assert [file.file.name for file in source.files] == ["train-0001.tar", "train-0002.tar"]
    assert source.cohort == "train"
    with pytest.raises(SourceError, match=r"train-0003\.tar: no such file"):
        open_one(webdataset, f"{tmp_path}/train-{{0001..0003}}.tar")
    with pytest.raises(SourceError, match="stands for more than 1000000 shards"):
        open_one(webdataset, f"{tmp_path}/train-{{0..3000000}}.tar")


def _write_index(folder: Path, kind: str) -> Path:
    """An index of shards 1 and 0, in this order."""
    names = ["000001.tar", "000000.tar"]
    path, content = {
        "wids": ("index.json", {"wids_version": 1, "shardlist": [{"url": name, "nsamples": 3} for name in names]}),
        "timm": ("_info.json", {"splits": {"train": {"name": "train", "filenames": names}}}),
        "energon": (".nv-meta/.info.json", {"energon_version": "7.1.0", "shard_counts": dict.fromkeys(names, 3)}),
    }[kind]
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(json.dumps(content))
    return folder / path


@pytest.mark.parametrize("kind", ["wids", "timm", "energon"])
def test_index__tells_the_shards(tmp_path: Path, make_image: MakeImage, kind: str) -> None:
    _write_shards(tmp_path, make_image)
    path = _write_index(tmp_path, kind)
    for given in [tmp_path, path] if kind == "wids" else [tmp_path]:
        source = open_one(webdataset, given)
        assert [file.file.name for file in source.files] == ["000001.tar", "000000.tar"]
        assert source.cohort == tmp_path.name
        assert [Path(file.path) for file in source.sidecars] == [path]
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(SourceError, match=r"000001\.tar: no such file"):
        open_one(webdataset, tmp_path)


def test_splits__of_an_index_or_of_names(tmp_path: Path, make_image: MakeImage) -> None:
    _write_shards(tmp_path, make_image, "train-%04d.tar", 6)
    _write_shards(tmp_path, make_image, "validation-%04d.tar", 3)
    for _ in range(2):
        with pytest.raises(SourceError, match="has several splits; choose one with --split: train, validation"):
            open_one(webdataset, tmp_path)
        with pytest.raises(SourceError, match="has no split 'test'; it has: train, validation"):
            open_one(webdataset, tmp_path, split="test")
        source = open_one(webdataset, tmp_path, split="train")
        assert [file.file.name for file in source.files] == ["train-0000.tar", "train-0001.tar"]
        splits = {
            "train": {"filenames": ["train-0000.tar", "train-0001.tar"]},
            "validation": {"filenames": ["validation-0000.tar"]},
        }
        (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(SourceError, match="leave --fold out"):
        open_one(webdataset, tmp_path, split="train", fold="a")


def test_single_tar__only_where_it_holds_more_than_images(tmp_path: Path, make_image: MakeImage, make_tar: Any) -> None:
    image = make_image(0)
    more = _tar(tmp_path / "a.tar", [("1.jpg", image), ("2.jpg", image), ("2.json", b"{}")])
    assert open_one(webdataset, more).cohort == "a"
    for name, members in {
        "labels.tar": [("1.jpg", image), ("1.cls", b"0"), ("2.jpg", image), ("2.cls", b"1")],
        "others.tar": [("1.jpg", image), ("1/a.json", b"{}"), ("notes.txt", b"")],
        "dots.tar": [("s.1.2.jpg", image), ("s.1.3.jpg", image)],
        "late.tar": [*((f"{index}.jpg", b"a") for index in range(200)), ("199.json", b"{}")],
    }.items():
        assert not webdataset.recognises(_tar(tmp_path / name, members))
    assert not webdataset.recognises(make_tar(tmp_path / "cohort.tar", 6))
    (tmp_path / "text.tar").write_bytes(b"text" * 1000)
    assert not webdataset.recognises(tmp_path / "text.tar")
    slide = _tar(tmp_path / "s.tiles.tar", [("1.jpg", image), ("1.json", b"{}")])
    (tmp_path / "s.tiles.manifest.csv").write_text("tile_index,x,y\n")
    assert not webdataset.recognises(slide)


def test_recognises__no_other_folders(tmp_path: Path, make_tar: Any) -> None:
    assert not webdataset.recognises(tmp_path)
    for names in (
        ["a.tar", "b.tar"],
        ["a-0000.tar", "b.tar"],
        ["0001.tar", "0002.tar"],
        ["0000.tar", "x.jpg"],
        ["000.tar"],
    ):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            make_tar(folder / name, 1)
        assert not webdataset.recognises(folder), names
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "manifest.json").write_text(json.dumps({"wids_version": 1, "shardlist": [{"url": "a"}], "dinowds": {}}))
    assert not webdataset.recognises(ours)
    assert not webdataset.recognises(ours / "manifest.json")
    for content in ("[" * 100_000, "[]", '{"wids_version": 1}', '{"splits": 1}', "\0"):
        for name in ("manifest.json", "_info.json", "sizes.json"):
            (ours / name).write_text(content)
        assert not webdataset.recognises(ours), content[:20]


def test_shard__without_an_image_or_an_end(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "x-000000.tar", [("1.json", b"{}")])
    [(items, _)] = list_all(webdataset, open_one(webdataset, tmp_path))
    assert len(items.names) == 0
    assert _reasons(items) == {b"1.json": NO_IMAGE}
    tar.write_bytes(tar.read_bytes()[:515])
    with pytest.raises(SourceError, match="is cut short"):
        list_all(webdataset, open_one(webdataset, tmp_path))
