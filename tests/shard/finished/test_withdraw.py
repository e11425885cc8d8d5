"""Withdrawn slides leave the index, the quarantine, the subsets and, where asked for, the shards; and nothing else."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import Manifest, read_manifest, write_manifest
from dinowds.data.subsets.subset import list_subsets, read_subset
from dinowds.data.verify import verify_dataset
from dinowds.data.withdrawn import withdrawn_in_shards, withdrawn_samples
from dinowds.errors import ConfigError, DatasetError, OutputError
from dinowds.interop.names import MARK
from dinowds.remote.files import RemoteFiles
from dinowds.shard.finished import withdraw
from dinowds.shard.finished.withdraw import withdraw_slides
from tests.shard.finished.datasets import add_subset, keys_of, make_finished, payload_of, rows_of, tree

SLIDES = [("a", "s1"), ("a", "s2"), ("a", "s3"), ("b", "s1"), ("b", "t1"), ("b", None)]
QUARANTINE = [
    {"source": "/in/a.tar", "member": "s1/damaged.jpg", "reason": "image is damaged"},
    {"source": "/in/a.tar", "member": "./s1/images/x.txt", "reason": "not an image file"},
    {"source": "/in/b.tar", "member": "s1/damaged.jpg", "reason": "image is damaged"},
    {"source": "/in/b.tar", "member": "s1_5_5.jpg", "reason": "empty file"},
    {"source": "/in/b.tar", "member": "s11/5_5.jpg", "reason": "empty file"},
    {"source": "/in/u1.tar", "member": "1_1.jpg", "reason": "empty file"},
    {"source": "/in/a.tar", "member": "", "reason": "data after the end marker"},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 labelled samples of six slides in five shards, with subsets, and more members than images."""
    folder = make_finished(
        tmp_path_factory.mktemp("withdraw") / "data",
        SLIDES,
        label_names=("x", "y"),
        quarantine=QUARANTINE,
        extra="sharpness",
        metadata={"cohorts": {"a": {"mpp": 0.5}, "b": {"mpp": 0.25}}, "dropped": {"a": 3}},
    )
    add_subset(folder, "some", where="slide == 's1' or slide == 't1'")
    add_subset(folder, "gone", where="cohort == 'a' and slide == 's1'")
    add_subset(folder, "other", where="slide == 's3'")
    assert verify_dataset(folder) == []
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def write_list(path: Path, *entries: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return path


def is_gone(row: dict[str, object]) -> bool:
    return (row["cohort"], row["slide"]) == ("a", "s1")


@pytest.mark.parametrize("rewrite", [False, True])
def test_withdraw__only_the_slide_leaves(whole: Path, folder: Path, tmp_path: Path, rewrite: bool) -> None:
    kept = [row for row in rows_of(whole) if not is_gone(row)]
    some = [key for key in keys_of(f"{whole}:some") if not key.startswith("a/s1/")]
    other = keys_of(f"{whole}:other")
    done, notices = withdraw_slides(folder, write_list(tmp_path / "list", "a/s1", "nowhere"), rewrite)
    assert rows_of(folder) == kept
    assert verify_dataset(folder) == []
    before, after = read_manifest(whole), read_manifest(folder)
    assert (done.samples, done.slides, done.cohorts, done.quarantine_lines) == (6, 1, {"a": 6}, 2)
    assert after.cohorts == {"a": 12, "b": 18}
    assert (after.name, after.seed, after.label_names) == (before.name, before.seed, before.label_names)
    assert {name: after.metadata[name] for name in before.metadata} == before.metadata
    assert withdrawn_samples(after) == 6
    assert sum(withdrawn_in_shards(after).values()) == done.in_shards == (0 if rewrite else 6)
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert lines == QUARANTINE[2:]
    assert after.quarantined == {"image is damaged": 1, "empty file": 3, "data after the end marker": 1}
    assert list_subsets(str(folder), RemoteFiles()) == ["other", "some"]
    assert keys_of(f"{folder}:some") == some
    assert keys_of(f"{folder}:other") == other
    subset = read_subset(str(folder), "some", after, RemoteFiles())
    assert (subset.samples, subset.slides, subset.cohorts) == (12, 2, {"a": 0, "b": 12})
    assert any("'gone'" in notice for notice in notices)
    assert any("1 of 2 entries are no slide" in notice and "'nowhere'" in notice for notice in notices)
    assert not (folder / ".unfinished").exists()


def test_withdraw__rewrite_changes_the_shards_concerned_alone(whole: Path, folder: Path, tmp_path: Path) -> None:
    concerned = {sample.shard for sample in Dataset.open(whole) if sample.key.startswith("b/t1/")}
    before, files = read_manifest(whole), tree(whole)
    assert 0 < len(concerned) < len(before.shards)
    done, _ = withdraw_slides(folder, write_list(tmp_path / "list", "t1"), rewrite=True)
    assert done.rewritten_shards == len(concerned)
    for position, shard in enumerate(before.shards):
        content = (folder / shard.url).read_bytes()
        if position not in concerned:
            assert content == files[shard.url]
            continue
        with tarfile.open(fileobj=io.BytesIO(files[shard.url])) as tar:
            members = [(m, tar.extractfile(m).read()) for m in tar if not m.name.startswith("b/t1/")]  # type: ignore[union-attr]
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            found = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        assert [(m.name, m.mode, m.mtime, payload) for m, payload in found] == [
            (m.name, m.mode, m.mtime, payload) for m, payload in members
        ]
        assert content.endswith(bytes(1024))
        assert len(content) == found[-1][0].offset_data + -(-found[-1][0].size // 512) * 512 + 1024


def test_withdraw__after_rewrite_neither_bytes_nor_names_are_in_any_file(folder: Path, tmp_path: Path) -> None:
    (folder / "shards" / "data-000000.idx").write_text("s1")
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta" / "index.sqlite").write_bytes(b"s2")
    (folder / ".nv-meta" / "dataset.yaml").write_text(MARK)
    (folder / "README.md").write_text(MARK)
    keys = [key for key in keys_of(folder) if key.split("/")[1] in ("s1", "s2", "s3")]
    _, notices = withdraw_slides(folder, write_list(tmp_path / "list", "s1", "a/s2", "a/s3"), rewrite=True)
    assert sum("3 index files of other readers are removed" in notice for notice in notices) == 1
    assert not list(folder.rglob("*.idx"))
    assert not (folder / ".nv-meta").exists()
    assert (folder / "README.md").exists()
    for name, content in tree(folder).items():
        for key in keys:
            assert payload_of(key)[:200] not in content, name
            assert payload_of(key)[-50:] not in content, name
        for slide in (b"'s1'", b"s1/", b"s2/", b"s3/", b'"s1"'):
            assert slide not in content, (name, slide)
    rows = pq.read_table(folder / "samples.parquet", read_dictionary=["slide", "cohort", "source", "source_name"])
    for column in ("slide", "cohort", "source"):
        for chunk in rows[column].chunks:
            assert not {"s1", "s2", "s3", "a", "/in/a.tar"} & set(chunk.dictionary.to_pylist())
    manifest = read_manifest(folder)
    assert manifest.cohorts == {"b": 12}
    assert manifest.metadata["cohorts"] == {"b": {"mpp": 0.25}}
    assert manifest.metadata["dropped"] == {"a": 3}  # a reason of that name
    assert "/in/a.tar" not in (folder / "quarantine.jsonl").read_text()
    assert verify_dataset(folder) == []


def test_withdraw__rewrite_takes_what_earlier_withdrawals_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withdraw, "_BATCH_BYTES", 20_000)  # several batches
    once = tmp_path / "once"
    shutil.copytree(folder, once)
    lists = [write_list(tmp_path / name, *entries) for name, entries in (("1", ["a/s1"]), ("2", ["t1"]), ("3", ["s2"]))]
    everything = write_list(tmp_path / "all", "a/s1", "t1", "s2")
    for entries in lists:
        withdraw_slides(folder, entries)
        assert verify_dataset(folder) == []
    assert withdrawn_samples(read_manifest(folder)) == sum(withdrawn_in_shards(read_manifest(folder)).values()) == 18
    seen: list[tuple[int, int]] = []
    done, notices = withdraw_slides(folder, lists[0], rewrite=True, report=lambda *now: seen.append(now))
    assert (done.samples, done.in_shards, notices) == (0, 0, [])
    assert seen[-1][0] == seen[-1][1] == done.rewritten_bytes > 20_000
    assert withdraw_slides(folder, None, rewrite=True)[0].rewritten_shards == 0
    withdraw_slides(once, everything, rewrite=True)
    assert tree(folder) == tree(once)


def test_withdraw__keys_leave_the_cache_of_this_host(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOWDS_CACHE", str(tmp_path / "cache"))
    assert len(keys_of(folder)) == 36
    assert any(b"a/s1/" in content for content in tree(tmp_path / "cache").values())
    withdraw_slides(folder, write_list(tmp_path / "list", "a/s1"), rewrite=True)
    assert len(keys_of(folder)) == 30
    assert not any(b"a/s1/" in content for content in tree(tmp_path / "cache").values())


def test_withdraw__shard_that_is_named_twice_stays(tmp_path: Path) -> None:
    folder = make_finished(tmp_path / "data", SLIDES[:2], per_shard=1)
    manifest = read_manifest(folder)
    url = manifest.shards[0].url
    write_manifest(folder, _with_urls(manifest, [url, url, *(shard.url for shard in manifest.shards[2:])]))
    first, second = rows_of(folder)[:2]
    assert {first["slide"], second["slide"]} == {"s1", "s2"}
    withdraw_slides(folder, write_list(tmp_path / "list", first["slide"]))
    assert (folder / url).exists()


def test_withdraw__shards_without_samples_are_removed(tmp_path: Path) -> None:
    folder = make_finished(tmp_path / "data", SLIDES, per_shard=1)
    withdraw_slides(folder, write_list(tmp_path / "list", "s1"))
    assert len(read_manifest(folder).shards) == len(list((folder / "shards").iterdir())) == 24
    assert withdrawn_in_shards(read_manifest(folder)) == {}
    assert verify_dataset(folder) == []
    assert keys_of(folder) == [row["key"] for row in rows_of(folder)]


def test_withdraw__slide_of_quarantined_images_alone_is_known(folder: Path, tmp_path: Path) -> None:
    for entry, left in (("u1", 6), ("b/s11", 5)):
        done, notices = withdraw_slides(folder, write_list(tmp_path / "list", entry))
        assert (done.samples, done.quarantine_lines, notices) == (0, 1, [])
        assert len((folder / "quarantine.jsonl").read_text().splitlines()) == left
        assert verify_dataset(folder) == []


def test_withdraw__what_cannot_be_done_changes_nothing(folder: Path, tmp_path: Path) -> None:
    before = tree(folder)
    for entries, words in ((["nowhere"], "no entry is a slide"), (["s1", "s2", "s3", "t1"], None)):
        listed = write_list(tmp_path / "list", *entries)
        if words:
            with pytest.raises(DatasetError, match=words):
                withdraw_slides(folder, listed)
            assert tree(folder) == before
    listed = write_list(tmp_path / "list", "s1")
    dry, _ = withdraw_slides(folder, listed, dry_run=True)
    assert (dry.samples, dry.slides, dry.rewritten_bytes > 0) == (12, 2, True)
    for location, error, words in (
        (f"{folder}:some", ConfigError, "is a subset"),
        ("s3://bucket/data", OutputError, "copy the dataset to a disk"),
        (tmp_path / "missing", DatasetError, "no such dataset"),
    ):
        with pytest.raises(error, match=words):
            withdraw_slides(location, listed)
    with pytest.raises(ConfigError, match="--slides"):
        withdraw_slides(folder, None)
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished" / "state.json").write_text(json.dumps({"fingerprint": {"--seed": 1}}))
    with pytest.raises(OutputError, match="of another command: it is of 'dinowds shard'"):
        withdraw_slides(folder, listed)
    shutil.rmtree(folder / ".unfinished")
    assert tree(folder) == before
    assert not (tmp_path / "missing").exists()
    small = make_finished(tmp_path / "small", SLIDES[:2])
    with pytest.raises(DatasetError, match="all its samples are of these slides"):
        withdraw_slides(small, write_list(tmp_path / "list", "s1", "s2"))
    assert verify_dataset(small) == []


def test_withdraw__damaged_shard_stops_before_anything_is_replaced(folder: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path / "list", "t1")
    withdraw_slides(folder, listed)
    before = tree(folder)
    url = next(iter(withdrawn_in_shards(read_manifest(folder))))
    os.truncate(folder / url, 3000)
    with pytest.raises(DatasetError, match="'dinowds inspect --verify'"):
        withdraw_slides(folder, None, rewrite=True)
    assert {name: content for name, content in tree(folder).items() if name != url} == {
        name: content for name, content in before.items() if name != url
    }


def test_withdraw__shards_of_others_are_never_rewritten(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    borrower = tmp_path / "borrower"
    shutil.copytree(folder, borrower, ignore=shutil.ignore_patterns("shards", "subsets"))
    urls = [f"../data/{shard.url}" for shard in manifest.shards]
    write_manifest(borrower, _with_urls(manifest, urls))
    before, listed = tree(folder), write_list(tmp_path / "list", "s1")
    with pytest.raises(OutputError, match=r"withdraw the slides from \S*/data with --rewrite, and merge again"):
        withdraw_slides(borrower, listed, rewrite=True)
    assert len(read_manifest(borrower).shards) == 5
    assert keys_of(borrower) == keys_of(folder)
    withdraw_slides(borrower, listed)
    assert verify_dataset(borrower) == []
    assert keys_of(borrower) == [key for key in keys_of(folder) if "/s1/" not in key]
    assert tree(folder) == before
    alone = write_list(tmp_path / "alone", "s2", "s3", "t1")
    _, notices = withdraw_slides(_one_a_shard(tmp_path), alone)
    assert [notice for notice in notices if "18 shards with withdrawn samples alone lie outside" in notice]
    linked = folder / manifest.shards[0].url
    linked.rename(tmp_path / "elsewhere.tar")
    linked.symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(OutputError, match="lies outside of it"):
        withdraw_slides(folder, listed, rewrite=True)
    write_manifest(borrower, _with_urls(read_manifest(borrower), [str(tmp_path / "x.tar")] * 5))
    with pytest.raises(OutputError, match="by other means"):
        withdraw_slides(borrower, None, rewrite=True)


def test_withdraw__shards_behind_a_link_are_not_rewritten(folder: Path, tmp_path: Path) -> None:
    (folder / "shards").rename(tmp_path / "disk")
    (folder / "shards").symlink_to(tmp_path / "disk")
    before = tree(folder)
    with pytest.raises(OutputError, match="lies outside of it"):
        withdraw_slides(folder, write_list(tmp_path / "list", "s1"), rewrite=True)
    assert tree(folder) == before


def _one_a_shard(tmp_path: Path) -> Path:
    """An index of shards of one sample each that lie elsewhere."""
    lender = make_finished(tmp_path / "lender", SLIDES, per_shard=1)
    index = Path(shutil.copytree(lender, tmp_path / "index", ignore=shutil.ignore_patterns("shards")))
    manifest = read_manifest(index)
    write_manifest(index, _with_urls(manifest, [f"../lender/{shard.url}" for shard in manifest.shards]))
    return index


def _with_urls(manifest: Manifest, urls: list[str]) -> Manifest:
    shards = tuple(replace(shard, url=url) for shard, url in zip(manifest.shards, urls, strict=True))
    left = {
        new: manifest.metadata["withdrawn_in_shards"][old.url]
        for old, new in zip(manifest.shards, urls, strict=True)
        if old.url in manifest.metadata.get("withdrawn_in_shards", {})
    }
    return replace(manifest, shards=shards, metadata={**manifest.metadata, "withdrawn_in_shards": left})


def test_withdraw__stale_subset_is_left_with_a_notice(folder: Path, tmp_path: Path) -> None:
    path = folder / "subsets" / "other.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "samples_sha256": "0" * 64}))
    _, notices = withdraw_slides(folder, write_list(tmp_path / "list", "s2"))
    assert any("'other' was of no use" in notice for notice in notices)


KILL_AT_EVERY_OPERATION = """
import os, shutil, signal, sys
from pathlib import Path
from dinowds.data.verify import verify_dataset
from dinowds.errors import DatasetError
from dinowds.shard.finished import withdraw

os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
whole, out, listed, rewrite = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "rewrite"

def run(kill_at=0):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event in OPERATIONS and any(str(argument).startswith(str(out)) for argument in arguments):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        try:
            withdraw.withdraw_slides(out, listed, rewrite)
        except DatasetError as error:
            print(error, file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def tree():
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

shutil.copytree(whole, out)
before = tree()
withdraw.withdraw_slides(out, listed, rewrite)  # here, so that children need not import anything
expected, unfinished = tree(), 0
kill_at = 0
while True:
    kill_at += 1
    shutil.rmtree(out)
    shutil.copytree(whole, out)
    if run(kill_at) == 0:
        break
    if (out / "manifest.json").exists():
        assert verify_dataset(out) == [], (kill_at, verify_dataset(out))
        assert (out / "samples.parquet").read_bytes() == before["samples.parquet"] or not any(
            b"a/s1/" in content for name, content in tree().items() if name.endswith((".json", ".jsonl"))
        ), kill_at
    else:
        unfinished += 1
    status = run()
    if status:  # killed in the very last steps: complete, and so none of the slides is known
        assert os.waitstatus_to_exitcode(status) == 3, kill_at
        assert not (out / ".unfinished").exists(), (kill_at, list(out.rglob("*")))
    assert tree() == expected, (kill_at, sorted(tree()), sorted(expected))
print(kill_at, unfinished)
"""


@pytest.mark.parametrize("how", ["index", "rewrite"])
def test_withdraw__killed_at_each_file_operation_ends_as_if_undisturbed(tmp_path: Path, how: str) -> None:
    whole = make_finished(tmp_path / "data", SLIDES[:4], per_slide=2, per_shard=4, quarantine=QUARANTINE)
    add_subset(whole, "some", where="slide == 's1'")
    add_subset(whole, "gone", where="cohort == 'a' and slide == 's1'")
    listed = write_list(tmp_path / "list", "a/s1", "s2")
    arguments = [sys.executable, "-c", KILL_AT_EVERY_OPERATION, str(whole), str(tmp_path / "out"), str(listed), how]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kills, unfinished = map(int, result.stdout.split())
    # Work folder, index, subset, manifest, changes, notes; a shard or two; and each removal.
    assert kills > (45 if how == "rewrite" else 20), result.stdout
    assert unfinished > (15 if how == "rewrite" else 7), result.stdout


def test_withdraw__another_withdrawal_ends_one_that_was_killed(whole: Path, tmp_path: Path) -> None:
    """Whoever has lost the list can still end it."""
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    script = (
        "import os, sys; from pathlib import Path; from dinowds.shard.finished import withdraw\n"
        "from dinowds.shard.outputs import local_output\n"
        "local_output.LocalOutput._move_index = lambda self: os._exit(9)\n"
        "withdraw.withdraw_slides(sys.argv[1], Path(sys.argv[2]))"
    )
    listed = write_list(tmp_path / "list", "a/s1")
    arguments = [sys.executable, "-c", script, str(folder), str(listed)]
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == 9
    with pytest.raises(DatasetError, match="unfinished"):
        read_manifest(folder)
    done, _ = withdraw_slides(folder, write_list(tmp_path / "list", "s2"))
    assert done.samples == 6
    assert withdrawn_samples(read_manifest(folder)) == 12
    assert verify_dataset(folder) == []
