"""Manifests from others: what cannot be right is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinowds.data.manifest import Manifest, read_manifest
from dinowds.errors import DatasetError, StorageError
from tests.servers import http_server


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("shards/a\0.tar", "without control characters"),
        ("shards/a\n.tar", "without control characters"),
        ("x" * 4097, "a shard's url has 4,097 characters, expected at most 4,096"),
    ],
)
def test_from_json__urls_that_are_none(dataset_path: Path, url: str, told: str) -> None:
    content = json.loads((dataset_path / "manifest.json").read_text())
    content["shardlist"][0]["url"] = url
    with pytest.raises(ValueError, match=told):
        Manifest.from_json(content)


@pytest.mark.parametrize("digest", ["", "0" * 63, "../../../a", None, "G" * 64])
def test_from_json__digests(dataset_path: Path, digest: str | None) -> None:
    content = json.loads((dataset_path / "manifest.json").read_text())
    content["dinowds"]["shard_sha256"][1] = digest
    with pytest.raises(ValueError, match="expected 64 hex digits"):
        Manifest.from_json(content)


@pytest.mark.parametrize("name", ["nsamples", "filesize"])
@pytest.mark.parametrize("count", [-1, 10**30])
def test_from_json__counts(dataset_path: Path, name: str, count: int) -> None:
    content = json.loads((dataset_path / "manifest.json").read_text())
    content["shardlist"][0][name] = count
    with pytest.raises(ValueError, match=f"is {count}, expected 0 or more"):
        Manifest.from_json(content)


def test_read_manifest__text_that_is_not_unicode(dataset_path: Path, tmp_path: Path) -> None:
    content = json.loads((dataset_path / "manifest.json").read_text())
    for url, is_text in (("shards/\ud800.tar", False), (r"shards/\ud800.tar", True)):
        content["shardlist"][0]["url"] = url
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        if is_text:
            assert read_manifest(tmp_path).shards[0].url == url
        else:
            with pytest.raises(DatasetError, match="surrogates not allowed"):
                read_manifest(tmp_path)


def test_read_manifest__errors_keep_secrets(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text("[]")
    with http_server(tmp_path) as server:
        root = server.url.replace("//", "//user:SECRET@")
        for name, words in (("d", "not a manifest of dinowds"), ("nothere", "no such dataset")):
            with pytest.raises((DatasetError, StorageError), match=words) as caught:
                read_manifest(f"{root}/{name}")
            assert str(caught.value).startswith(f"{server.url}/{name}")
            assert "SECRET" not in str(caught.value)
