"""A tar at a URL gives what it gives from a local disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from dinowds.errors import ConfigError, DinowdsError, SourceError, StorageError
from dinowds.remote.files import RemoteFiles
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset, plan_dataset
from dinowds.shard.sources import fetching
from dinowds.shard.sources.layouts import open_sources
from tests.servers import S3Server, http_server

MakeTar = Callable[..., Path]

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": lambda content: gzip.compress(content, mtime=0),
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


class Stop(BaseException):
    """Ends a run from its own report, as a signal would."""


@pytest.fixture
def options() -> ShardOptions:
    return ShardOptions(name="same", max_count=4)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(url: str) -> dict[str, bytes]:
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    root = url.removeprefix("s3://")
    return {path[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}


def rows(folder: Path) -> Any:
    return pq.read_table(folder / "samples.parquet").drop_columns("source")


def build_partly(source: str, out: Path, options: ShardOptions) -> None:
    """List the source, then stop before anything is written."""

    def report(progress: ShardProgress) -> None:
        if progress.phase == "write" and progress.samples:
            raise Stop

    with pytest.raises(Stop):
        build_dataset([source], out, options, report)


@pytest.mark.parametrize("suffix", PACKERS)
def test_build__of_a_remote_tar_is_that_of_a_local_one(
    tmp_path: Path, hostile_tars: list[Path], s3: S3Server, options: ShardOptions, suffix: str
) -> None:
    packed = tmp_path / f"cohort.{suffix}"
    packed.write_bytes(PACKERS[suffix](hostile_tars[1].read_bytes()))
    url = f"{s3.url}/deep/{packed.name}"
    RemoteFiles().upload(packed, url)
    manifest = build_dataset([packed], tmp_path / "local", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_STEP", 1000)  # many requests, whose ends are anywhere
        assert build_dataset([url], tmp_path / "fetched", options).cohorts == manifest.cohorts
    expected, found = tree(tmp_path / "local"), tree(tmp_path / "fetched")
    for name in [name for name in expected if name.endswith(".tar")]:
        assert found[name] == expected[name]
    assert found.keys() == expected.keys()
    assert rows(tmp_path / "fetched").equals(rows(tmp_path / "local"))


def test_build__of_a_remote_tar_to_a_remote_place(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    url = f"{s3.url}/a.tar"
    RemoteFiles().upload(make_tar(tmp_path / "a.tar", 10), url)
    build_dataset([url], tmp_path / "out", options)
    build_dataset([url], f"{s3.url}/out", replace(options, staging=tmp_path / "staging"))
    assert objects(f"{s3.url}/out") == tree(tmp_path / "out")
    assert not (tmp_path / "staging").exists()


def test_build__of_remote_and_local_sources_together(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    a, b = make_tar(tmp_path / "a.tar", 10), make_tar(tmp_path / "b.tar", 6, 100)
    RemoteFiles().upload(b, f"{s3.url}/b.tar")
    build_dataset([a, b], tmp_path / "local", options)
    build_dataset([a, f"{s3.url}/b.tar"], tmp_path / "mixed", replace(options, workers=2))
    expected, found = tree(tmp_path / "local"), tree(tmp_path / "mixed")
    assert {name for name in expected if expected[name] != found[name]} == {"samples.parquet", "manifest.json"}
    assert set(pq.read_table(tmp_path / "mixed" / "samples.parquet")["source"].to_pylist()) == {
        str(a),
        f"{s3.url}/b.tar",
    }


def test_build__fetches_once_also_when_it_is_given_again(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    url = f"{s3.url}/a.tar"
    RemoteFiles().upload(make_tar(tmp_path / "a.tar", 10), url)
    build_dataset([url], tmp_path / "whole", options)
    build_partly(url, tmp_path / "out", options)
    (spool,) = tmp_path.glob("out/.unfinished/source-*.tar")
    assert spool.read_bytes() == (tmp_path / "a.tar").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_blocks", None)
        build_dataset([url], tmp_path / "out", options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_build__remote_tar_that_changed_meanwhile_is_an_error(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    """Both have the same size, so that its store's word alone tells them apart."""
    first, second = make_tar(tmp_path / "a.tar", 10), tmp_path / "b.tar"
    with tarfile.open(first) as tar, tarfile.open(second, "w") as out:
        for member in tar:
            content = tar.extractfile(member)
            out.addfile(member.replace(name=member.name.replace("slide0", "slideA"), deep=False), content)
    url = f"{s3.url}/a.tar"
    RemoteFiles().upload(first, url)
    build_partly(url, tmp_path / "out", options)
    RemoteFiles().upload(second, url)
    with pytest.raises(DinowdsError, match="changed"):
        build_dataset([url], tmp_path / "out", options)
    build_dataset([url], tmp_path / "out", replace(options, overwrite=True))
    build_dataset([url], tmp_path / "new", options)
    assert tree(tmp_path / "out") == tree(tmp_path / "new")

    def replacing(files: RemoteFiles, url: str, num_bytes: int) -> Any:
        yield files.read(url, 0, 5000)
        files.upload(first, url)
        yield files.read(url, 5000, num_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_blocks", replacing)
        with pytest.raises(SourceError, match=r"a\.tar: changed while it was read"):
            build_dataset([url], tmp_path / "third", options)
    assert not (tmp_path / "third").exists()


def test_build__remote_tar_over_http_that_fails_on_the_way(
    tmp_path: Path, make_tar: MakeTar, options: ShardOptions
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    make_tar(served / "a cohort.tar", 10)
    with http_server(served, ("503", "cut", "close")) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_STEP", 2000)
        url = f"{server.url}/a%20cohort.tar?signature=s3cr3t"
        manifest = build_dataset([url], tmp_path / "out", options)
        assert server.faults_made > 3
    assert manifest.cohorts == {"a cohort": 10}
    assert not any(b"s3cr3t" in content for content in tree(tmp_path / "out").values())


def test_open_sources__names_no_secrets_and_knows_the_url(tmp_path: Path, make_tar: MakeTar) -> None:
    with http_server(tmp_path) as server:
        make_tar(tmp_path / "a.tar", 2)
        (source,) = open_sources([f"{server.url}/a.tar?signature=s3cr3t"])
        assert (source.path, source.cohort, source.layout) == (f"{server.url}/a.tar", "a", "tar")
        (file,) = source.files
        assert (file.path, file.num_bytes) == (source.path, (tmp_path / "a.tar").stat().st_size)
        with pytest.raises(SourceError, match=r"a\.tar: is given twice"):
            open_sources([f"{server.url}/a.tar", f"{server.url}/a.tar"])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_plan__of_a_remote_tar_writes_nothing(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions, suffix: str
) -> None:
    url = f"{s3.url}/a.{suffix}"
    RemoteFiles().write(url, PACKERS[suffix](make_tar(tmp_path / "a.tar", 10).read_bytes()))
    plan = plan_dataset([url], tmp_path / "out", options)
    manifest = build_dataset([url], tmp_path / "out", options)
    assert (plan.samples, plan.shards, plan.cohorts) == (10, len(manifest.shards), {"a": 10})


def test_build__of_what_is_no_remote_tar_is_one_clear_line(
    tmp_path: Path, make_tar: MakeTar, s3: S3Server, options: ShardOptions
) -> None:
    files, out = RemoteFiles(), tmp_path / "out"
    build_dataset([make_tar(tmp_path / "a.tar", 3)], f"{s3.url}/dataset", replace(options, staging=tmp_path / "s"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.txt", b"text")
    files.upload(tmp_path / "a.zip", f"{s3.url}/a.zip")
    files.write(f"{s3.url}/empty.tar", b"")
    files.write(f"{s3.url}/text.tar", b"text" * 1000)
    files.write(f"{s3.url}/cut.tar", (tmp_path / "a.tar").read_bytes()[:3000])
    files.write(f"{s3.url}/cut.tar.gz", gzip.compress((tmp_path / "a.tar").read_bytes())[:-100])
    for name, words in (
        ("missing.tar", r"missing\.tar: no such file or bucket"),
        ("dataset", r"/dataset: is a dataset, which must be local"),
        ("dataset/", r"/dataset/: is a dataset, which must be local"),
        ("dataset:fold_0", r"is a dataset, which must be local"),
        ("a.zip", r"a\.zip: is a zip, which must be local"),
        ("empty.tar", r"empty\.tar: is empty"),
        ("text.tar", r"text\.tar: is not a tar"),
        ("cut.tar", r"cut\.tar: .*(cut|end)"),
        ("cut.tar.gz", r"cut\.tar\.gz: is cut short"),
    ):
        with pytest.raises(SourceError, match=words):
            build_dataset([f"{s3.url}/{name}"], out, options)
        assert not out.exists(), name
    with pytest.raises(ConfigError, match=r"^--layout: hs2p reads local sources alone"):
        build_dataset([f"{s3.url}/a.tar"], out, replace(options, layout="hs2p"))
    with pytest.raises(StorageError, match=r"^s3://bucket/a\.tar: has a user or a key"):
        build_dataset(["s3://key:s3cr@bucket/a.tar"], out, options)
