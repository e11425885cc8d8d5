"""Sources → a dataset: its bytes, what it refuses, and going on."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash

from dinowds.data.manifest import SAMPLES_SCHEMA, Manifest, read_manifest
from dinowds.data.verify import verify_dataset
from dinowds.errors import ConfigError, DinowdsError, OutputError, SourceError
from dinowds.files import output_errors
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset, plan_dataset
from dinowds.shard.outputs.local_output import LocalOutput
from dinowds.shard.outputs.workspace import Workspace, claim

MakeTar = Callable[..., Path]
NAMED = ShardOptions(name="same", max_count=7)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stop(BaseException):
    """Ends a run from its own report, as a signal would."""


def build_partly(sources: list[Path], out: Path, options: ShardOptions, samples: int) -> None:
    """Run until `samples` were read, then stop."""

    def report(progress: ShardProgress) -> None:
        if progress.phase == "write" and progress.samples >= samples:
            raise Stop

    with pytest.raises(Stop):
        build_dataset(sources, out, options, report)


def test_build__rows_say_where_each_payload_lies(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 20), make_tar(tmp_path / "b.tar", 13, 100)]
    manifest = build_dataset(sources, tmp_path / "out", NAMED)
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.cohorts == {"a": 20, "b": 13}
    assert [shard.url for shard in manifest.shards] == [f"shards/same-{i:06d}.tar" for i in range(5)]
    index = pq.ParquetFile(tmp_path / "out" / "samples.parquet")
    assert index.schema_arrow.equals(SAMPLES_SCHEMA)
    assert index.num_row_groups == len(manifest.shards)
    assert manifest.samples_sha256 == hashlib.sha256((tmp_path / "out" / "samples.parquet").read_bytes()).hexdigest()
    originals = {}
    for source in sources:
        with tarfile.open(source) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                originals[str(source), member.name] = file.read()
    for group, shard in enumerate(manifest.shards):
        content = (tmp_path / "out" / shard.url).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.num_bytes, shard.sha256)
        with tarfile.open(tmp_path / "out" / shard.url) as tar:
            names = tar.getnames()
        rows = index.read_row_group(group).to_pylist()
        assert names == [f"{row['key']}.{row['ext']}" for row in rows]
        assert len(rows) == shard.num_samples
        for row in rows:
            payload = content[row["offset"] : row["offset"] + row["size"]]
            assert payload == originals.pop((row["source"], row["source_name"]))
            assert row["digest"] == xxhash.xxh3_128_digest(payload)
            assert (row["shard"], row["width"], row["height"]) == (group, 16, 12)
            assert row["slide"] == row["source_name"].split("/")[0]
            assert f"{row['slide']}/{row['x']}_{row['y']}.jpg" == row["source_name"]
    assert not originals
    index.close()


def test_build__same_seed_gives_the_same_bytes_for_any_workers(tmp_path: Path, hostile_tars: list[Path]) -> None:
    trees = []
    for number, workers in enumerate((1, 1, 2, 3)):
        options = ShardOptions(name="same", seed=5, max_count=3, workers=workers)
        build_dataset(hostile_tars, tmp_path / str(number), options)
        trees.append(tree(tmp_path / str(number)))
    assert trees[1:] == trees[:1] * 3
    build_dataset(hostile_tars, tmp_path / "seed", ShardOptions(name="same", seed=6, max_count=3))
    assert tree(tmp_path / "seed").keys() == trees[0].keys()
    assert tree(tmp_path / "seed") != trees[0]


def test_build__without_shuffle_samples_stay_in_the_order_of_their_sources(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "b.tar", 13, 100), make_tar(tmp_path / "a.tar", 20)]
    options = replace(NAMED, shuffle=False)
    trees = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        manifest = build_dataset(sources, out, replace(options, workers=workers))
        trees.append(tree(out))
    assert trees[0] == trees[1]
    assert not manifest.shuffled
    assert not read_manifest(out).shuffled
    names = []
    for source in sources:
        with tarfile.open(source) as tar:
            names += [(str(source), name) for name in tar.getnames()]
    rows = pq.read_table(out / "samples.parquet", columns=["source", "source_name", "shard"]).to_pylist()
    assert [(row["source"], row["source_name"]) for row in rows] == names
    assert [row["shard"] for row in rows] == [index // 7 for index in range(33)]
    build_partly(sources, tmp_path / "partly", NAMED, 21)
    with pytest.raises(OutputError, match="--no-shuffle was False, now True"):
        build_dataset(sources, tmp_path / "partly", options)


def test_build__tar_compressed_tar_and_folder_give_the_same_shards(tmp_path: Path, make_tar: MakeTar) -> None:
    plain = make_tar(tmp_path / "c.tar", 23)
    (tmp_path / "gz").mkdir()
    packed = tmp_path / "gz" / "c.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with tarfile.open(plain) as tar:
        tar.extractall(tmp_path / "c", filter="data")
    shards = []
    for number, source in enumerate((plain, packed, tmp_path / "c")):
        manifest = build_dataset([source], tmp_path / str(number), replace(NAMED, workers=1 + number % 2))
        shards.append({shard.sha256 for shard in manifest.shards})
        assert verify_dataset(tmp_path / str(number)) == []
    assert shards[0] == shards[1]
    # A folder is walked in another order than the tar, so its samples are shuffled differently.
    rows = [pq.read_table(tmp_path / n / "samples.parquet", columns=["key", "digest"]).to_pylist() for n in "02"]
    assert {r["key"]: r["digest"] for r in rows[0]} == {r["key"]: r["digest"] for r in rows[1]}


def test_build__shards_without_a_whole_image_do_not_appear(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}_0.jpg").write_bytes(make_image(index) if index % 2 else make_image(index)[:50])
    manifest = build_dataset([folder], tmp_path / "out", ShardOptions(max_count=1))
    urls = [shard.url for shard in manifest.shards]
    assert sorted(tree(tmp_path / "out" / "shards")) == [Path(url).name for url in urls]
    assert len(urls) == 6
    # The name is that of all twelve that were begun: those without an image leave gaps.
    assert urls == sorted(urls)
    assert set(urls) < {f"shards/out-{i:06d}.tar" for i in range(12)}
    rows = pq.read_table(tmp_path / "out" / "samples.parquet", columns=["shard"])
    assert rows["shard"].to_pylist() == list(range(6))
    assert manifest.quarantined == {"image is cut short": 6}
    assert verify_dataset(tmp_path / "out") == []


def test_build__not_one_whole_image_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match=r"not one image .*1 × not an image of a supported format"):
        build_dataset([tmp_path / "folder"], tmp_path / "deep" / "out", ShardOptions())
    assert not (tmp_path / "deep").exists()


def test_build__labels_are_numbered_in_integer_order_and_written(
    tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index, label in enumerate((10, 9, None, 0, 10)):
        (folder / f"{index}.jpg").write_bytes(make_image(index))
        if label is not None:
            (folder / f"{index}.cls").write_text(f"{label}\n")
    manifest = build_dataset([folder], tmp_path / "out", ShardOptions())
    assert manifest.label_names == ("0", "9", "10")
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert {row["key"]: row["label"] for row in rows} == {"0": 2, "1": 1, "2": None, "3": 0, "4": 2}
    with tarfile.open(tmp_path / "out" / manifest.shards[0].url) as tar:
        names = tar.getnames()
        for row in rows:
            if row["label"] is None:
                assert f"{row['key']}.cls" not in names
            else:
                assert names[names.index(f"{row['key']}.jpg") + 1] == f"{row['key']}.cls"
                file = tar.extractfile(f"{row['key']}.cls")
                assert file is not None
                assert file.read() == str(row["label"]).encode()


def test_build__stopped_and_called_again_keeps_finished_shards(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    build_dataset(sources, tmp_path / "whole", NAMED)
    out = tmp_path / "out"
    build_partly(sources, out, NAMED, 21)
    first = out / ".unfinished" / "shard-000000.tar"
    before = first.stat()
    (out / ".unfinished" / ".shard-000001.tar.1.tmp").write_bytes(b"left by a killed run")
    seen: list[ShardProgress] = []
    build_partly(sources, out, replace(NAMED, workers=2), 28)
    assert first.stat().st_ino == before.st_ino
    build_dataset(sources, out, NAMED, seen.append)
    writes = [progress.samples for progress in seen if progress.phase == "write"]
    assert writes[0] >= 7
    assert writes[-1] == 30
    assert tree(out) == tree(tmp_path / "whole")


def test_build__damaged_finished_shard_is_written_again(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    build_dataset(sources, tmp_path / "whole", NAMED)
    out = tmp_path / "out"
    build_partly(sources, out, NAMED, 28)
    os.truncate(out / ".unfinished" / "shard-000000.tar", 1000)
    os.truncate(out / ".unfinished" / "shard-000001.arrow", 100)
    build_dataset(sources, out, NAMED)
    assert tree(out) == tree(tmp_path / "whole")


def test_build__another_command_on_an_unfinished_dataset_is_refused(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    out = tmp_path / "out"
    build_partly(sources, out, NAMED, 21)
    with pytest.raises(OutputError, match=r"--seed was 0, now 1.*--overwrite"):
        build_dataset(sources, out, replace(NAMED, seed=1))
    with pytest.raises(OutputError, match="other sources"):
        build_dataset([*sources, make_tar(tmp_path / "b.tar", 3)], out, NAMED)
    assert (out / ".unfinished" / "shard-000000.tar").exists()
    build_dataset(sources, out, replace(NAMED, seed=1, overwrite=True))
    build_dataset(sources, tmp_path / "whole", replace(NAMED, seed=1))
    assert tree(out) == tree(tmp_path / "whole")


def test_build__folder_changed_since_an_unfinished_run_is_refused(
    tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.jpg").write_bytes(make_image(index))
    build_partly([folder], tmp_path / "out", NAMED, 20)
    (folder / "new.jpg").write_bytes(make_image(99))
    with pytest.raises(OutputError, match=r"folder has changed since that was begun; give --overwrite"):
        build_dataset([folder], tmp_path / "out", NAMED)
    build_dataset([folder], tmp_path / "out", replace(NAMED, overwrite=True))
    assert read_manifest(tmp_path / "out").num_samples == 21


def test_build__finished_dataset_is_refused_or_replaced(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    out = tmp_path / "out"
    build_dataset(sources, out, NAMED)
    before = tree(out)
    with pytest.raises(OutputError, match="already holds a dataset"):
        build_dataset(sources, out, NAMED)
    assert tree(out) == before
    (out / "subsets").mkdir()
    for name in ("fold_0.json", "fold_0.npy", ".fold_0.npy.17af.tmp"):
        (out / "subsets" / name).write_text("{}")
    build_dataset(sources, out, ShardOptions(name="other", overwrite=True))
    assert sorted(tree(out)) == ["manifest.json", "quarantine.jsonl", "samples.parquet", "shards/other-000000.tar"]
    assert not (out / "subsets").exists()


def test_build__overwrite_keeps_the_old_dataset_until_the_new_one_is_whole(tmp_path: Path, make_tar: MakeTar) -> None:
    good, other = make_tar(tmp_path / "a.tar", 30), make_tar(tmp_path / "b.tar", 40, 100)
    out, anew = tmp_path / "out", replace(NAMED, overwrite=True)
    build_dataset([good], out, NAMED)
    before = tree(out)
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:9000])
    with pytest.raises(SourceError, match="is cut short"):
        build_dataset([other, tmp_path / "cut.tar"], out, anew)
    assert tree(out) == before
    build_partly([other], out, anew, 21)
    assert tree(out).items() > before.items()
    assert verify_dataset(out) == []
    with pytest.raises(OutputError, match="already holds a dataset"):
        build_dataset([other], out, NAMED)
    seen: list[ShardProgress] = []
    build_dataset([other], out, anew, seen.append)
    assert min(progress.samples for progress in seen if progress.phase == "write") >= 14
    build_dataset([other], tmp_path / "whole", NAMED)
    assert tree(out) == tree(tmp_path / "whole")


def test_build__another_command_replaces_what_a_publication_left(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 30)
    out = tmp_path / "out"
    build_dataset([source], out, NAMED)
    # As if the run had ended after two of its shards had their names.
    (out / ".unfinished").mkdir()
    for name in ("manifest.json", "samples.parquet", "quarantine.jsonl"):
        (out / name).rename(out / ".unfinished" / name)
    (out / ".unfinished" / "state.json").write_text('{"fingerprint": {"--seed": 7}, "digests": {}, "tars": []}')
    with pytest.raises(OutputError, match="the unfinished dataset of another command"):
        build_dataset([source], out, NAMED)
    build_dataset([source], out, replace(NAMED, name="new", overwrite=True))
    assert sorted(tree(out / "shards")) == [f"new-{i:06d}.tar" for i in range(5)]
    assert verify_dataset(out) == []


def test_build__published_shard_that_is_damaged_is_written_again(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 30)
    out = tmp_path / "out"

    class Broken(Workspace):
        def publish(self, manifest: Manifest) -> None:
            os.truncate(self.folder / "shard-000002.tar", 1000)
            super().publish(manifest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinowds.shard.outputs.workspace.Workspace", Broken)
        with pytest.raises(OutputError, match=r"same-000002\.tar: is gone or damaged; give the same command again"):
            build_dataset([source], out, NAMED)
    assert not (out / "manifest.json").exists()
    build_dataset([source], out, NAMED)
    build_dataset([source], tmp_path / "whole", NAMED)
    assert tree(out) == tree(tmp_path / "whole")


def test_build__unfinished_folder_that_cannot_be_removed_is_no_failure(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 3)

    def leave_something(progress: ShardProgress) -> None:
        if progress.phase == "index":  # on NFS a removed open file stays under a new name
            (tmp_path / "out" / ".unfinished" / ".nfs0001").mkdir()

    manifest = build_dataset([source], tmp_path / "out", NAMED, leave_something)
    assert manifest.num_samples == 3
    assert [path.name for path in (tmp_path / "out" / ".unfinished").iterdir()] == [".nfs0001"]
    with pytest.raises(OutputError, match="already holds a dataset"):
        build_dataset([source], tmp_path / "out", NAMED)


def test_build__shard_that_the_manifest_does_not_list_is_never_removed(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 3)
    build_dataset([source], tmp_path / "out", NAMED)
    (tmp_path / "out" / "shards" / "train-000000.tar").write_text("mine")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError, match=r"holds 'shards/train-000000\.tar', which dinowds did not write"):
        build_dataset([source], tmp_path / "out", replace(NAMED, overwrite=True))
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "shards/mine.tar", "shards/train-000000.tar", "subsets/notes.txt", "subsets", "manifest.json"]
)
def test_build__foreign_files_are_never_removed(tmp_path: Path, make_tar: MakeTar, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"holds '{name}', which dinowds did not write"):
            build_dataset([make_tar(tmp_path / "a.tar", 3)], out, replace(NAMED, overwrite=overwrite))
    assert tree(out) == {name: b'{"mine": 1}'}


def test_build__two_runs_never_write_at_once(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / "a.tar", 3)]
    messages = []

    def report(_: ShardProgress) -> None:
        with pytest.raises(OutputError, match="another 'dinowds shard' is writing there") as caught:
            build_dataset(sources, tmp_path / "out", NAMED)
        messages.append(str(caught.value))

    build_dataset(sources, tmp_path / "out", NAMED, report)
    assert len(messages) >= 3
    assert verify_dataset(tmp_path / "out") == []


def test_build__source_that_shrinks_meanwhile_is_an_error(tmp_path: Path, make_tar: MakeTar) -> None:
    for workers in (1, 2):
        source = make_tar(tmp_path / f"a{workers}.tar", 30)

        def report(progress: ShardProgress, source: Path = source) -> None:
            if progress.phase == "write":
                os.truncate(source, 2000)

        with pytest.raises(SourceError, match="changed while it was read"):
            build_dataset([source], tmp_path / "out", replace(NAMED, workers=workers), report)
        assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_build__tar_that_is_rewritten_in_place_meanwhile_is_an_error(
    tmp_path: Path, make_tar: MakeTar, packed: bool
) -> None:
    source, other = make_tar(tmp_path / "a.tar", 30), make_tar(tmp_path / "b.tar", 30, 100)
    content = other.read_bytes()
    if packed:
        source.write_bytes(gzip.compress(source.read_bytes()))
        content = gzip.compress(content)

    def rewrite(progress: ShardProgress) -> None:
        if progress.phase == "write":
            source.write_bytes(content)

    with pytest.raises(SourceError, match=r"a\.tar: changed while it was read"):
        build_dataset([source], tmp_path / "out", NAMED, rewrite)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(OutputError, match="sources that changed since"):
        build_dataset([source], tmp_path / "out", NAMED)
    build_dataset([source], tmp_path / "out", replace(NAMED, overwrite=True))
    assert verify_dataset(tmp_path / "out") == []


def test_build__decompressed_tar_is_kept_for_the_next_run(tmp_path: Path, make_tar: MakeTar) -> None:
    packed = tmp_path / "p.tar.gz"
    packed.write_bytes(gzip.compress(make_tar(tmp_path / "p.tar", 13).read_bytes()))
    late = make_tar(tmp_path / "z.tar", 5, 100)
    good = late.read_bytes()
    late.write_bytes(good[:5000])
    out = tmp_path / "out"

    def phases_of_a_run() -> set[str]:
        seen: set[str] = set()
        with contextlib.suppress(SourceError):
            build_dataset([packed, late], out, NAMED, lambda progress: seen.add(progress.phase))
        return seen

    assert phases_of_a_run() == {"list"}
    (spooled,) = (out / ".unfinished").glob("source-*.tar")
    inode = spooled.stat().st_ino
    assert phases_of_a_run() == {"list"}
    assert spooled.stat().st_ino == inode
    late.write_bytes(good)
    assert phases_of_a_run() == {"list", "write", "index"}
    assert not spooled.exists()
    # What is no tar at all is not worth keeping.
    packed.write_bytes(gzip.compress(b"text" * 999))
    with pytest.raises(SourceError, match="is not a tar"):
        build_dataset([packed], tmp_path / "other", NAMED)
    assert not (tmp_path / "other").exists()


def test_build__file_of_a_folder_that_changes_meanwhile_is_an_error(
    tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def grow(progress: ShardProgress) -> None:
        if progress.phase == "write":
            (folder / "a.jpg").write_bytes(make_image(0) + b"more")

    def rewrite(progress: ShardProgress) -> None:
        if progress.phase == "write":
            (folder / "a.jpg").write_bytes(make_image(0)[::-1])

    def vanish(progress: ShardProgress) -> None:
        if progress.phase == "write":
            (folder / "a.jpg").unlink()

    for change in (rewrite, grow, vanish):
        (folder / "a.jpg").write_bytes(make_image(0))
        with pytest.raises(SourceError, match="changed while it was read"):
            build_dataset([folder], tmp_path / "out", NAMED, change)


def test_build__disk_that_cannot_be_written_is_one_line(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 3)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        build_dataset([source], tmp_path / "file", NAMED)
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)$"):
        build_dataset([source], tmp_path / "file" / "out", NAMED)


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, True), (errno.EACCES, False)]
)
def test_output_errors__advise_the_same_command_only_where_it_can_help(code: int, advice: bool) -> None:
    with pytest.raises(OutputError) as caught, output_errors(Path("out")):
        raise OSError(code, os.strerror(code))
    assert ("give the same command again" in str(caught.value)) == advice


def test_build__output_by_way_of_a_missing_folder_keeps_the_real_error(tmp_path: Path, make_tar: MakeTar) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match="not one image"):
        build_dataset([tmp_path / "folder"], tmp_path / "q" / ".." / "deep" / "out", NAMED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    build_dataset([make_tar(tmp_path / "a.tar", 3)], tmp_path / "q" / ".." / "out", NAMED)
    assert verify_dataset(tmp_path / "out") == []
    assert not (tmp_path / "q").exists()


def test_build__paths_that_are_not_unicode(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    (odd / "source").mkdir(parents=True)
    (odd / "source" / "a.jpg").write_bytes(make_image(0))
    for out in (odd / "out", Path(f"{tmp_path}/out\udcff")):
        with pytest.raises(ConfigError, match=r"^--out: .*\\\\xff.* is not UTF-8"):
            build_dataset([odd / "source"], out, ShardOptions())
    build_dataset([odd / "source"], tmp_path / "out", ShardOptions())
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert rows[0]["source"] == f"{tmp_path}/odd\\xff/source"
    assert verify_dataset(tmp_path / "out") == []


def test_build__pattern_that_finds_words_goes_to_its_end(tmp_path: Path, make_tar: MakeTar) -> None:
    build_dataset([make_tar(tmp_path / "a.tar", 6)], tmp_path / "out", replace(NAMED, key_pattern="(?P<x>.*)_"))
    assert set(pq.read_table(tmp_path / "out" / "samples.parquet")["x"].to_pylist()) == {None}


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"seed": -1}, "--seed"),
        ({"shard_size": 10}, "--shard-size"),
        ({"max_count": 0}, "--max-count"),
        ({"workers": 0}, "--workers"),
        ({"key_pattern": "("}, "--key-pattern"),
        ({"shard_size": 10**30}, "--shard-size"),
        ({"name": "n" * 201}, "--name"),
        ({"name": "組" * 67}, "--name"),
        ({"name": "n\udcff"}, "--name"),
    ],
)
def test_build__options_that_cannot_work_are_errors(
    tmp_path: Path, make_tar: MakeTar, change: dict[str, object], option: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{option}: "):
        build_dataset([make_tar(tmp_path / "a.tar", 3)], tmp_path / "out", replace(NAMED, **change))  # type: ignore[arg-type]


def test_build__output_and_sources_inside_each_other_are_refused(tmp_path: Path, make_tar: MakeTar) -> None:
    (tmp_path / "data").mkdir()
    make_tar(tmp_path / "data" / "a.tar", 3)
    for source, out in ((tmp_path / "data", tmp_path / "data/out"), (tmp_path / "data/a.tar", tmp_path / "data")):
        with pytest.raises(ConfigError, match=r"^--out: "):
            build_dataset([source], out, replace(NAMED, overwrite=True))
    assert (tmp_path / "data" / "a.tar").exists()


def test_plan__says_what_build_writes_and_writes_nothing(tmp_path: Path, make_tar: MakeTar) -> None:
    packed = tmp_path / "b.tgz"
    packed.write_bytes(gzip.compress(make_tar(tmp_path / "b.tar", 13, 100).read_bytes()))
    sources = [make_tar(tmp_path / "a.tar", 20), packed]
    before = tree(tmp_path)
    plan = plan_dataset(sources, tmp_path / "out", NAMED)
    assert tree(tmp_path) == before
    manifest = build_dataset(sources, tmp_path / "out", NAMED)
    assert (plan.samples, plan.shards, plan.num_bytes) == (33, len(manifest.shards), manifest.num_bytes)
    assert plan.cohorts == manifest.cohorts
    with pytest.raises(OutputError):
        plan_dataset(sources, tmp_path / "out", NAMED)


def test_claim__failure_before_anything_was_made_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with claim(LocalOutput(tmp_path / "a" / "b"), False, {"--seed": 1}):
            raise SourceError("nothing here")

    with pytest.raises(DinowdsError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_quarantine__of_a_tar_without_end_marker_says_so(tmp_path: Path, make_tar: MakeTar) -> None:
    source = make_tar(tmp_path / "a.tar", 4)
    with tarfile.open(source) as tar:
        end = tar.getmembers()[-1].offset_data + 1024
    os.truncate(source, end)
    manifest = build_dataset([source], tmp_path / "out", NAMED)
    assert manifest.quarantined == {"tar without its end marker: it may be cut short": 1}
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "source": str(source),
        "member": "",
        "reason": "tar without its end marker: it may be cut short",
    }
