"""Each command that writes, killed at any moment and given again: in the end all is as if nobody had disturbed it.

Files are compared byte by byte; checkpoints value by value, for a pickle tells by its references which objects a
process shares. What holds times by design is left out: of `metrics.jsonl` the throughput figures, of `train.log` the
content (its lines tell of each start, with the time), of a run's page its date, and TensorBoard's files, whose names
are those of moments and processes. Names are compared in all that a command may write to: its output, the folder that
this lies in, the cache and the folder for temporary files.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from dinowds.data.dataset import Dataset
from dinowds.data.verify import verify_dataset
from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import make_coded_dataset, write_weights
from tests.faults.form import IS_FULL, amount
from tests.faults.kills.killing import LEAVE_OUT, Command, Nursery, Tree, below, dataset, prepare, survive
from tests.servers import http_server
from tests.support import TINY_RUN, make_dataset, write_cohort
from tests.train.regions import TINY_REGION_RUN, make_region, make_regions

TIMES = ("images_per_second", "waiting_share")
SHORT_RUN = (*TINY_RUN, "student.depth=1", "train.save_every_steps=2", "train.keep_checkpoints=2", "optim.max_steps=9")
WORK = "{home}/work"
WITHDRAWN = "no entry is a slide of the dataset"


def of_run(name: str, content: bytes) -> Any:
    """What is compared of a file of a run folder."""
    if "events.out.tfevents" in name:
        return LEAVE_OUT
    if name.endswith("train.log"):
        return "told"
    if name.endswith("metrics.jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    if name.endswith(".pt"):
        return values(torch.load(io.BytesIO(content), weights_only=True))
    return content


def undated(_name: str, content: bytes) -> Any:
    """The page of a run says when it was made."""
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"DATE", content)


def values(state: Any) -> Any:
    """The same, with hashes of tensors."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), xxhash.xxh3_128_hexdigest(state.contiguous().numpy().tobytes())
    if isinstance(state, dict):
        return {key: values(value) for key, value in state.items()}
    return list(map(values, state)) if isinstance(state, list | tuple) else state


def damage(path: Path, samples: tuple[int, ...]) -> None:
    """Change a byte of these samples in the shards, whose digests are then wrong."""
    opened = Dataset.open(path)
    table = opened.columns(["shard", "offset"]).to_pylist()
    for sample in samples:
        row = table[sample]
        shard = path / opened.manifest.shards[row["shard"]].url
        content = bytearray(shard.read_bytes())
        content[row["offset"] + 100] ^= 1
        shard.write_bytes(content)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands read: patches (two of them damaged), coded, regions, weights.pt, others.pt, a cohort."""
    folder = tmp_path_factory.mktemp("inputs")
    make_dataset(folder / "patches", 60, 15)
    damage(folder / "patches" / "dataset", (7, 33))
    make_coded_dataset(folder / "coded")
    make_regions(folder / "regions", [make_region(seed) for seed in range(48)])
    write_weights(folder / "weights.pt")
    write_weights(folder / "others.pt", seed=1)
    write_cohort(folder / "cohort.tar", 80)
    return folder


class Versions:
    """What may be seen of an output that is replaced: as it was before, and as it will be."""

    def __init__(self, *places: Path) -> None:
        self._known = [contents(place) for place in places]

    def check(self, places: list[Path]) -> None:
        for place in places:
            found = contents(place)
            assert found in self._known, sorted(found)


def contents(path: Path) -> dict[str, bytes]:
    """Of a file, or of all in a folder that are not hidden."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name[0] != "."}


def survives(nurse: Nursery, command: Command, folder: Path, short: int, full: int, seed: int = 0) -> None:
    survive(nurse, command, folder / "home", amount(short, full), seed)


@pytest.mark.parametrize("workers", [1, 2])
def test_shard__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path, workers: int) -> None:
    sources = (str(inputs / "cohort.tar"), str(inputs / "patches" / "beta.tar"))
    options = ("--max-count", "9", "--workers", str(workers), "--name", "same")
    command = Command("shard", ("shard", *sources, *options, "--out", f"{WORK}/out"), dataset("work/out"))
    survives(nurse, command, tmp_path, 2, 50, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_train_patch__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path, workers: int) -> None:
    """Of its 60 samples two cannot be read: they are counted through all kills. Loader processes end by themselves."""
    if not IS_FULL:
        pytest.skip("in short: killed while it writes a checkpoint, and test_resume's kill at step 11")
    overrides = (*SHORT_RUN, f"speed.num_workers={workers}")
    arguments = ("train", "patch", "--data", str(inputs / "patches" / "dataset"), "--out", f"{WORK}/run", *overrides)
    command = Command("train patch", arguments, below("work/run/checkpoints/"), normal=of_run)
    survives(nurse, command, tmp_path, 0, 15 if workers else 45, workers)


def test_train_patch__killed_while_it_writes_a_checkpoint(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    arguments = ("train", "patch", "--data", str(inputs / "patches" / "dataset"), "--out", f"{WORK}/run", *SHORT_RUN)
    command = Command("train patch", arguments, below("work/run/checkpoints/"), normal=of_run, at="run/checkpoints/")
    survives(nurse, command, tmp_path, 1, 40)


@pytest.mark.skipif(not IS_FULL, reason="in short: train patch, whose loop is the same")
def test_train_region__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    overrides = (*TINY_REGION_RUN, "train.save_every_steps=2", "optim.max_steps=7")
    data = inputs / "regions" / "dataset"
    arguments = ("train", "region", "--data", str(data), "--out", f"{WORK}/run", *overrides)
    command = Command("train region", arguments, below("work/run/checkpoints/"), normal=of_run)
    survives(nurse, command, tmp_path, 0, 25)


def embedding(inputs: Path, *options: str) -> Command:
    data, weights = str(inputs / "coded" / "dataset"), str(inputs / "weights.pt")
    fixed = ("--out", f"{WORK}/features", "--batch-size", "8", "--workers", "0")
    return Command("embed patch", ("embed", "patch", data, "-c", weights, *fixed, *options), below("work/features/"))


def test_embed_patch__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    survives(nurse, embedding(inputs), tmp_path, 2, 13)


def test_embed_patch__killed_while_it_replaces_others(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    """Before it, the folder has features of a dataset with more shards: they are whole, or no features at all."""
    data, weights = inputs / "patches" / "dataset", inputs / "weights.pt"
    options = ("--out", "{home}/features", "--workers", "0", "--image-size", "24", "--max-bad", "9")
    prepare(nurse, tmp_path / "before", "embed", "patch", data, "-c", weights, *options)
    plain = embedding(inputs, "--overwrite")
    prepare(nurse, tmp_path / "after", *(part.replace(WORK, "{home}") for part in plain.arguments))
    versions = Versions(tmp_path / "before" / "features", tmp_path / "after" / "features")

    def check(work: Path) -> None:
        if (work / "features" / "features.json").exists():
            versions.check([work / "features"])

    command = replace(plain, before=tmp_path / "before", at="features", finished=lambda _now: set(), check=check)
    survives(nurse, command, tmp_path, 2, 12)


def test_embed_region__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    source = ("embed", "region", str(inputs / "coded" / "dataset"), "-c", str(inputs / "weights.pt"))
    arguments = (*source, "--region-size", "96", "--workers", "0", "--out", f"{WORK}/regions")
    survives(nurse, Command("embed region", arguments, dataset("work/regions")), tmp_path, 2, 13)


def test_embed_region__killed_as_it_begins_and_while_it_replaces(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    """It finds a dataset, and the unfinished work of another question."""
    source = ("embed", "region", str(inputs / "coded" / "dataset"), "-c", str(inputs / "weights.pt"))
    arguments = (*source, "--region-size", "96", "--workers", "0", "--out", f"{WORK}/regions", "--overwrite")
    before = tmp_path / "before"
    shutil.copytree(inputs / "regions" / "dataset", before / "regions")
    work = before / "regions.unfinished"
    (work / "features").mkdir(parents=True)
    (work / "features" / "features-000000.parquet").write_bytes(b"others")
    (work / "bucket-000003.f16").write_bytes(b"others")
    (work / "question.json").write_text('{"made from": "others"}')
    whole_or_old = Command("embed region", arguments, lambda _now: set(), before, at=".unfinished")
    checked = replace(whole_or_old, check=lambda work: check_dataset(work / "regions"))
    survives(nurse, checked, tmp_path, 2, 12)


def check_dataset(path: Path) -> None:
    """Where there is a manifest, the dataset is whole: all digests are right."""
    if (path / "manifest.json").exists():
        assert verify_dataset(path) == []


def test_report__of_a_dataset_killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    arguments = ("report", str(inputs / "coded" / "dataset"), "--out", f"{WORK}/page.html", "--overwrite")
    survives(nurse, Command("report", arguments, below("work/page.html")), tmp_path, 2, 13)


@pytest.mark.skipif(not IS_FULL, reason="in short: the report of a dataset")
def test_report__of_a_run_killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    data = inputs / "coded" / "dataset"
    prepare(nurse, tmp_path / "before", "train", "patch", "--data", data, "--out", "{home}/run", *SHORT_RUN)
    arguments = ("report", f"{WORK}/run", "--overwrite")
    report = below("work/run/report.html")
    command = Command("report", arguments, report, tmp_path / "before", normal=undated, at="report.html")
    survives(nurse, command, tmp_path, 0, 12)


def test_merge__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    build_dataset([inputs / "cohort.tar"], tmp_path / "before" / "a", ShardOptions(max_count=20))
    shutil.copytree(inputs / "coded" / "dataset", tmp_path / "before" / "b")
    arguments = ("merge", f"{WORK}/a", f"{WORK}/b", "--out", f"{WORK}/all")
    survives(nurse, Command("merge", arguments, dataset("work/all"), tmp_path / "before"), tmp_path, 2, 25)


def test_withdraw__with_rewrite_killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    """Meanwhile the dataset is whole whenever it has a manifest: as before, or without the slides."""
    before = tmp_path / "before"
    build_dataset([inputs / "cohort.tar"], before / "data", ShardOptions(max_count=12))
    prepare(nurse, before, "subset", "{home}/data", "--name", "half", "--fraction", "0.5")
    (before / "slides.txt").write_text("slide2\nslide5\n")
    arguments = ("withdraw", f"{WORK}/data", "--slides", f"{WORK}/slides.txt", "--rewrite")
    check = lambda work: check_dataset(work / "data")  # noqa: E731
    command = Command("withdraw", arguments, lambda _now: set(), before, check=check, refusal=WITHDRAWN)
    survives(nurse, command, tmp_path, 2, 25)


def test_subset__killed_at_any_moment(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    build_dataset([inputs / "cohort.tar"], tmp_path / "before" / "data", ShardOptions(max_count=12))
    arguments = ("subset", f"{WORK}/data", "--name", "half", "--fraction", "0.5", "--overwrite")

    def finished(now: Tree) -> set[str]:
        names = {f"work/data/subsets/half.{ending}" for ending in ("npy", "json")}
        return names if "work/data/subsets/half.json" in now else set()

    survives(nurse, Command("subset", arguments, finished, tmp_path / "before"), tmp_path, 2, 25)


@pytest.mark.skipif(not IS_FULL, reason="what checks an export imports torch anew each time; in short: test_leftovers")
@pytest.mark.parametrize("to", ["dino", "timm"])
def test_export__killed_at_any_moment_keeps_what_it_replaces(
    nurse: Nursery, inputs: Path, tmp_path: Path, to: str
) -> None:
    name = "export.pth" if to == "dino" else "export"
    for when, weights in (("before", "others.pt"), ("after", "weights.pt")):
        prepare(nurse, tmp_path / when, "export", "-c", inputs / weights, "--to", to, "--out", f"{{home}}/{name}")
    versions = Versions(tmp_path / "before" / name, tmp_path / "after" / name)
    arguments = ("export", "-c", str(inputs / "weights.pt"), "--to", to, "--out", f"{WORK}/{name}", "--overwrite")

    def check(work: Path) -> None:
        there = [place for place in (work / name, *work.glob(f".{name}.*.old")) if place.exists()]
        assert there
        versions.check(there)

    command = Command("export", arguments, lambda _now: set(), tmp_path / "before", check=check, at=name)
    survives(nurse, command, tmp_path, 0, 13 if to == "dino" else 12)


@pytest.fixture(scope="module")
def served(inputs: Path) -> Iterator[str]:
    with http_server(inputs) as server:
        yield server.url


def test_cache__of_a_remote_dataset_is_filled_by_a_run_killed_at_any_moment(
    nurse: Nursery, inputs: Path, served: str, tmp_path: Path
) -> None:
    weights = str(inputs / "weights.pt")
    options = ("--out", f"{WORK}/features", "--batch-size", "8", "--workers", "0")
    arguments = ("embed", "patch", f"{served}/coded/dataset", "-c", weights, *options)
    command = Command("filling a remote cache", arguments, below("work/features/"), at="cache/")
    survives(nurse, command, tmp_path, 2, 25)
