"""A merged dataset has all samples of its parts, at the bytes where they lie, and is refused where it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import read_manifest, write_manifest
from dinowds.data.verify import verify_dataset
from dinowds.data.withdrawn import withdrawn_in_shards, withdrawn_samples
from dinowds.errors import ConfigError, DatasetError, OutputError
from dinowds.interop.names import MARK
from dinowds.remote.files import RemoteFiles
from dinowds.shard.finished import merge
from dinowds.shard.finished.merge import merge_datasets
from dinowds.shard.finished.withdraw import withdraw_slides
from tests.servers import S3Server
from tests.shard.finished.datasets import add_subset, keys_of, make_finished, payload_of, rows_of, tree

LINES = [{"source": "/in/a.tar", "member": f"s1/{i}.jpg", "reason": "empty file"} for i in range(3)]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three datasets: with labels and scores, with a cohort of the first, and with fewer labels."""
    return [
        make_finished(
            tmp_path / "one",
            [("a", "s1"), ("b", "s2")],
            label_names=("x", "y"),
            extra="sharpness",
            quarantine=LINES,
            metadata={
                **{"scanner": "x", "site": "here", "duplicates": 2, "quality": {"white": {"0.9": 1}}},
                **{"skipped": {"folder": 3}, "cohorts": {"a": {"mpp": 0.5}, "b": {"mpp": 1}}},
            },
        ),
        make_finished(
            tmp_path / "deep" / "two",
            [("a", "s3"), ("c", None)],
            seed=7,
            extra="white",
            quarantine=LINES[:1],
            metadata={
                **{"scanner": "x", "duplicates": 2, "quality": {"white": {"0.9": 4}, "blurred": 1}},
                **{"skipped": {"folder": 1, "link": 2}, "cohorts": {"a": {"mpp": 0.25}}},
            },
        ),
        make_finished(
            tmp_path / "three",
            [("d", "s1")],
            label_names=("x",),
            metadata={"scanner": "y", "cohorts": {"b": {"mpp": 1}}},
        ),
    ]


def test_merge__has_all_samples_of_its_parts_in_place(parts: list[Path], tmp_path: Path) -> None:
    before = [tree(part) for part in parts]
    merged, notices = merge_datasets(parts, tmp_path / "all")
    out = tmp_path / "all"
    assert [tree(part) for part in parts] == before
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "quarantine.jsonl", "samples.parquet"]
    assert verify_dataset(out) == []
    manifests = [read_manifest(part) for part in parts]
    assert read_manifest(out) == merged
    assert [shard.url for shard in merged.shards] == [
        f"../{part.relative_to(tmp_path)}/{shard.url}"
        for part, manifest in zip(parts, manifests, strict=True)
        for shard in manifest.shards
    ]
    assert merged.cohorts == {"a": 12, "b": 6, "c": 6, "d": 6}
    assert merged.quarantined == {"empty file": 4}
    assert merged.label_names == ("x", "y")
    assert (merged.shuffled, merged.seed, merged.name, notices) == (False, 0, "all", [])
    assert merged.metadata == {
        "scanner": {"one": "x", "two": "x", "three": "y"},
        "site": {"one": "here"},
        "duplicates": 4,
        "quality": {"white": {"0.9": 5}, "blurred": 1},
        "skipped": {"folder": 4, "link": 2},
        "cohorts": {"a": {"one": {"mpp": 0.5}, "two": {"mpp": 0.25}}, "b": {"mpp": 1}},
    }
    expected = [{"sharpness": None, "white": None, **row} for part in parts for row in rows_of(part)]
    assert rows_of(out) == expected
    schema = pq.read_schema(out / "samples.parquet")
    assert schema.field("sharpness").type == schema.field("white").type == pa.float32()
    dataset = Dataset.open(out)
    for sample in dataset:
        with open(dataset.shard_url(sample.shard), "rb") as file:
            file.seek(sample.offset)
            assert file.read(sample.size) == payload_of(sample.key)
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert verify_dataset(tmp_path.with_name("moved") / "all") == []
    shutil.move(tmp_path.with_name("moved"), tmp_path)


def test_merge__of_merged_ones_and_through_links(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "below")
    (tmp_path / "linked_part").symlink_to(parts[1])
    merge_datasets([parts[0], tmp_path / "linked_part"], tmp_path / "link" / "some")
    out = tmp_path / "all"
    merged, _ = merge_datasets([tmp_path / "link" / "some", parts[2]], out)
    assert verify_dataset(out) == []
    assert keys_of(out) == [key for part in parts for key in keys_of(part)]
    assert merged.shards[0].url == "../one/shards/one-000000.tar"
    assert merged.shards[-1].url == "../three/shards/three-000000.tar"


def test_merge__never_replaces_what_holds_the_shards(parts: list[Path], tmp_path: Path) -> None:
    merge_datasets(parts[:2], tmp_path / "some")
    with pytest.raises(ConfigError, match=r"holds \S*one-000000\.tar, a shard of one of the datasets"):
        merge_datasets([tmp_path / "some", parts[2]], parts[0], overwrite=True)
    assert verify_dataset(tmp_path / "some") == []
    assert not (parts[0] / ".unfinished").exists()


def test_merge__never_replaces_shards_that_are_named_absolutely(parts: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts[2], tmp_path / "index")
    _name_absolutely(tmp_path / "index", parts[2])
    with pytest.raises(ConfigError, match=r"holds \S*three-000000\.tar, a shard of one of the datasets"):
        merge_datasets([tmp_path / "index", parts[0]], parts[2], overwrite=True)
    assert verify_dataset(parts[2]) == []


def _name_absolutely(part: Path, place: Path) -> list[str]:
    """Make the URLs of a dataset's shards absolute: those below `place`."""
    manifest = read_manifest(part)
    urls = [str(place / shard.url) for shard in manifest.shards]
    shards = tuple(replace(shard, url=url) for shard, url in zip(manifest.shards, urls, strict=True))
    write_manifest(part, replace(manifest, shards=shards))
    return urls


def test_merge__one_of_the_other_is_refused(parts: list[Path], tmp_path: Path) -> None:
    merge_datasets(parts[:2], tmp_path / "some")
    with pytest.raises(DatasetError, match=r"/some: names the shard \S*one-000000\.tar, as does \S*/one; leave out"):
        merge_datasets([parts[0], tmp_path / "some"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_merge__samples_that_come_back_are_told(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    merge_datasets(parts[:2], out)
    (tmp_path / "list").write_text("a/s1\n")
    withdraw_slides(out, tmp_path / "list")
    _, notices = merge_datasets(parts[:2], out, overwrite=True)
    assert [notice for notice in notices if "6 samples were withdrawn from the dataset that is replaced" in notice]
    assert merge_datasets(parts[:2], out, overwrite=True)[1] == []


def test_merge__absolute_urls_stay(parts: list[Path], tmp_path: Path) -> None:
    urls = _name_absolutely(parts[2], parts[2])
    merged, _ = merge_datasets([parts[0], parts[2]], tmp_path / "all")
    assert [shard.url for shard in merged.shards[-len(urls) :]] == urls
    assert verify_dataset(tmp_path / "all") == []


def test_merge__withdrawn_samples_and_subsets_are_told(parts: list[Path], tmp_path: Path) -> None:
    add_subset(parts[1], "mine", where="cohort == 'a'")
    (tmp_path / "list").write_text("a/s1\n")
    withdraw_slides(parts[0], tmp_path / "list")
    merged, notices = merge_datasets(parts, tmp_path / "all")
    assert withdrawn_samples(merged) == sum(withdrawn_in_shards(merged).values()) == 6
    assert all(url.startswith("../one/") for url in withdrawn_in_shards(merged))
    assert len(notices) == 1
    assert "its subsets are not carried over: mine" in notices[0]
    with pytest.raises(OutputError, match=r"withdraw the slides from \S*/one with --rewrite"):
        withdraw_slides(tmp_path / "all", None, rewrite=True)


@pytest.mark.parametrize("compared", [1 << 20, 2])
def test_merge__equal_keys_are_refused_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr(merge, "_MOST_COMPARED", compared)
    one = make_finished(tmp_path / "one", [("a", "s1"), ("b", "s2")])
    two = make_finished(tmp_path / "two", [("a", "s1"), ("c", "s2")], per_slide=4)
    count = 4 if compared > 4 else "2 or more"
    with pytest.raises(
        DatasetError, match=rf"^{count} keys are in .* 'a/s1/\d_\d' in \S*/one and \S*/two; .*shard"
    ) as error:
        merge_datasets([one, two], tmp_path / "all")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "all").exists()


def test_merge__keys_of_equal_hashes_are_told_apart(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_hashes", lambda keys: np.array([len(key) % 3 for key in keys], np.uint64))
    merge_datasets(parts, tmp_path / "all")
    assert len(Dataset.open(tmp_path / "all")) == 30


def test_merge__what_does_not_fit_is_refused(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    one, two, three = parts
    add_subset(one, "some", where="cohort == 'a'")
    cases: list[tuple[list[Path | str], Path | str, str]] = [
        ([one], out, "expected two or more"),
        ([one, f"{one}/../one/manifest.json"], out, "one: is given twice"),
        ([one, two], one, "is one of the datasets"),
        ([f"{one}:some", two], out, "is a subset"),
        ([one, two], "s3://bucket/all", "is remote and .*one is not"),
        (["https://me:secret@host/a", two], out, "host/a: has a user"),
    ]
    for arguments, to, words in cases:
        with pytest.raises(ConfigError, match=words) as error:
            merge_datasets(arguments, to)
        assert "secret" not in str(error.value)
    manifest = read_manifest(three)
    write_manifest(three, replace(manifest, label_names=("z",)))
    with pytest.raises(DatasetError, match=r"three: its label 0 is 'z', that of \S*one is 'x'.*'dinowds shard"):
        merge_datasets(parts, out)
    write_manifest(three, replace(manifest, kind="region"))
    with pytest.raises(DatasetError, match=r"three: holds samples of kind 'region'"):
        merge_datasets(parts, out)
    write_manifest(three, manifest)
    index = pq.read_table(three / "samples.parquet")
    other = index.append_column("white", pa.array(["much"] * len(index)))
    pq.write_table(other, three / "samples.parquet")
    write_manifest(three, replace(manifest, samples_footer_sha256=""))
    with pytest.raises(DatasetError, match=r"three: column 'white' of its index is string, that of \S*two is float"):
        merge_datasets(parts, out)
    assert not out.exists()


def test_merge__existing_output_is_replaced_only_if_asked_for(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    merge_datasets(parts[:2], out)
    expected = tree(out)
    with pytest.raises(OutputError, match="already holds a dataset"):
        merge_datasets(parts[1:], out)
    assert tree(out) == expected
    own = make_finished(tmp_path / "own", [("o", "s")])
    add_subset(own, "old")
    merge_datasets(parts[:2], own, name="all", overwrite=True)
    assert tree(own) == expected
    (own / "_info.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"holds '_info.json'"):
        merge_datasets(parts[:2], own, overwrite=True)
    for name in ("shards/x.idx", ".nv-meta/index.sqlite", "_info.json", "README.md"):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text(f"# {MARK}\n")
    merge_datasets(parts[:2], own, name="all", overwrite=True)
    assert tree(own) == expected
    assert not (own / ".nv-meta").exists()
    (own / "mine.txt").write_text("")
    with pytest.raises(OutputError, match=r"holds 'mine.txt'"):
        merge_datasets(parts[:2], own, overwrite=True)


def test_merge__remote_datasets_into_a_folder_and_a_url(parts: list[Path], tmp_path: Path, s3: S3Server) -> None:
    files = RemoteFiles()
    for part in parts[:2]:
        for path in part.rglob("*"):
            if path.is_file():
                files.upload(path, f"{s3.url}/{part.name}/{path.relative_to(part)}")
    urls = [f"{s3.url}/{part.name}" for part in parts[:2]]
    merged, _ = merge_datasets([*urls, parts[2]], tmp_path / "all")
    assert verify_dataset(tmp_path / "all") == []
    assert merged.shards[0].url == f"{s3.url}/one/shards/one-000000.tar"
    assert merged.shards[-1].url == "../three/shards/three-000000.tar"
    merged, _ = merge_datasets(urls, f"{s3.url}/all")
    assert verify_dataset(f"{s3.url}/all") == []
    assert keys_of(f"{s3.url}/all") == [key for part in parts[:2] for key in keys_of(part)]
    assert sorted(files.names(f"{s3.url}/all")) == ["manifest.json", "quarantine.jsonl", "samples.parquet"]
    content = (tmp_path / "all" / "manifest.json").read_bytes()
    files.write(f"{s3.url}/bad/manifest.json", content)
    files.upload(tmp_path / "all" / "samples.parquet", f"{s3.url}/bad/samples.parquet")
    with pytest.raises(DatasetError, match=r"its manifest names '\.\./three"):
        Dataset.open(f"{s3.url}/bad").shard_url(len(json.loads(content)["shardlist"]) - 1)


KILL_AT_EVERY_OPERATION = """
import os, shutil, signal, sys
from pathlib import Path
from dinowds.shard.finished.merge import merge_datasets

os.fsync = lambda descriptor: None
out, how, *parts = Path(sys.argv[1]), *sys.argv[2:]
is_replaced = how == "replace"

def run(kill_at=0):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"} and str(arguments[0]).startswith(str(out)):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        merge_datasets(parts[:2], out, overwrite=is_replaced)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def tree():
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

merge_datasets(parts[:2], out)
expected = tree()
shutil.rmtree(out)
shutil.copytree(parts[2], str(out) + "-old")
kill_at = 0
while True:
    kill_at += 1
    if is_replaced:
        shutil.copytree(str(out) + "-old", out)
        before = tree()
    if run(kill_at) == 0:
        break
    looks_finished = (out / "manifest.json").exists()
    whole = [before, expected] if is_replaced else [expected]
    assert not looks_finished or any(tree().items() >= files.items() for files in whole), kill_at
    status = run()
    assert status == 0 or (looks_finished and not (out / ".unfinished").exists()), kill_at
    assert tree() == expected, (kill_at, sorted(tree()))
    shutil.rmtree(out)
print(kill_at)
"""


@pytest.mark.parametrize("how", ["new", "replace"])
def test_merge__killed_at_each_file_operation_ends_as_if_undisturbed(
    parts: list[Path], tmp_path: Path, how: str
) -> None:
    arguments = [sys.executable, "-c", KILL_AT_EVERY_OPERATION, str(tmp_path / "out"), how, *map(str, parts)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 15
