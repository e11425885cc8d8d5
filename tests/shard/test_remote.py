"""A remote dataset has the bytes of a local one, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dinowds.data.verify import verify_dataset
from dinowds.errors import ConfigError, OutputError, SourceError, StorageError
from dinowds.remote.files import RemoteFiles
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset, plan_dataset
from tests.servers import S3Server

MakeTar = Callable[..., Path]
COMMAND = [str(Path(sys.executable).with_name("dinowds")), "shard"]
NUM_KILLS = 2


class Stop(BaseException):
    """Ends a run from its own report, as a signal would."""


@pytest.fixture
def options(tmp_path: Path) -> ShardOptions:
    return ShardOptions(name="same", max_count=7, staging=tmp_path / "staging")


def objects(url: str) -> dict[str, bytes]:
    """All objects under a prefix, by their names in it."""
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    root = url.removeprefix("s3://")
    return {path[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}


def local(sources: list[Path], out: Path, options: ShardOptions) -> dict[str, bytes]:
    """The files of the dataset that the same call writes to a folder."""
    build_dataset(sources, out, replace(options, staging=None))
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def build_partly(sources: list[Path], out: str, options: ShardOptions, samples: int) -> None:
    """Run until the shards of `samples` are uploaded, then stop."""

    def report(progress: ShardProgress) -> None:
        if progress.phase == "write" and progress.samples >= samples:
            raise Stop

    with pytest.raises(Stop):
        build_dataset(sources, out, options, report)


@pytest.mark.parametrize("workers", [1, 2])
def test_build__remote_dataset_has_the_bytes_of_a_local_one(
    tmp_path: Path, hostile_tars: list[Path], s3: S3Server, options: ShardOptions, workers: int
) -> None:
    options = replace(options, max_count=1, workers=workers)
    planned = plan_dataset(hostile_tars, f"{s3.url}/deep/out", options).shards
    expected = local(hostile_tars, tmp_path / "out", options)
    seen: list[ShardProgress] = []
    largest = 0

    def report(progress: ShardProgress) -> None:
        nonlocal largest
        seen.append(progress)
        largest = max(largest, len([path for path in tmp_path.glob("staging/*/*.tar") if path.stat().st_size]))

    manifest = build_dataset(hostile_tars, f"{s3.url}/deep/out/", options, report)
    assert objects(f"{s3.url}/deep/out") == expected
    assert json.loads(expected["manifest.json"]) == manifest.to_json()
    assert len(manifest.shards) == planned
    assert not (tmp_path / "staging").exists()
    assert largest <= 2 * workers  # the one that is written and the one that is uploaded
    writes = [progress for progress in seen if progress.phase == "write"]
    assert (writes[0].samples, writes[-1].samples) == (0, writes[-1].total_samples)


def test_shard__killed_at_random_moments_ends_with_the_same_objects(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server
) -> None:
    source = make_tar(tmp_path / "a.tar", 80)
    arguments = [*COMMAND, str(source), "--max-count", "10", "--workers", "2"]
    expected = local([source], tmp_path / "same", ShardOptions(max_count=10))
    out, staging = f"{s3.url}/same", tmp_path / "staging"
    arguments += ["--out", out, "--staging", str(staging)]
    random = np.random.default_rng(0)
    kills, uploaded = 0, 0
    while not _run_or_kill(arguments, staging, uploaded + int(random.integers(1, 4))):
        kills += 1
        assert kills <= 8
        found = objects(out)
        assert "manifest.json" not in found or found.items() >= expected.items()
        before, uploaded = uploaded, len(_uploaded(staging))
        assert uploaded >= before  # none was lost or written again
        assert all(found[name] == expected[name] for name in found if name.startswith("shards/"))
    assert kills >= NUM_KILLS
    assert objects(out) == expected
    assert list(staging.iterdir()) == []


def _uploaded(staging: Path) -> list[Path]:
    return [path for path in staging.glob("*/shard-*.tar") if path.stat().st_size == 0]


def _run_or_kill(arguments: list[str], staging: Path, shards: int) -> bool:
    """Whether the command finished before it had uploaded `shards` shards, at which it is killed."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and len(_uploaded(staging)) < shards:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.kill()
    _, errors = process.communicate()  # returns once no worker holds the pipe either
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0


def test_build__goes_on_where_shards_are_uploaded_and_writes_what_is_damaged_again(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    expected = local(sources, tmp_path / "whole", options)
    out, files = f"{s3.url}/out", RemoteFiles()
    build_partly(sources, out, options, 21)
    files.write(f"{out}/shards/same-000001.tar", b"cut")
    files.remove(f"{out}/shards/same-000002.tar")
    files.write(f"{out}/shards/same-000000.tar", bytes(files.size(f"{out}/shards/same-000000.tar")))
    seen: list[ShardProgress] = []
    build_dataset(sources, out, options, seen.append)
    assert next(progress.samples for progress in seen if progress.phase == "write") in (7, 14)
    found = objects(out)
    # What is there with its whole size is not written again: so the first one still has what the test put there.
    assert set(found.pop("shards/same-000000.tar")) == {0}
    assert found == {name: content for name, content in expected.items() if name != "shards/same-000000.tar"}
    assert [damage.shard for damage in verify_dataset(out) if not damage.key] == []


def test_build__lost_staging_costs_only_the_work(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 30)]
    expected = local(sources, tmp_path / "whole", options)
    build_partly(sources, f"{s3.url}/out", options, 14)
    with pytest.raises(OutputError, match=r"the unfinished dataset of another command: --seed was 0, now 1"):
        build_dataset(sources, f"{s3.url}/out", replace(options, seed=1, staging=tmp_path / "elsewhere"))
    build_dataset(sources, f"{s3.url}/out", replace(options, staging=tmp_path / "elsewhere"))
    assert objects(f"{s3.url}/out") == expected


def test_build__shards_that_another_host_has_replaced_are_not_taken_for_ours(
    tmp_path: Path, s3: S3Server, options: ShardOptions
) -> None:
    """All images have one size here, so sizes alone do not tell the shards of two seeds apart."""
    from PIL import Image

    (tmp_path / "folder").mkdir()
    for index in range(20):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "folder" / f"{index}.bmp")
    sources, out = [tmp_path / "folder"], f"{s3.url}/out"
    build_partly(sources, out, options, 14)
    other = replace(options, seed=1, overwrite=True, staging=tmp_path / "other host")
    build_dataset(sources, out, other)
    assert objects(out) == local(sources, tmp_path / "seed 1", other)
    with pytest.raises(OutputError, match="already holds a dataset"):
        build_dataset(sources, out, options)
    build_dataset(sources, out, replace(options, overwrite=True))
    assert objects(out) == local(sources, tmp_path / "seed 0", options)


@pytest.mark.parametrize("phase", ["write", "index"])
def test_build__run_that_was_pushed_aside_uploads_nothing_more(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions, phase: str
) -> None:
    sources, out = [make_tar(tmp_path / "a.tar", 20)], f"{s3.url}/out"
    other = replace(options, seed=1, overwrite=True, staging=tmp_path / "other host")
    found: list[dict[str, bytes]] = []

    def push_aside(progress: ShardProgress) -> None:
        if progress.phase == phase:
            build_partly(sources, out, other, 14)
            found.append(objects(out))

    with pytest.raises(OutputError, match="another 'dinowds shard' has begun to write there"):
        build_dataset(sources, out, options, push_aside)
    assert [objects(out)] == found
    assert "manifest.json" not in found[0]
    build_dataset(sources, out, other)
    assert objects(out) == local(sources, tmp_path / "whole", other)


def test_build__overwrite_replaces_a_remote_dataset_with_its_subsets(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    many, few = [make_tar(tmp_path / "a.tar", 30)], [make_tar(tmp_path / "b.tar", 10, 100)]
    out, files = f"{s3.url}/out", RemoteFiles()
    build_dataset(many, out, options)
    files.write(f"{out}/subsets/fold_0.npy", b"mask")
    files.write(f"{out}/subsets/fold_0.json", b"{}")
    before = objects(out)
    with pytest.raises(OutputError, match="already holds a dataset; give another --out, or --overwrite"):
        build_dataset(few, out, options)
    with pytest.raises(OutputError, match="already holds a dataset"):
        plan_dataset(few, out, options)
    assert objects(out) == before
    build_partly(few, out, replace(options, overwrite=True), 7)
    assert "manifest.json" not in objects(out)
    build_dataset(few, out, options)
    assert objects(out) == local(few, tmp_path / "whole", options)


def test_build__in_a_folder_that_is_an_object_too(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    sources, out = [make_tar(tmp_path / "a.tar", 10)], f"{s3.url}/marked"
    RemoteFiles().write(f"{out}/", b"")
    build_dataset(sources, out, options)
    assert objects(out).items() >= local(sources, tmp_path / "whole", options).items()


@pytest.mark.parametrize("name", ["notes.txt", "shards/same-000000.tar", "subsets/notes.txt", "manifest.json"])
def test_build__foreign_objects_are_never_removed(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions, name: str
) -> None:
    RemoteFiles().write(f"{s3.url}/out/{name}", b'{"mine": 1}')
    with pytest.raises(OutputError, match=f"holds '{name}', which dinowds did not write"):
        build_dataset([make_tar(tmp_path / "a.tar", 3)], f"{s3.url}/out", replace(options, overwrite=True))
    assert objects(f"{s3.url}/out") == {name: b'{"mine": 1}'}


def test_build__run_that_makes_nothing_leaves_nothing(tmp_path: Path, s3: S3Server, options: ShardOptions) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match="not one image"):
        build_dataset([tmp_path / "folder"], f"{s3.url}/out", options)
    assert objects(f"{s3.url}/out") == {}
    assert not (tmp_path / "staging").exists()


def test_build__upload_that_fails_is_one_line_and_the_next_run_only_uploads(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    sources, out = [make_tar(tmp_path / "a.tar", 20)], f"{s3.url}/out"

    def refuse(_self: RemoteFiles, _path: Path, url: str) -> None:
        raise StorageError(f"{url}: cannot be written after 6 tries (test); check the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFiles, "upload", refuse)
        with pytest.raises(StorageError, match=r"same-000000\.tar: cannot be written after 6 tries"):
            build_dataset(sources, out, options)
    (tar,) = tmp_path.glob("staging/*/shard-000000.tar")
    written = tar.with_suffix(".arrow").stat().st_mtime_ns
    build_partly(sources, out, options, 7)
    assert tar.stat().st_size == 0
    assert tar.with_suffix(".arrow").stat().st_mtime_ns == written
    build_dataset(sources, out, options)
    assert objects(out) == local(sources, tmp_path / "whole", options)


def test_build__places_that_cannot_work_are_errors(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    source = make_tar(tmp_path / "a.tar", 3)
    for out, words in (
        ("https://host/out", r"^--out: https://host/out can be read only"),
        ("s3://", r"^--out: s3:// is no place"),
        ("s3:/bucket/out", r"^--out: s3:/bucket/out is no URL; give s3://bucket/out, or ./ first"),
        ("GS:out", r"^--out: GS:/out is no URL; give GS://out"),
        ("s3://key:s3cr@bucket/out", r"^--out: s3://bucket/out has a user or a key"),
        (f"{s3.url}/out:fold_0", r"^--out: .* names a subset, 'fold_0'"),
        (f"{s3.url}/out?x=1", r"^--out: .* is no place for a dataset"),
        (tmp_path / "out", r"^--staging: is for a remote --out"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_dataset([source], out, options)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"^--staging: .* lies in the source"):
        build_dataset([tmp_path / "folder"], f"{s3.url}/out", replace(options, staging=tmp_path / "folder" / "deep"))
    with pytest.raises(SourceError, match=r"^s3://bucket/a\.tar: no such file"):
        build_dataset(["s3://bucket/a.tar"], f"{s3.url}/out", options)
    with pytest.raises((OutputError, StorageError), match=r"nowhere-at-all/out.*bucket"):
        build_dataset([source], "s3://nowhere-at-all/out", options)
    with pytest.raises(OutputError, match=r"nowhere-at-all/out: no such place; make the bucket first"):
        plan_dataset([source], "s3://nowhere-at-all/out", options)
    assert objects(s3.url) == {}
