"""What a URL is, and that its secrets are not shown."""

from __future__ import annotations

import pytest

from dinowds.remote.urls import is_remote, shown, shown_in


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b/k", True), ("gs://b/k", True), ("http://h/x", True), ("https://h/x", True), ("memory://x", True),
        ("file:///x", False), ("FILE:///x", False), ("/data/x", False), ("data/x:fold", False), ("C:/x", False),
        ("", False), ("://x", False), ("a/s3://b", False),
    ],
)  # fmt: skip
def test_is_remote(url: str, expected: bool) -> None:
    assert is_remote(url) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/x", "http://h/x"),
        ("http://h:80/a@b", "http://h:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("https://h/x?sig=SECRET@SECRET", "https://h/x"),
        ("https://user:SECRET@h/x?sig=SECRET@SECRET", "https://h/x"),
        ("https://user:SE@CRET@h/x", "https://h/x"),
        ("https://user:SE@C/RET@h/x", "https://h/x"),
        ("https://user:SE/CRET@h/x", "https://…"),
        ("https://user:SE?CRET@h/x", "https://…"),
        ("https://user:SE#CRET@h/x", "https://…"),
        ("s3://KEY:SECRET@b/x", "s3://b/x"),
        ("s3://arn:aws:s3:eu:1:accesspoint/name/x", "s3://arn:aws:s3:eu:1:accesspoint/name/x"),
        ("abfs://c/x?sas=SECRET", "abfs://c/x"),
        ("/data/a@b?x", "/data/a@b?x"),
        ("file:///a@b?x", "file:///a@b?x"),
    ],
)
def test_shown__has_no_secrets(url: str, expected: str) -> None:
    assert shown(url) == expected
    assert shown_in(f"Invalid URL: {url} in request") == f"Invalid URL: {expected} in request"
