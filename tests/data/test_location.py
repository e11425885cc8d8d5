"""Where a dataset lies, and which subset is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinowds.data.location import join_url, split_location, split_subset
from dinowds.errors import DatasetError


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("data/p", ("data/p", None)),
        ("data/p:fold_0", ("data/p", "fold_0")),
        ("/data/p:0.a-b", ("/data/p", "0.a-b")),
        ("s3://b/d", ("s3://b/d", None)),
        ("s3://b/d:fold_0", ("s3://b/d", "fold_0")),
        ("http://host:8000", ("http://host:8000", None)),
        ("http://host:8000/d", ("http://host:8000/d", None)),
        ("http://host:8000/d:8000", ("http://host:8000/d", "8000")),
        ("memory://d:x", ("memory://d:x", None)),
        ("a:b:c", ("a:b", "c")),
        ("data/p:-x", ("data/p:-x", None)),
        ("data/p:", ("data/p:", None)),
        (":x", (":x", None)),
    ],
)
def test_split_subset__cases(location: str, expected: tuple[str, str | None]) -> None:
    assert split_subset(location) == expected


def test_split_subset__what_exists_is_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert split_subset(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", None)
    assert split_subset(f"{tmp_path}/a:b:c") == (f"{tmp_path}/a:b", "c")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (Path("data/p"), ("data/p", None)),
        ("data/p/", ("data/p", None)),
        ("data/p/manifest.json", ("data/p", None)),
        ("data/p/manifest.json:a", ("data/p", "a")),
        ("manifest.json", (".", None)),
        ("/manifest.json", ("/", None)),
        (".", (".", None)),
        ("s3://b/d/", ("s3://b/d", None)),
        ("s3://", ("s3://", None)),
        ("s3:fold_0", ("s3", "fold_0")),
        ("s3://b/d/manifest.json:a", ("s3://b/d", "a")),
        ("file:///data/a%20b", ("/data/a b", None)),
        ("file:///data/p:x", ("/data/p", "x")),
    ],
)
def test_split_location__gives_the_root(location: str | Path, expected: tuple[str, str | None]) -> None:
    assert split_location(location) == expected


@pytest.mark.parametrize(
    ("root", "url", "expected"),
    [
        ("data/p", "shards/a.tar", "data/p/shards/a.tar"),
        ("s3://b/d/", "shards/a.tar", "s3://b/d/shards/a.tar"),
        ("data/p", "/data/a.tar", "/data/a.tar"),
        ("data/p", "../q/a.tar", "data/p/../q/a.tar"),
        ("s3://b/d", "a..b/c.tar", "s3://b/d/a..b/c.tar"),
        ("s3://b/d", "http://h/a.tar", "http://h/a.tar"),
        ("data/p", "s3://c/a.tar", "s3://c/a.tar"),
    ],
)
def test_join_url__cases(root: str, url: str, expected: str) -> None:
    assert join_url(root, url) == expected


@pytest.mark.parametrize("root", ["s3://b/d", "http://h"])
@pytest.mark.parametrize("url", ["/etc/passwd", "../other/a.tar", "shards/../../a.tar", ".."])
def test_join_url__remote_datasets_name_no_files_of_this_host(root: str, url: str) -> None:
    with pytest.raises(DatasetError, match=r"its manifest names .*, expected a URL or a path below it"):
        join_url(root, url)


@pytest.mark.parametrize("location", ["s3:/b/d", "s3:/b/d:fold", "S3:b/d", "http:/h/d", "gs:/b"])
def test_split_location__what_only_looks_like_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r": no such folder; give \w+://\w"):
        split_location(location)
    (tmp_path / location).mkdir(parents=True)
    assert split_location(location) == (location, None)
