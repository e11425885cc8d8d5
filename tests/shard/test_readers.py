"""Other readers of WebDataset give back what the sources held."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinowds.shard.build import ShardOptions, build_dataset


@pytest.fixture
def dataset_folder(hostile_tars: list[Path], tmp_path: Path) -> Path:
    build_dataset(hostile_tars, tmp_path / "dataset", ShardOptions(seed=3, max_count=10))
    return tmp_path / "dataset"


def _source_payloads(tars: list[Path]) -> dict[tuple[str, str], Counter[bytes]]:
    """(tar, member name) → all payloads under that name, read by tarfile."""
    payloads: dict[tuple[str, str], Counter[bytes]] = defaultdict(Counter)
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    payloads[str(path), member.name][file.read()] += 1
    return payloads


def _compare(folder: Path, tars: list[Path], found: dict[str, bytes]) -> None:
    """Keys are those of the index, and every payload is one that its source has under its source name."""
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert set(found) == {row["key"] for row in rows}
    sources = _source_payloads(tars)
    by_name: dict[tuple[str, str], Counter[bytes]] = defaultdict(Counter)
    for row in rows:
        by_name[row["source"], row["source_name"]][found[row["key"]]] += 1
    for name, payloads in by_name.items():
        assert payloads == sources[name]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset__gives_back_keys_and_bytes_of_hostile_tars(dataset_folder: Path, hostile_tars: list[Path]) -> None:
    import webdataset

    urls = [str(path) for path in sorted((dataset_folder / "shards").iterdir())]
    found: dict[str, bytes] = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        (extension,) = (name for name in sample if not name.startswith("__"))
        assert sample["__key__"] not in found
        found[sample["__key__"]] = sample[extension]
    assert len(found) == 26
    _compare(dataset_folder, hostile_tars, found)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset__reads_unshuffled_shards_in_the_order_of_the_source(
    tmp_path: Path, make_tar: Callable[..., Path]
) -> None:
    import webdataset

    source = make_tar(tmp_path / "a.tar", 23)
    build_dataset([source], tmp_path / "out", ShardOptions(max_count=4, shuffle=False))
    urls = [str(path) for path in sorted((tmp_path / "out" / "shards").iterdir())]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    with tarfile.open(source) as tar:
        assert keys == [name.removesuffix(".jpg") for name in tar.getnames()]


def test_wids__gives_back_keys_and_bytes_of_hostile_tars(
    dataset_folder: Path, hostile_tars: list[Path], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wids
    manifest = str(dataset_folder / "manifest.json")
    dataset = wids.ShardListDataset(manifest, cache_dir=str(tmp_path / "cache"), transformations=[])
    found: dict[str, bytes] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        (extension,) = (name for name in sample if not name.startswith("__"))
        assert extension.startswith(".")
        assert isinstance(sample[extension], io.BytesIO)
        found[sample["__key__"]] = sample[extension].read()
    dataset.close()
    assert len(found) == 26
    _compare(dataset_folder, hostile_tars, found)


@pytest.fixture
def labelled(tmp_path: Path, make_image: Callable[..., bytes]) -> tuple[Path, dict[str, tuple[bytes, int | None]]]:
    """A dataset of 20 images, most of them with a label, and what each key must give."""
    expected: dict[str, tuple[bytes, int | None]] = {}
    for index in range(20):
        folder = tmp_path / "source" / f"slide{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(make_image(index))
        label = None if index % 5 == 0 else index % 4
        if label is not None:
            (folder / f"{index}.cls").write_text(f"{label * 10}\n")
        expected[f"{folder.name}/{index}"] = make_image(index), label
    build_dataset([tmp_path / "source"], tmp_path / "labelled", ShardOptions(max_count=7))
    return tmp_path / "labelled", expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_labels__are_what_webdataset_and_wids_give_beside_the_image(
    labelled: tuple[Path, dict[str, tuple[bytes, int | None]]], tmp_path: Path
) -> None:
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wids
    folder, expected = labelled
    urls = [str(path) for path in sorted((folder / "shards").iterdir())]
    decoded = webdataset.WebDataset(urls, shardshuffle=False).decode()
    assert {s["__key__"]: (s["jpg"], s.get("cls")) for s in decoded} == expected
    manifest = str(folder / "manifest.json")
    dataset = wids.ShardListDataset(manifest, cache_dir=str(tmp_path / "labels"), transformations=[])
    found = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        label = int(sample[".cls"].read()) if ".cls" in sample else None
        found[sample["__key__"]] = sample[".jpg"].read(), label
    dataset.close()
    assert found == expected


def test_quarantine__lists_what_a_user_would_wonder_about(dataset_folder: Path, hostile_tars: list[Path]) -> None:
    lines = [json.loads(line) for line in (dataset_folder / "quarantine.jsonl").read_text().splitlines()]
    expected = {
        "link.jpg": "symbolic link",
        "hard.jpg": "hard link",
        "pipe.jpg": "device or pipe",
        "plain/cut.jpg": "image is cut short",
        "plain/cut.png": "image is cut short",
        "plain/no_image.jpg": "not an image of a supported format",
        "notes.txt": "not an image file",
        "plain/empty.jpg": "empty file",
    }
    for path in hostile_tars:
        assert {line["member"]: line["reason"] for line in lines if line["source"] == str(path)} == expected
    assert [line["source"] for line in lines] == [str(path) for path in hostile_tars for _ in expected]
    metadata = json.loads((dataset_folder / "manifest.json").read_text())["dinowds"]["metadata"]
    assert metadata["skipped"] == {"directories": 2, "macOS files": 6}


def test_places__are_read_from_hostile_names(dataset_folder: Path) -> None:
    rows = {r["source_name"]: r for r in pq.read_table(dataset_folder / "samples.parquet").to_pylist()}
    places = {name: (row["slide"], row["x"], row["y"]) for name, row in rows.items()}
    assert places["plain/1_2.jpg"] == ("plain", 1, 2)
    assert places["plain/with space (3, 4).JPEG"] == ("plain", 3, 4)
    assert places["./__hidden__/x7_y8.tif"] == ("__hidden__", 7, 8)
    assert places["__meta__.jpg"] == (None, None, None)
    assert rows["plain/really_a_png.jpg"]["ext"] == "png"


def test_shards__are_plain_ustar_with_safe_names(dataset_folder: Path) -> None:
    for path in (dataset_folder / "shards").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                header = path.read_bytes()[member.offset : member.offset + 512]
                assert header[156:157] == b"0"
                assert header[257:265] == b"ustar\00000"
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert len(member.name) <= 100
                assert member.name.isascii()
                assert member.name.count(".") == 1
                assert " " not in member.name
                assert not member.name.startswith("__")
