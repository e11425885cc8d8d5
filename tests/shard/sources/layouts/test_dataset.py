"""Datasets of dinowds as sources: every sample with all that is known of it, and no other."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_NAME
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.errors import DatasetError, SourceError
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.sources.layouts import dataset
from dinowds.shard.sources.layouts.dataset import NOT_IN_INDEX, NOT_IN_SUBSET
from dinowds.shard.sources.source import Items
from tests.index_only import write_rows
from tests.shard.sources.layouts import list_all, open_one, payloads

FACTS = ["key", "slide", "x", "y", "source", "source_name", "cohort"]


@pytest.fixture
def made(tmp_path: Path, make_tar: Callable[..., Path], make_image: Callable[..., bytes]) -> Path:
    """33 samples of two cohorts in shards of 9, some of them labelled."""
    tars = [make_tar(tmp_path / "a.tar", 23), tmp_path / "b.tar"]
    with tarfile.open(tars[1], "w") as tar:
        for index in range(10):
            for name, payload in ((f"ö {index}.jpg", make_image(100 + index)), (f"ö {index}.cls", b"%d" % (5 * index))):
                member = tarfile.TarInfo(name)
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
    build_dataset(tars, tmp_path / "made", ShardOptions(max_count=9))
    return tmp_path / "made"


def _expected(root: Path) -> list[dict[str, Any]]:
    names = json.loads((root / MANIFEST_NAME).read_text())["dinowds"]["label_names"]
    rows = pq.read_table(root / SAMPLES_NAME).to_pylist()
    return [{**row, "label": None if row["label"] is None else names[row["label"]]} for row in rows]


def _found(items: Items) -> list[dict[str, Any]]:
    rows = items.facts.to_pylist()
    names, places, sizes = items.names.to_pylist(), items.places.tolist(), items.sizes.tolist()
    return [
        {"label": None, **row, "name": name.decode(), "offset": place, "size": size}
        for row, name, place, size in zip(rows, names, places, sizes, strict=True)
    ]


def test_dataset__gives_every_sample_with_all_that_is_known(made: Path) -> None:
    source = open_one(dataset, made)
    assert source.cohort == "made"
    assert [file.path for file in source.sidecars] == [str(made / MANIFEST_NAME), str(made / SAMPLES_NAME)]
    expected = _expected(made)
    for shard, (items, content) in enumerate(list_all(dataset, source)):
        rows = [row for row in expected if row["shard"] == shard]
        columns = [*FACTS, "label", "offset", "size"]
        assert [{c: row[c] for c in columns} for row in _found(items)] == [{c: row[c] for c in columns} for row in rows]
        assert items.names.to_pylist() == [f"{row['key']}.jpg".encode() for row in rows]
        assert all(payload.startswith(b"\xff\xd8") for payload in payloads(items, content))
        assert not items.quarantine
        assert not items.skipped
    assert {row["cohort"] for row in expected} == {"a", "b"}
    assert {row["label"] for row in expected} >= {None, "45"}


def test_manifest__names_the_dataset_too(made: Path) -> None:
    source = open_one(dataset, made / MANIFEST_NAME)
    assert source.cohort == "made"
    assert len(source.files) == 4


def test_cohort__of_the_request_takes_the_place_of_the_samples_own(made: Path) -> None:
    source = open_one(dataset, made, cohort="one")
    assert source.cohort == "one"
    for items, _ in list_all(dataset, source):
        assert "cohort" not in items.facts.column_names


def test_subset__takes_its_samples_alone(made: Path) -> None:
    opened = Dataset.open(made)
    subset, mask, _ = choose_subset(opened, "half", SubsetOptions(where="cohort == 'b'"))
    write_subset(str(made), subset, mask, opened.files)
    rows = [row for row in _expected(made) if row["cohort"] == "b"]
    listed = list_all(dataset, open_one(dataset, f"{made}:half"))
    assert [row["key"] for items, _ in listed if items.facts for row in _found(items)] == [row["key"] for row in rows]
    assert sum(items.skipped.get(NOT_IN_SUBSET, 0) for items, _ in listed) == 23
    assert not any(NOT_IN_INDEX in items.skipped for items, _ in listed)


@pytest.mark.parametrize("seed", range(5))
def test_subset__of_any_mask(made: Path, seed: int) -> None:
    """Shards begin within a byte of the mask."""
    opened = Dataset.open(made)
    subset, mask, _ = choose_subset(opened, "some", SubsetOptions(fraction=0.4, seed=seed))
    write_subset(str(made), subset, mask, opened.files)
    selected = [opened[int(sample)].key for sample in Dataset.open(f"{made}:some").selection.all_ids()]
    listed = list_all(dataset, open_one(dataset, f"{made}:some"))
    assert [key for items, _ in listed if items.facts for key in items.facts["key"].to_pylist()] == selected


def _with_members(folder: Path, members: list[tuple[str, bytes]], indexed: list[str]) -> Path:
    """A dataset of one shard, of whose members some are in the index."""
    path = folder / "shards" / "s-000000.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    about = {
        "digest": bytes(16),
        "cohort": "c",
        "slide": None,
        "x": None,
        "y": 7,
        "label": None,
        "width": 1,
        "height": 1,
    }
    rows = [
        {"key": name.partition(".")[0], "offset": places[name][0], "size": places[name][1], "ext": "jpg", **about}
        | {"source": "old.tar", "source_name": f"old/{name}"}
        for name in indexed
    ]
    write_rows(folder, [rows])
    _point_at(folder, [{"url": "shards/s-000000.tar", "nsamples": len(rows), "filesize": path.stat().st_size}])
    return folder


def _point_at(folder: Path, shards: list[dict[str, Any]]) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "shardlist": shards}))


def test_members__beside_the_image_are_kept_and_withdrawn_samples_are_not(tmp_path: Path) -> None:
    members = [
        ("a/1.jpg", b"image 1"),
        ("a/1.cls", b"0"),
        ("a/1.json", b"{}"),
        ("a/1.feature.npy", b"array"),
        ("a/2.jpg", b"withdrawn"),
        ("a/2.json", b"withdrawn too"),
        ("a/3.json", b"first"),
        ("a/3.jpg", b"image 3"),
        ("a/1.json", b"of no sample"),
    ]
    root = _with_members(tmp_path / "made", members, ["a/1.jpg", "a/3.jpg"])
    [(items, content)] = list_all(dataset, open_one(dataset, root))
    assert payloads(items, content) == [b"image 1", b"image 3"]
    extras = [
        {extra["ext"]: content[extra["place"] :][: extra["size"]] for extra in extras}
        for extras in items.facts["extras"].to_pylist()
    ]
    assert extras == [{"json": b"{}", "feature.npy": b"array"}, {"json": b"first"}]
    assert items.facts["source_name"].to_pylist() == ["old/a/1.jpg", "old/a/3.jpg"]
    assert items.skipped == {NOT_IN_INDEX: 2}


def test_members__of_names_with_dots_are_no_extras(tmp_path: Path) -> None:
    """Images of an index over tars of others may share WebDataset's key."""
    root = _with_members(
        tmp_path / "made", [("s.1.jpg", b"1"), ("s.2.jpg", b"withdrawn"), ("s.3.jpg", b"3")], ["s.1.jpg"]
    )
    rows = [row | {"key": "s_1-0123456789", "shard": 0} for row in pq.read_table(root / SAMPLES_NAME).to_pylist()]
    shards = json.loads((root / MANIFEST_NAME).read_text())["shardlist"]
    write_rows(root, [rows])
    _point_at(root, shards)
    [(items, content)] = list_all(dataset, open_one(dataset, root))
    assert payloads(items, content) == [b"1"]
    assert "extras" not in items.facts.column_names


@pytest.mark.parametrize(("column", "change"), [("offset", 512), ("size", -1), ("size", 1)])
def test_tar__that_does_not_fit_its_index(tmp_path: Path, column: str, change: int) -> None:
    root = _with_members(tmp_path / "made", [("1.jpg", b"image"), ("2.jpg", b"image")], ["1.jpg", "2.jpg"])
    shards = json.loads((root / MANIFEST_NAME).read_text())["shardlist"]
    rows = pq.read_table(root / SAMPLES_NAME).to_pylist()
    rows[1][column] += change
    write_rows(root, [rows])
    _point_at(root, shards)
    size = 5 + (change if column == "size" else 0)
    with pytest.raises(SourceError, match=rf"s-000000\.tar: has no member of {size} bytes at byte \d+, .*--verify"):
        list_all(dataset, open_one(dataset, root))


def test_shard__that_is_not_the_manifests(made: Path) -> None:
    path = open_one(dataset, made).files[1].file
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(
        SourceError, match=rf"made-000001\.tar: has {len(content) - 512} bytes, but manifest\.json says"
    ):
        open_one(dataset, made)
    path.unlink()
    with pytest.raises(SourceError, match=r"made-000001\.tar: no such file"):
        open_one(dataset, made)


def test_recognises__only_datasets(tmp_path: Path, made: Path) -> None:
    (tmp_path / "wids").mkdir()
    (tmp_path / "wids" / MANIFEST_NAME).write_text('{"wids_version": 1, "shardlist": []}')
    for path in (
        tmp_path,
        tmp_path / "a.tar",
        tmp_path / "wids",
        made / "shards",
        tmp_path / "none",
        Path("KNN:root=/x"),
    ):
        assert not dataset.recognises(path)


def test_unfinished__is_said(tmp_path: Path) -> None:
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(DatasetError, match="unfinished dataset"):
        open_one(dataset, tmp_path)


def test_options__of_other_layouts_are_refused(made: Path) -> None:
    for option in ("split", "fold"):
        with pytest.raises(SourceError, match=f"has no --{option}; choose a subset by DATASET:SUBSET"):
            open_one(dataset, made, **{option: "a"})
    with pytest.raises(DatasetError, match="none"):
        open_one(dataset, f"{made}:none")


def test_labels__without_names(made: Path) -> None:
    manifest = json.loads((made / MANIFEST_NAME).read_text())
    manifest["dinowds"]["label_names"] = manifest["dinowds"]["label_names"][:3]
    (made / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match=r"has labels that manifest\.json has no names for"):
        list_all(dataset, open_one(dataset, made))


def test_items__agree_with_the_order_of_the_index(made: Path) -> None:
    """The items of all shards, one after another, are the samples by id."""
    source, opened = open_one(dataset, made), Dataset.open(made)
    places = np.concatenate([items.places for items, _ in list_all(dataset, source)])
    assert places.tolist() == [sample.offset for sample in opened]
