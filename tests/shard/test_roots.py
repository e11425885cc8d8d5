"""Datasets of the reference, opened where they lie."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.errors import OutputError, SourceError
from dinowds.files import cache_folder, lock_file
from dinowds.shard.progress import ShardProgress
from dinowds.shard.roots import open_in_place
from tests.reference_root import make_root, write_entries


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))


def _payloads(dataset: Dataset) -> list[bytes]:
    return [
        Path(dataset.shard_url(sample.shard)).read_bytes()[sample.offset : sample.offset + sample.size]
        for sample in dataset
    ]


def _indexes() -> list[Path]:
    return [path for path in (cache_folder() / "roots").iterdir() if path.is_dir()]


def test_open_in_place__names_of_the_reference(root: Path) -> None:
    whole = Dataset.open(open_in_place(f"Pathology:root={root}"))
    fold = Dataset.open(open_in_place(f"Pathology:root={root}:subset=fold_0"))
    assert (len(whole), len(fold)) == (40, 20)
    content = (root / "pretrain_dataset.tar").read_bytes()
    entries = np.load(root / "pretrain_entries_fold_0.npy")
    assert _payloads(fold) == [content[int(start) : int(end)] for _, _, start, end in entries]
    assert whole.manifest.name == "root"
    assert [Path(whole.shard_url(0))] == [root / "pretrain_dataset.tar"]
    for split, first in (("query", "normal"), ("test", "tumour")):
        labelled = Dataset.open(open_in_place(f"KNN:root={root}:split={split}"))
        assert len(labelled) == 10
        label = next(iter(labelled)).label
        assert label is not None
        assert labelled.manifest.label_names[label] == first


def test_open_in_place__copies_nothing_and_leaves_the_root_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    folder = Path(open_in_place(f"Pathology:root={root}"))
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before
    assert not list(folder.rglob("*.tar"))
    assert _indexes() == [folder]


def test_open_in_place__other_locations_stay(dataset_path: Path, root: Path, tmp_path: Path) -> None:
    strange = tmp_path / "KNN:root=x:split=query"
    strange.mkdir()
    places = (dataset_path, root, strange, f"{dataset_path}:fold_0", "s3://bucket/x:y", "Other:root=/data")
    for location in map(str, places):
        assert open_in_place(location) == location
    assert not cache_folder().exists()


def test_open_in_place__is_made_once(root: Path) -> None:
    said: list[str] = []
    folder = open_in_place(f"Pathology:root={root}", notice=said.append)
    made_at = (Path(folder) / "manifest.json").stat().st_mtime_ns
    assert open_in_place(f"Pathology:root={root}/", notice=said.append) == folder
    assert (Path(folder) / "manifest.json").stat().st_mtime_ns == made_at
    assert [folder in line for line in said] == [True, True]
    assert ["made now" in line for line in said] == [True, False]


@pytest.mark.parametrize("name", ["pretrain_entries.npy", "pretrain_dataset.tar"])
def test_open_in_place__is_made_again_when_the_root_changed(root: Path, name: str) -> None:
    first = open_in_place(f"Pathology:root={root}")
    if name.endswith(".npy"):
        write_entries(root / name, root / "pretrain_dataset.tar", range(7))
    else:
        os.utime(root / name, ns=(0, (root / name).stat().st_mtime_ns + 10**9))
    again = open_in_place(f"Pathology:root={root}")
    assert again != first
    assert len(Dataset.open(again)) == (7 if name.endswith(".npy") else 40)


def test_open_in_place__is_made_again_when_it_is_damaged(root: Path) -> None:
    folder = open_in_place(f"Pathology:root={root}")
    (Path(folder) / "samples.parquet").unlink()
    assert open_in_place(f"Pathology:root={root}") == folder
    assert len(_payloads(Dataset.open(folder))) == 40


def test_open_in_place__processes_wait_for_the_one_that_makes_it(root: Path) -> None:
    script = (
        "import sys; from dinowds.shard.roots import open_in_place; print(open_in_place(sys.argv[1], report=print))"
    )
    command = [sys.executable, "-c", script, f"Pathology:root={root}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [lines[-1] for lines in printed] == [str(_indexes()[0])] * 3
    assert sum(len(lines) > 1 for lines in printed) == 1
    assert len(_indexes()) == 1


def test_open_in_place__holds_a_lock_while_it_is_made(root: Path) -> None:
    phases = []

    def report(progress: ShardProgress) -> None:
        phases.append(progress.phase)
        [lock] = (cache_folder() / "roots").glob(".*.lock")
        with pytest.raises(BlockingIOError), lock_file(lock):
            pass

    open_in_place(f"Pathology:root={root}", report=report)
    assert phases


def test_open_in_place__goes_on_after_a_kill(root: Path) -> None:
    script = (
        "import os, sys\nfrom dinowds.shard import roots\n"
        "roots.Path.rename = lambda *_: os._exit(9)\nroots.open_in_place(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, f"Pathology:root={root}"], check=False)
    assert killed.returncode == 9
    folder = open_in_place(f"Pathology:root={root}")
    assert len(Dataset.open(folder)) == 40
    assert [str(path) for path in _indexes()] == [folder]


def test_open_in_place__compressed_tar_is_named(root: Path) -> None:
    tar = root / "pretrain_dataset.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(
        SourceError, match=r"pretrain_dataset\.tar: is compressed with gz.*'dinowds shard Pathology:root="
    ):
        open_in_place(f"Pathology:root={root}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Pathology:root={root}/none", "is no folder"),
        ("Pathology:root={root}:subset=fold_7", "no fold 'fold_7'"),
        ("Pathology:root={root}:extra=1", "has 'extra=1'"),
        ("KNN:root={root}", "several splits|choose one"),
    ],
)
def test_open_in_place__mistake_is_one_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        open_in_place(text.format(root=root))
    assert "\n" not in str(error.value)
    assert not cache_folder().exists()


def test_open_in_place__damaged_list_leaves_nothing(root: Path) -> None:
    entries = np.load(root / "pretrain_entries.npy")
    entries[3, 2] += 1
    np.save(root / "pretrain_entries.npy", entries)
    with pytest.raises(SourceError, match="entry 3 is bytes"):
        open_in_place(f"Pathology:root={root}")
    assert _indexes() == []


def test_open_in_place__cache_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be written .*set DINOWDS_CACHE"):
        open_in_place(f"Pathology:root={root}")
