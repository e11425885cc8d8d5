"""Six readers open one and the same folder unchanged, and give the same keys and the same bytes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.interop.conftest import Labelled, pixels


def _import(name: str) -> Any:
    """Warnings of other people's modules while they are imported are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def test_index__is_of_the_same_samples(labelled: Labelled) -> None:
    rows = pq.read_table(labelled.folder / "samples.parquet").to_pylist()
    assert {row["key"]: row["label"] for row in rows} == {key: label for key, (_, label) in labelled.expected.items()}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset__gives_all_keys_and_bytes(labelled: Labelled) -> None:
    webdataset = _import("webdataset")
    samples = list(webdataset.WebDataset([str(tar) for tar in labelled.tars], shardshuffle=False))
    assert len(samples) == 40
    assert {s["__key__"]: (s["jpg"], int(s["cls"])) for s in samples} == labelled.expected


def test_wids__gives_all_keys_and_bytes(labelled: Labelled, tmp_path: Path) -> None:
    wids = _import("wids")
    manifest = str(labelled.folder / "manifest.json")
    dataset = wids.ShardListDataset(manifest, cache_dir=str(tmp_path), transformations=[])
    samples = [dataset[index] for index in range(len(dataset))]
    found = {s["__key__"]: (s[".jpg"].read(), int(s[".cls"].read())) for s in samples}
    dataset.close()
    assert len(samples) == 40
    assert found == labelled.expected


@pytest.mark.parametrize("streaming", [False, True])
def test_hf__gives_all_keys_and_bytes(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = _import("datasets")
    datasets.disable_progress_bars()
    splits = datasets.load_dataset(str(labelled.folder), cache_dir=str(tmp_path / "cache"), streaming=streaming)
    assert list(splits) == ["train"]
    assert set(splits["train"].features or ()) == {"__key__", "__url__", "jpg", "cls"}
    samples = list(splits["train"].cast_column("jpg", datasets.Image(decode=False)))
    assert len(samples) == 40
    assert {s["__key__"]: (s["jpg"]["bytes"], s["cls"]) for s in samples} == labelled.expected


def test_timm__gives_all_images_in_order(labelled: Labelled) -> None:
    data = _import("timm.data")
    dataset = data.create_dataset("wds/patches", root=str(labelled.folder), split="train", is_training=False)
    assert len(dataset) == 40
    rows = pq.read_table(labelled.folder / "samples.parquet").to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(dataset)
    for (image, label), row in zip(samples, rows, strict=True):  # timm gives no keys
        payload, expected = labelled.expected[row["key"]]
        assert label == expected
        np.testing.assert_array_equal(np.asarray(image), pixels(payload))


def test_dali__gives_all_keys_and_bytes(labelled: Labelled) -> None:
    pytest.importorskip("nvidia.dali")
    dali, fn = _import("nvidia.dali"), _import("nvidia.dali.fn")

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator, unused-ignore]
    def pipeline() -> Any:
        tars = [str(tar) for tar in labelled.tars]
        indexes = [tar.removesuffix(".tar") + ".idx" for tar in tars]
        image, label = fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=["jpg", "cls"], missing_component_behavior="error", name="reader"
        )
        return image, label, fn.get_property(image, key="source_info")

    built = pipeline()
    built.build()
    assert built.epoch_size("reader") == 40
    found = {}
    for _ in range(40):
        image, label, source = (bytes(output.at(0)) for output in built.run())
        found[source.decode().rpartition(":")[2].removesuffix(".jpg")] = image, int(label)
    assert found == labelled.expected


def test_dali__index_is_the_one_of_its_own_tool(labelled: Labelled, tmp_path: Path) -> None:
    tool = pytest.importorskip("wds2idx")
    for tar in labelled.tars:
        creator = tool.IndexCreator(str(tar), str(tmp_path / "idx"), verbose=False)
        creator.create_index()
        creator.close()
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()


def _energon(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from megatron.energon.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def test_energon__lint_finds_nothing(labelled: Labelled) -> None:
    done = _energon("lint", labelled.folder)
    assert done.returncode == 0, done.stderr
    assert "40/40" in done.stderr
    assert "Error" not in done.stdout + done.stderr


def test_energon__gives_all_keys_and_images(labelled: Labelled) -> None:
    energon = _import("megatron.energon")
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = energon.get_val_dataset(labelled.folder, split_part="train", worker_config=worker, batch_size=1)
        samples = list(energon.get_loader(dataset))
    assert len(samples) == 40
    assert {key for sample in samples for key in sample.__key__} == labelled.expected.keys()
    for sample in samples:
        payload, label = labelled.expected[sample.__key__[0]]
        assert int(sample.label[0]) == label
        image = np.round(sample.image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        np.testing.assert_array_equal(image, pixels(payload))


def test_energon__gives_all_bytes_by_number_and_by_key(labelled: Labelled) -> None:
    """By its own readers of .tar.idx and of index.sqlite."""
    path = _import("megatron.energon.epathlib").EPath(labelled.folder)
    meta = _import("megatron.energon.flavors.webdataset.metadata").WebdatasetMeta.from_config(path, split_part="train")
    readers = _import("megatron.energon.flavors.webdataset.itar_reader")
    by_number = readers.ShardInfosITarReader(path, meta.shards)
    by_key = readers.SqliteITarEntryReader(path)
    assert (len(by_number), len(by_key)) == (40, 40)
    numbered = [by_number[number] for number in range(40)]
    assert {s["__key__"]: (s["jpg"], int(s["cls"])) for s in numbered} == labelled.expected
    assert {key: (by_key[key]["jpg"], int(by_key[key]["cls"])) for key in labelled.expected} == labelled.expected
    by_number.close()
    by_key.close()
    store = _import("megatron.energon.cache.file_store").WebdatasetFileStore(path)
    assert {key: store[f"{key}.jpg"][0] for key in labelled.expected} == {
        key: payload for key, (payload, _) in labelled.expected.items()
    }
    store.close()


def test_energon__index_is_the_one_of_its_own_tool(labelled: Labelled, tmp_path: Path) -> None:
    shutil.copytree(labelled.folder / "shards", tmp_path / "shards", ignore=shutil.ignore_patterns("*.idx"))
    options = ("--non-interactive", "--num-workers", 1, "--split-ratio", "1,0,0", "--sample-type")
    fields = json.dumps({"image": "jpg", "label": "cls"})
    done = _energon("prepare", tmp_path, *options, "ImageClassificationSample", "--field-map", fields)
    assert done.returncode == 0, done.stderr
    for tar in labelled.tars:
        theirs = tmp_path / "shards" / f"{tar.name}.idx"
        assert tar.with_suffix(".tar.idx").read_bytes() == theirs.read_bytes()
    ours, theirs = labelled.folder / ".nv-meta", tmp_path / ".nv-meta"
    assert yaml.safe_load((ours / "dataset.yaml").read_text()) == yaml.safe_load((theirs / "dataset.yaml").read_text())
    counts = [json.loads((folder / ".info.json").read_text())["shard_counts"] for folder in (ours, theirs)]
    assert list(counts[0].items()) == list(counts[1].items())
    assert _dump(ours / "index.sqlite") == _dump(theirs / "index.sqlite")


def _dump(path: Path) -> list[str]:
    """All rows, columns and indexes, sorted, without white space."""
    with closing(sqlite3.connect(path)) as connection:
        lines = sorted("".join(line.replace("IF NOT EXISTS", "").split()) for line in connection.iterdump())
        kinds = connection.execute("SELECT name, type, [notnull] FROM pragma_table_info('samples')").fetchall()
    return [*(line for line in lines if not line.startswith("CREATETABLE")), str(kinds)]
