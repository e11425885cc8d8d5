"""Every kind of source that users bring, from its files to a dataset: slide, x, y, label and bytes are kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from dinowds.data.verify import verify_dataset
from dinowds.errors import ConfigError, DatasetError, SourceError
from dinowds.shard.build import ShardOptions, build_dataset, plan_dataset
from dinowds.shard.choice import Choice

MakeImage = Callable[..., bytes]
OPTIONS = ShardOptions(name="all", max_count=4)


class Known(NamedTuple):
    """What a sample is to be in the index."""

    cohort: str
    slide: str | None
    x: int | None
    y: int | None
    label: str | None


Expected = dict[bytes, Known]
"""Payload → what is known of it."""


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> list[tuple[int, int]]:
    """(start, stop) of each payload."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    with tarfile.open(path) as tar:
        return [(member.offset_data, member.offset_data + member.size) for member in tar.getmembers()]


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, payload in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(payload)


def cohort_tar(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    payloads = [image(seed) for seed in range(6)]
    write_tar(root / "tcga.tar", [(f"slide_{i // 3}/{i}_{10 * i}.jpg", payload) for i, payload in enumerate(payloads)])
    expected = {payload: Known("tcga", f"slide_{i // 3}", i, 10 * i, None) for i, payload in enumerate(payloads)}
    return root / "tcga.tar", expected


def hs2p(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    for number in range(3):
        slide = f"TCGA-{number}.A"
        payloads = [image(10 * number + index) for index in range(4)]
        write_tar(root / f"cohort/tiles/{slide}.tiles.tar", [(f"{i:06d}.jpg", p) for i, p in enumerate(payloads)])
        with open(root / f"cohort/tiles/{slide}.tiles.manifest.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("tile_index", "x", "y"))
            lines.writerows([(i, 256 * i, 512 * number) for i in reversed(range(4))])
        meta = {"requested_spacing_um": 0.5, "requested_tile_size_px": 256}
        (root / f"cohort/tiles/{slide}.coordinates.meta.json").write_text(json.dumps(meta))
        expected |= {p: Known("cohort", slide, 256 * i, 512 * number, None) for i, p in enumerate(payloads)}
    return root / "cohort", expected


def trident(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    for number, slide in enumerate(("s-1", "s-2")):
        for index in range(3):
            payload = image(10 * number + index, kind="PNG")
            write_files(root, {f"patch_images/{slide}/{index:06d}_x{512 * index}_y{1024 + number}.png": payload})
            expected[payload] = Known("patch_images", slide, 512 * index, 1024 + number, None)
    return root / "patch_images", expected


def gigapath(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    for index in range(4):
        payload = image(index, kind="PNG")
        write_files(root, {f"output/slide.svs/{256 * index:05d}x_{7:05d}y.png": payload})
        expected[payload] = Known("output", "slide.svs", 256 * index, 7, None)
    return root / "output", expected


def stamp(root: Path, image: MakeImage, packing: int = zipfile.ZIP_STORED) -> tuple[Path, Expected]:
    expected: Expected = {}
    (root / "cache").mkdir()
    for number in range(2):
        with zipfile.ZipFile(root / f"cache/slide{number}.{'0' * 64}.zip", "w", packing) as archive:
            archive.writestr("tiler_params.json", json.dumps({"tile_size_um": 256.0, "tile_size_px": 224}))
            for index in range(3):
                payload = image(10 * number + index)
                archive.writestr(f"tile_({256.0 * index}, {number * 512.0}).jpg", payload)
                expected[payload] = Known("cache", f"slide{number}", 256 * index, 512 * number, None)
    return root / "cache", expected


def deflated_stamp(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    return stamp(root, image, zipfile.ZIP_DEFLATED)


def class_folders(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    for number, name in enumerate(("ADI", "BACK", "TUM")):
        for index in range(2):
            payload = image(10 * number + index, kind="TIFF")
            write_files(root, {f"CRC/{name}/{name}-{'AQWERTZ'[index:]}.tif": payload})
            expected[payload] = Known("CRC", None, None, None, name)
    return root / "CRC", expected


def path_list(root: Path, image: MakeImage, kind: str = "csv") -> tuple[Path, Expected]:
    expected: Expected = {}
    rows = []
    for index in range(4):
        payload = image(index)
        write_files(root, {f"images/deep{index % 2}/{index}.jpg": payload})
        expected[payload] = Known("listed", f"s{index % 2}", index, 9, "tumor" if index else "normal")
        row = {"image_path": f"images/deep{index % 2}/{index}.jpg", "slide_id": f"s{index % 2}", "x": index, "y": 9}
        rows.append(row | {"label": "tumor" if index else "normal"})
    if kind == "csv":
        with open(root / "listed.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), root / "listed.parquet")
    return root / f"listed.{kind}", expected


def parquet_list(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    return path_list(root, image, "parquet")


def web_dataset(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    (root / "wds").mkdir()
    with webdataset.ShardWriter(str(root / "wds" / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
        for index in range(7):
            payload = image(index)
            writer.write({"__key__": f"s/{index}_5", "jpg": payload, "cls": index % 2, "json": {"n": index}})
            expected[payload] = Known("wds", "s", index, 5, str(index % 2))
    return root / "wds", expected


def dinowds_dataset(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    first, expected = class_folders(root, image)
    second, more = hs2p(root, image_from(image, 100))
    build_dataset([first, second], root / "old", OPTIONS)
    return root / "old", expected | more


def reference_root(root: Path, image: MakeImage) -> tuple[Path, Expected]:
    expected: Expected = {}
    joined = []
    for cohort, name in enumerate(("tcga", "gtex")):
        payloads = [image(10 * cohort + index) for index in range(4)]
        files = [(f"slide_{cohort}/{index}_{cohort}.jpg", payload) for index, payload in enumerate(payloads)]
        places = write_tar(root / f"data/{name}.tar", files)
        entries = np.array([[0, index, *places[index]] for index in range(4)], np.uint64)
        names = {index: Path(file).name for index, (file, _) in enumerate(files)}
        np.save(root / f"data/{name}_entries.npy", entries)
        np.save(root / f"data/{name}_file_indices.npy", np.array(names, dtype=object), allow_pickle=True)
        chosen = entries[[3, 0, 2]]
        joined.append(np.concatenate([chosen, np.full((3, 1), cohort, np.uint64)], axis=1))
        expected |= {payloads[index]: Known(name, f"slide_{cohort}", index, cohort, None) for index in (3, 0, 2)}
    np.save(root / "data/pretrain_entries_fold_1.npy", np.concatenate(joined))
    cohorts: Any = np.array({0: "tcga", 1: "gtex"}, dtype=object)
    np.save(root / "data/cohort_indices.npy", cohorts, allow_pickle=True)
    return Path(f"PathologyFoundation:root={root}/data:subset=fold_1"), expected


def image_from(image: MakeImage, first: int) -> MakeImage:
    return lambda seed, *args, **kwargs: image(first + seed, *args, **kwargs)


SOURCES = (
    cohort_tar,
    hs2p,
    trident,
    gigapath,
    stamp,
    deflated_stamp,
    class_folders,
    path_list,
    parquet_list,
    web_dataset,
    dinowds_dataset,
    reference_root,
)


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    """The rows of the index, and `payload`, and `label` as a name."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows: list[dict[str, Any]] = pq.read_table(dataset / "samples.parquet").to_pylist()
    for row in rows:
        with open(dataset / manifest["shardlist"][row["shard"]]["url"], "rb") as file:
            file.seek(row["offset"])
            row["payload"] = file.read(row["size"])
        if row["label"] is not None:
            row["label"] = manifest["dinowds"]["label_names"][row["label"]]
    return rows


def found_in(dataset: Path) -> Expected:
    return {row["payload"]: Known(*(row[name] for name in Known._fields)) for row in rows_of(dataset)}


@pytest.mark.parametrize("make", SOURCES)
def test_shard__keeps_what_every_source_knows(
    tmp_path: Path, make_image: MakeImage, make: Callable[[Path, MakeImage], tuple[Path, Expected]]
) -> None:
    source, expected = make(tmp_path, make_image)
    manifest = build_dataset([source], tmp_path / "out", OPTIONS)
    assert found_in(tmp_path / "out") == expected
    assert manifest.num_samples == len(expected)
    assert verify_dataset(tmp_path / "out") == []


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("way", ["memory", "workers"])
def test_shard__gives_the_same_bytes_by_any_way(
    tmp_path: Path, make_image: MakeImage, make: Callable[[Path, MakeImage], tuple[Path, Expected]], way: str
) -> None:
    source, _ = make(tmp_path, make_image)
    build_dataset([source], tmp_path / "one", OPTIONS)
    options = replace(OPTIONS, workers=3) if way == "workers" else replace(OPTIONS, memory=1 << 24)
    if way == "memory":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dinowds.shard.write.writing.is_larger_than", lambda _images, memory: memory is not None)
            build_dataset([source], tmp_path / "two", options)
    else:
        build_dataset([source], tmp_path / "two", options)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("make", [cohort_tar, hs2p, web_dataset, reference_root])
def test_in_place__indexes_the_tars_as_they_are(
    tmp_path: Path, make_image: MakeImage, make: Callable[[Path, MakeImage], tuple[Path, Expected]]
) -> None:
    source, expected = make(tmp_path, make_image)
    manifest = build_dataset([source], tmp_path / "out", replace(OPTIONS, in_place=True))
    assert found_in(tmp_path / "out") == expected
    assert all(Path(shard.url).is_absolute() for shard in manifest.shards)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "quarantine.jsonl",
        "samples.parquet",
    ]
    assert verify_dataset(tmp_path / "out") == []
    first = Path(manifest.shards[0].url)
    content = bytearray(first.read_bytes())
    content[rows_of(tmp_path / "out")[0]["offset"] + 20] ^= 1
    first.write_bytes(content)
    assert verify_dataset(tmp_path / "out")


def test_shard__reference_root_keeps_the_order_of_its_entries(tmp_path: Path, make_image: MakeImage) -> None:
    source, expected = reference_root(tmp_path, make_image)
    build_dataset([source], tmp_path / "out", replace(OPTIONS, shuffle=False))
    assert list(found_in(tmp_path / "out").items()) == list(expected.items())


def test_shard__regions_become_a_region_dataset(tmp_path: Path) -> None:
    tensors = {
        f"slide_{i}_{i}_{2 * i}": torch.randn(9, 5, generator=torch.Generator().manual_seed(i)) for i in range(5)
    }
    (tmp_path / "regions").mkdir()
    for name, tensor in tensors.items():
        torch.save(tensor, tmp_path / "regions" / f"{name}.pt")
    manifest = build_dataset([tmp_path / "regions"], tmp_path / "out", OPTIONS)
    assert manifest.kind == "region"
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 5
    for row in rows:
        name = Path(row["source_name"]).stem
        region = np.load(io.BytesIO(row["payload"]), allow_pickle=False)
        assert np.array_equal(region, tensors[name].half().numpy().reshape(3, 3, 5))
        assert (row["ext"], row["width"], row["height"]) == ("npy", 3, 3)
        assert [row["slide"], row["x"], row["y"]] == [name.rsplit("_", 2)[0], row["x"], 2 * row["x"]]
    assert verify_dataset(tmp_path / "out") == []
    build_dataset([tmp_path / "out"], tmp_path / "again", replace(OPTIONS, seed=3))
    assert {row["key"]: row["payload"] for row in rows_of(tmp_path / "again")} == {
        row["key"]: row["payload"] for row in rows
    }


def test_shard__further_members_of_samples_stay_with_them(tmp_path: Path, make_image: MakeImage) -> None:
    source, expected = web_dataset(tmp_path, make_image)
    build_dataset([source], tmp_path / "out", OPTIONS)
    found = {}
    for path in (tmp_path / "out" / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for members in zip(*[iter(tar.getmembers())] * 3, strict=True):
                image, label, more = ((member.name, tar.extractfile(member)) for member in members)
                payload, text, content = (file.read() for _, file in (image, label, more) if file is not None)
                found[payload] = (image[0], label[0], more[0], text, json.loads(content))
    assert found.keys() == expected.keys()
    for payload, known in expected.items():
        key = f"s/{known.x}_5"
        number = str(int(known.x or 0) % 2).encode()
        assert found[payload] == (f"{key}.jpg", f"{key}.cls", f"{key}.json", number, {"n": known.x})


def test_shard__metadata_of_tilers_is_kept(tmp_path: Path, make_image: MakeImage) -> None:
    source, _ = hs2p(tmp_path, make_image)
    manifest = build_dataset([source], tmp_path / "out", OPTIONS)
    assert manifest.metadata["cohorts"]["cohort"]["mpp"] == 0.5


def test_shard__lists_and_labels_choose(tmp_path: Path, make_image: MakeImage) -> None:
    source, expected = hs2p(tmp_path, make_image)
    (tmp_path / "labels.csv").write_text("slide_id,label\nTCGA-0.A,tumor\nTCGA-1.A,normal\nTCGA-9.A,tumor\n")
    (tmp_path / "remove.txt").write_text("TCGA-0.A/000001.jpg\nTCGA-2.A\n")
    notices: list[str] = []
    choice = Choice(labels=tmp_path / "labels.csv", remove=tmp_path / "remove.txt", max_per_slide=3)
    manifest = build_dataset([source], tmp_path / "out", replace(OPTIONS, choice=choice), notice=notices.append)
    found = found_in(tmp_path / "out")
    assert manifest.label_names == ("normal", "tumor")
    assert sorted((known.slide, known.label) for known in found.values()) == [
        *[("TCGA-0.A", "tumor")] * 3,
        *[("TCGA-1.A", "normal")] * 3,
    ]
    assert not any(known.slide == "TCGA-0.A" and known.x == 256 for known in found.values())
    assert all(found[payload][:4] == expected[payload][:4] for payload in found)
    assert any("TCGA-9.A" in notice for notice in notices)
    assert manifest.metadata["dropped"] == {"in the --remove list": 5, "over --max-per-slide": 1}


def test_shard__quality_columns_and_duplicates(tmp_path: Path, make_image: MakeImage) -> None:
    from PIL import Image

    white = io.BytesIO()
    Image.new("RGB", (32, 32), (250, 250, 250)).save(white, "PNG")
    payloads = [make_image(0), make_image(1), make_image(0), white.getvalue()]
    write_tar(tmp_path / "a.tar", [(f"s/{index}_0.jpg", payload) for index, payload in enumerate(payloads)])
    manifest = build_dataset([tmp_path / "a.tar"], tmp_path / "kept", replace(OPTIONS, verify="decode"))
    assert manifest.metadata["duplicates"] == 1
    assert manifest.metadata["quality"]["white"] == 1
    rows = {row["source_name"]: row for row in rows_of(tmp_path / "kept")}
    assert rows["s/3_0.jpg"]["white"] == 1
    assert rows["s/0_0.jpg"]["sharpness"] > 100
    choice = Choice(drop_duplicates=True, drop_blank=True)
    manifest = build_dataset([tmp_path / "a.tar"], tmp_path / "out", replace(OPTIONS, choice=choice))
    assert {row["source_name"] for row in rows_of(tmp_path / "out")} == {"s/0_0.jpg", "s/1_0.jpg"}
    assert manifest.metadata["dropped"] == {"blank": 1, "exact duplicate": 1}


def test_append__adds_a_cohort_and_keeps_what_was_there(tmp_path: Path, make_image: MakeImage) -> None:
    first, expected = class_folders(tmp_path, make_image)
    second, more = web_dataset(tmp_path, image_from(make_image, 100))
    build_dataset([first], tmp_path / "out", OPTIONS)
    before = tree(tmp_path / "out")
    more = {payload: known._replace(label={"0": "0", "1": "1"}[str(known.label)]) for payload, known in more.items()}
    add = ShardOptions(max_count=4, append=True)
    manifest = build_dataset([second], tmp_path / "out", add)
    assert found_in(tmp_path / "out") == expected | more
    assert manifest.cohorts == {"CRC": 6, "wds": 7}
    assert manifest.label_names == ("ADI", "BACK", "TUM", "0", "1")
    after = tree(tmp_path / "out")
    shards = [name for name in before if name.startswith("shards/")]
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    assert [shard.url for shard in manifest.shards] == [f"shards/all-{number:06d}.tar" for number in range(4)]
    assert verify_dataset(tmp_path / "out") == []
    with pytest.raises(SourceError, match="has the cohort 'wds' already; nothing was added"):
        build_dataset([second], tmp_path / "out", add)
    assert tree(tmp_path / "out") == after


def test_append__of_a_packed_source_again_leaves_nothing(tmp_path: Path, make_image: MakeImage) -> None:
    first, _ = cohort_tar(tmp_path, make_image)
    build_dataset([first], tmp_path / "out", OPTIONS)
    packed = tmp_path / "new.tar.gz"
    packed.write_bytes(gzip.compress(first.read_bytes()))
    build_dataset([packed], tmp_path / "out", ShardOptions(append=True))
    after = tree(tmp_path / "out")
    with pytest.raises(SourceError, match="has the cohort 'new' already"):
        build_dataset([packed], tmp_path / "out", ShardOptions(append=True))
    assert tree(tmp_path / "out") == after


def test_append__gives_equal_names_other_keys(tmp_path: Path, make_image: MakeImage) -> None:
    first, expected = cohort_tar(tmp_path, make_image)
    (tmp_path / "other").mkdir()
    second, more = cohort_tar(tmp_path / "other", image_from(make_image, 50))
    build_dataset([first], tmp_path / "out", OPTIONS)
    build_dataset([second], tmp_path / "out", ShardOptions(append=True, cohort="more", in_place=True))
    rows = rows_of(tmp_path / "out")
    assert len({row["key"] for row in rows}) == len(rows) == 12
    assert {row["payload"] for row in rows} == expected.keys() | more.keys()
    assert verify_dataset(tmp_path / "out") == []


def test_append__goes_nowhere_else(tmp_path: Path, make_image: MakeImage) -> None:
    source, _ = cohort_tar(tmp_path, make_image)
    with pytest.raises(DatasetError, match="no such dataset"):
        build_dataset([source], tmp_path / "out", ShardOptions(append=True))
    assert not (tmp_path / "out").exists()
    for options in (ShardOptions(append=True, overwrite=True), ShardOptions(append=True, name="x")):
        with pytest.raises(ConfigError):
            build_dataset([source], tmp_path / "out", options)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_append__dry_run_says_what_would_be_added(tmp_path: Path, make_image: MakeImage) -> None:
    first, second = hs2p(tmp_path, make_image)[0], cohort_tar(tmp_path, image_from(make_image, 500))[0]
    out = tmp_path / "out"
    build_dataset([first], out, ShardOptions())
    before = tree(out)
    append = ShardOptions(append=True)
    plan = plan_dataset([second], out, append)
    with pytest.raises(SourceError, match="already; nothing was added"):
        plan_dataset([first], out, append)
    assert tree(out) == before
    manifest = build_dataset([second], out, append)
    assert plan.cohorts == {name: count for name, count in manifest.cohorts.items() if name in plan.cohorts} != {}


def test_in_place__dry_run_counts_the_tars(tmp_path: Path, make_image: MakeImage) -> None:
    source = hs2p(tmp_path, make_image)[0]
    options = ShardOptions(in_place=True)
    plan = plan_dataset([source], tmp_path / "out", options)
    manifest = build_dataset([source], tmp_path / "out", options)
    assert (plan.shards, plan.num_bytes) == (len(manifest.shards), sum(shard.num_bytes for shard in manifest.shards))
    assert plan.shards > 1


@pytest.mark.parametrize("choice", [Choice(drop_blank=True), Choice(min_sharpness=3), Choice(drop_duplicates=True)])
def test_dry_run__leaves_nothing_out_that_it_cannot_see(tmp_path: Path, make_image: MakeImage, choice: Choice) -> None:
    plain = cohort_tar(tmp_path, make_image)[0]
    packed = plain.with_name("packed.tar.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plan = plan_dataset([packed], tmp_path / "out", ShardOptions(choice=choice))
    assert plan.samples == plan_dataset([plain], tmp_path / "out", ShardOptions()).samples
    assert plan.dropped == {}


def test_shard__regions_have_no_pixels_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    torch.save(torch.zeros(4, 2), tmp_path / "regions" / "s_0_0.pt")
    for choice, option in ((Choice(drop_blank=True), "--drop-blank"), (Choice(min_sharpness=0), "--min-sharpness")):
        with pytest.raises(ConfigError, match=f"{option}: looks at pixels"):
            build_dataset([tmp_path / "regions"], tmp_path / "out", ShardOptions(choice=choice))


@pytest.mark.parametrize("packing", ["", "gz"])
def test_shard__says_of_a_tar_that_was_cut_that_it_is(tmp_path: Path, make_image: MakeImage, packing: str) -> None:
    """An ordinary member that goes on past the end: no one writes to the tar."""
    cut = tmp_path / "cut.tar"
    places = write_tar(cut, [("s/0_0.jpg", make_image(1)), ("s/1_1.jpg", make_image(2))])
    content = cut.read_bytes()[: places[1][0] + 100]
    source = tmp_path / ("given.tar" + f".{packing}" * bool(packing))
    source.write_bytes(gzip.compress(content) if packing else content)
    with pytest.raises(SourceError, match=f"given.*is cut short: it ends at byte {len(content)} inside a member"):
        build_dataset([source], tmp_path / "out", ShardOptions())
    assert not (tmp_path / "out").exists()


def test_shard__list_may_lie_around_the_output(tmp_path: Path, make_image: MakeImage) -> None:
    """Its files' common folder is no source: only what is listed is read."""
    write_files(tmp_path, {"a/0.jpg": make_image(1), "b/1.jpg": make_image(2)})
    (tmp_path / "list.csv").write_text("path\na/0.jpg\nb/1.jpg\n")
    manifest = build_dataset([tmp_path / "list.csv"], tmp_path / "out", ShardOptions())
    assert manifest.cohorts == {"list": 2}
    with pytest.raises(ConfigError, match="lies in the source"):
        build_dataset([tmp_path / "a"], tmp_path / "a" / "out", ShardOptions())


@pytest.mark.parametrize("option", ["split", "fold"])
def test_shard__split_or_fold_that_no_source_has_is_an_error(
    tmp_path: Path, make_image: MakeImage, option: str
) -> None:
    source = cohort_tar(tmp_path, make_image)[0]
    options = ShardOptions(split="train") if option == "split" else ShardOptions(fold="fold_0")
    with pytest.raises(ConfigError, match=f"--{option}: .*has no such parts"):
        build_dataset([source], tmp_path / "out", options)


def test_in_place__ends_the_reading_of_other_tars(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    has_begun = threading.Event()

    def hash_for_long(path: Path, between: Callable[[], None]) -> str:
        if path.name == "a.tar":
            assert has_begun.wait(10)
            raise KeyboardInterrupt
        has_begun.set()
        try:
            for _ in range(1000):
                time.sleep(0.01)
                between()
        except Exception:
            ended.append(path.name)
            raise
        return "0" * 64

    monkeypatch.setattr("dinowds.shard.write.in_place.sha256_of", hash_for_long)
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [("s/0_0.jpg", make_image(1))])
    with pytest.raises(KeyboardInterrupt):
        build_dataset(
            [tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "out", ShardOptions(in_place=True, workers=2)
        )
    assert ended == ["b.tar"]
    assert not (tmp_path / "out").exists()
