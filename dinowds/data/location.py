"""Where a dataset lies: a folder or a URL, and a subset's name after a colon."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dinowds.data.manifest import MANIFEST_NAME
from dinowds.errors import DatasetError
from dinowds.remote.files import RemoteFiles, is_remote, shown

_SUBSET = re.compile(r"(?P<place>.+):(?P<subset>[A-Za-z0-9_][A-Za-z0-9_.-]*)", re.DOTALL)
_FILE_URL = re.compile(r"file://", re.IGNORECASE)
_ONLY_HOST = re.compile(r"[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)


_ONE_SLASH = re.compile(r"(s3a?|gs|gcs|https?|memory):/?(?=[^/])", re.IGNORECASE)


def meant_url(path: str) -> str | None:
    """'s3:/bucket/x' → 's3://bucket/x': the URL that was meant by a path that only looks like one; None for others."""
    match = _ONE_SLASH.match(path)
    return None if match is None else f"{match[1]}://{path[match.end() :]}"


def split_subset(location: str) -> tuple[str, str | None]:
    """'s3://bucket/patches:fold_0' → ('s3://bucket/patches', 'fold_0'); the subset is None where none is named.

    What exists on disk as it is written is taken whole, and the port of 'http://host:8000' is no subset.
    """
    match = _SUBSET.fullmatch(location)
    if match is None or (not is_remote(location) and Path(location).exists()) or _ONLY_HOST.fullmatch(match["place"]):
        return location, None
    return match["place"], match["subset"]


def join_url(root: str, url: str) -> str:
    """A URL of a manifest: relative to the dataset's `root`, an absolute path, or remote.

    Raises DatasetError for a file of this host that a remote dataset names: it is none of its business.
    """
    if is_remote(url):
        return url
    path = Path(url)
    if is_remote(root) and (path.is_absolute() or ".." in path.parts):
        raise DatasetError(
            f"{shown(root)}: its manifest names {url!r}, expected a URL or a path below it; make the dataset again"
        )
    return url if path.is_absolute() else f"{root.rstrip('/')}/{url}"


def split_location(location: str | Path) -> tuple[str, str | None]:
    """What a user gives for a dataset → its root (a folder or a URL) and the name of a subset or None.

    A path of the manifest and a file:// URL are taken too. Raises DatasetError for what is not quite a URL.
    """
    root, subset = split_subset(str(location))
    if _FILE_URL.match(root):
        root = url2pathname(urlsplit(root).path)
    head, slash, last = root.rpartition("/")
    if last == MANIFEST_NAME:
        root = head if head or not slash else "/"
    if is_remote(root):
        return without_slash(root), subset
    if (meant := meant_url(root)) is not None and not Path(root).exists():
        raise DatasetError(f"{shown(meant).replace('://', ':/', 1)}: no such folder; give {shown(meant)} for the URL")
    return str(Path(root)), subset


def without_slash(url: str) -> str:
    """A remote URL without slashes at its end, but with those of its scheme."""
    scheme, _, place = url.partition("://")
    return f"{scheme}://{place.rstrip('/')}"


def read_beside(root: str, name: str, files: RemoteFiles) -> bytes:
    """The file `name` of a dataset; raises FileNotFoundError where there is none."""
    url = join_url(root, name)
    return files.read(url) if is_remote(url) else Path(url).read_bytes()
