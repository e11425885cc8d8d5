"""The place that `--out` names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dinowds.data.location import meant_url, split_subset, without_slash
from dinowds.errors import ConfigError
from dinowds.files import cache_folder
from dinowds.remote.files import is_remote, shown
from dinowds.remote.urls import has_user
from dinowds.shard.outputs.local_output import LocalOutput
from dinowds.shard.outputs.output import Output
from dinowds.shard.outputs.remote_output import RemoteOutput
from dinowds.shard.records import decode_name


def open_output(out: Path | str, staging: Path | None = None) -> Output:
    """What `--out` says; `staging` is the folder of the unfinished part of a remote dataset.

    Raises ConfigError where no dataset can be written.
    """
    text = str(out)
    check_text("--out", text)
    if text.lower().startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    if not is_remote(text):
        if (meant := meant_url(text)) is not None:
            raise ConfigError(
                f"--out: {shown(meant).replace('://', ':/', 1)} is no URL; give {shown(meant)}, or ./ first"
            )
        if staging is not None:
            raise ConfigError(f"--staging: is for a remote --out, and {text} is a folder; leave it out")
        return LocalOutput(Path(text).resolve())
    url = without_slash(text)
    name, parts = shown(url), urlsplit(url)
    if parts.scheme in ("http", "https"):
        raise ConfigError(f"--out: {name} can be read only, expected a folder or a URL like s3://bucket/prefix")
    if parts.query or parts.fragment or not parts.netloc:
        raise ConfigError(f"--out: {name} is no place for a dataset, expected a URL like s3://bucket/prefix")
    if has_user(url):
        raise ConfigError(f"--out: {name} has a user or a key before '@'; give credentials by the environment alone")
    if (subset := split_subset(url)[1]) is not None:
        raise ConfigError(f"--out: {name} names a subset, {subset!r}; give a URL without ':' in its path")
    return RemoteOutput(url, (staging or cache_folder() / "staging").resolve())


def check_text(option: str, text: str) -> None:
    """Raise ConfigError for what is not Unicode: manifests, indexes and other readers know no other names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = decode_name(os.fsencode(text))
        raise ConfigError(f"{option}: {shown!r} is not UTF-8, which the index needs; give another name") from None
